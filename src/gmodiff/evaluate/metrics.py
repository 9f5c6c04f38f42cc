"""How close an estimate is to the truth, in numbers whose settings travel with them.

Everything is measured on radiance relative to the white of the shortest frame, cut to 0..1: what lies above, no frame measured, and
what methods make of it is not scored. Nothing is aligned in exposure here. Where the truth is not known (`Scene.known`) the estimate
counts as right, so that windows reaching across carry nothing over.

Sources: PSNR in the mu domain, Kalantari and Ramamoorthi 2017, equation 5 (mu = 5000). SSIM, Wang et al. 2004: 11x11 Gaussian windows
of 1.5 px, K = 0.01, 0.03. PU21, Mantiuk and Azimi 2021, "banding_glare" parameters. The paper's gain, `gainmap.mu_gain`. Gradient
similarity, Xue et al. 2014 ("Gradient magnitude similarity deviation"), equations 1 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import cv2
import numpy as np

from gmodiff.datasets.scene import Mask, Scene
from gmodiff.errors import InputError
from gmodiff.gainmap import mu_gain
from gmodiff.radiometry import F32, luminance_weights

MU = 5000.0
WHITE_NITS = 203.0
"""Absolute scale of PU21 and JOD: the light of radiance 1.0, the reference's white (diffuse white of ITU-R BT.2408)."""

PSNR_CEILING = 120.0
"""What identical pictures get, so that rows hold numbers: a mean square error of 1e-12."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5

PU21_BANDING_GLARE = (0.353487901, 0.3734658629, 8.277049286e-05, 0.9062562627, 0.09150303166, 0.9099517204, 596.3148142)
PU21_RANGE_NITS = (0.005, 10000.0)
PU21_PEAK = 256.0
"""What PU21's authors divide by in PSNR and SSIM: the code of 100 cd/m2 is near 256."""


def compress(relative: F32) -> F32:
    """log(1 + mu h) / log(1 + mu) of radiance relative to its white, cut to 0..1, mu = 5000 (Kalantari and Ramamoorthi 2017, eq. 5)."""
    return np.asarray(np.log1p(np.float32(MU) * np.clip(relative, 0, 1)) / np.float32(np.log1p(MU)))


def pu21(nits: F32) -> F32:
    """Absolute light in cd/m2, 0.005 to 10000 (cut), to perceptually uniform codes of about 0..595 (Mantiuk and Azimi 2021, eq. 2)."""
    p = PU21_BANDING_GLARE
    powered = np.clip(nits, *PU21_RANGE_NITS).astype(np.float64) ** p[3]
    return np.asarray(p[6] * (((p[0] + p[1] * powered) / (1 + p[2] * powered)) ** p[4] - p[5]), np.float32)


def psnr(a: F32, b: F32, where: Mask | None = None, peak: float = 1.0) -> float | None:
    """Peak signal-to-noise ratio in dB over all pixels or those of a mask; None where that is empty; at most PSNR_CEILING."""
    square = np.square(a - b, dtype=np.float32)
    if where is not None:
        square = square[where]
    if not square.size:
        return None
    return float(-10 * np.log10(max(float(square.mean(dtype=np.float64)) / peak**2, 10 ** (-PSNR_CEILING / 10))))


class SSIM:
    """Structural similarity to one picture (H, W) or (H, W, C), whose own statistics are kept. Raises InputError below 11 pixels."""

    def __init__(self, truth: F32, data_range: float) -> None:
        if min(truth.shape[:2]) < SSIM_WINDOW:
            raise InputError(f"SSIM needs pictures of {SSIM_WINDOW} pixels a side or more, got {truth.shape[1]}x{truth.shape[0]}")
        self._truth, self._c1, self._c2 = truth, (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        self._mean = _window(truth)
        self._variance = _window(truth * truth) - self._mean**2

    def map(self, estimate: F32) -> F32:
        """Similarity at each pixel (H, W), mean over channels; pixels within 5 of the edge are not meaningful (see `mean`)."""
        mean = _window(estimate)
        variance = _window(estimate * estimate) - mean**2
        covariance = _window(estimate * self._truth) - mean * self._mean
        value = (2 * mean * self._mean + self._c1) * (2 * covariance + self._c2)
        value /= (mean**2 + self._mean**2 + self._c1) * (variance + self._variance + self._c2)
        return np.asarray(value if value.ndim == 2 else value.mean(axis=-1))

    @staticmethod
    def mean(similarity: F32, where: Mask | None = None) -> float | None:
        """Mean of a map over pixels whose window lies inside the picture, and inside a mask if there is one; None if there are none."""
        inner = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
        values = similarity[inner, inner] if where is None else similarity[inner, inner][where[inner, inner]]
        return float(values.mean(dtype=np.float64)) if values.size else None


def _window(image: F32) -> F32:
    kernel = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_64F)
    # In double precision: variances are small differences of large numbers.
    return np.asarray(cv2.sepFilter2D(image.astype(np.float64), cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REFLECT))


GRID_FLAT, GRID_LEAST = 0.006, 2000
"""Steps of the compressed truth below the first are flat (1.5 codes of 8 bits); fewer flat steps than the second say nothing."""


def grid_excess(estimate: F32, truth: F32, known: Mask) -> float | None:
    """How much stronger steps of the error are from one 4-pixel cell to the next than within a cell, in dB; 0 is no grid.

    Both pictures (H, W, 3), compressed. Networks that end in a pixel shuffle by 4 leave such a grid on flat walls. Steps across columns
    (rows) 3 and 4 of every 8 are compared with those across 1-2, 2-3, 4-5 and 5-6, so that the blocks of JPEG, which meet between 7 and
    0 in a photo that was not cropped, do not count; the worse of both directions. None where too little is flat.
    """
    error = (estimate - truth).mean(axis=-1)
    level = truth.mean(axis=-1)
    worst: float | None = None
    for axis in (0, 1):
        step, edge = np.diff(error, axis=axis), np.abs(np.diff(level, axis=axis))
        inside = known[1:] & known[:-1] if axis == 0 else known[:, 1:] & known[:, :-1]
        flat = (edge < GRID_FLAT) & inside
        power = np.where(flat, step * step, 0).sum(axis=1 - axis, dtype=np.float64)
        count = flat.sum(axis=1 - axis)
        phase = np.arange(len(power)) % 8
        between, within = phase == 3, np.isin(phase, (1, 2, 4, 5))
        if min(count[between].sum(), count[within].sum()) < GRID_LEAST:
            continue
        ratio = (power[between].sum() / count[between].sum() + 1e-12) / (power[within].sum() / count[within].sum() + 1e-12)
        excess = float(10 * np.log10(ratio))
        worst = excess if worst is None else max(worst, excess)
    return worst


class ExtraMetric(Protocol):
    """A metric that needs more than NumPy (see `perceptual`)."""

    name: str
    settings: str
    needs_truth: bool

    def __call__(self, estimate: F32, truth: F32, masks: Mapping[str, Mask], white_nits: float) -> dict[str, float | None]:
        """Both pictures (H, W, 3) relative to the short frame's white, 0..1, whose light is white_nits: name, or name/mask, to value."""
        ...


GMS_SAME = 170.0 / 255**2
"""c of gradient similarity: gradients well below its root count as none (Xue et al. 2014, section II-A, for a range of 1)."""


class GradientSimilarity:
    """Likeness of the gradients of two pictures' mu-compressed luminance, at half size as its authors have it: 1 is identical.

    The mean (their GMSM), also inside masks: whether texture is there, wherever its level lies.
    """

    name, needs_truth = "gms", True
    settings = f"mean gradient magnitude similarity of mu {MU:g} mean of RGB, 2x2 means, Prewitt, c {GMS_SAME:.4g}"

    def __call__(self, estimate: F32, truth: F32, masks: Mapping[str, Mask], white_nits: float) -> dict[str, float | None]:
        """See `ExtraMetric`."""
        a, b = (self._gradient(p) for p in (estimate, truth))
        similar = (2 * a * b + GMS_SAME) / (a * a + b * b + GMS_SAME)
        found: dict[str, float | None] = {"gms": float(similar.mean(dtype=np.float64))}
        for name, mask in masks.items():
            inside = similar[mask[::2, ::2]]
            found[f"gms/{name}" if name else "gms"] = float(inside.mean(dtype=np.float64)) if inside.size else None
        return found

    @staticmethod
    def _gradient(relative: F32) -> F32:
        level = compress(relative).mean(axis=-1)
        small = cv2.blur(level, (2, 2), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)[::2, ::2]
        across = np.array([[1, 0, -1]] * 3, np.float32) / 3
        x, y = (cv2.filter2D(small, cv2.CV_32F, k, borderType=cv2.BORDER_REPLICATE) for k in (across, across.T))
        return np.asarray(np.hypot(x, y))


class Scorer:
    """Scores estimates of one scene; what depends on the truth alone is computed once.

    Raises InputError where the scene has no truth.
    """

    def __init__(self, scene: Scene, extra: tuple[ExtraMetric, ...] = ()) -> None:
        if scene.truth is None:
            raise InputError(f"{scene.name} has no ground truth: nothing to compare with")
        self._scene, self._extra = scene, extra
        self._white = np.float32(scene.short_white)
        self._truth = np.clip(scene.truth / self._white, 0, 1)
        self._reference = scene.bracket.frames[scene.bracket.reference].encoded
        known = np.ones(self._truth.shape[:2], bool) if scene.known is None else scene.known
        self._areas: dict[str, Mask] = {"": known, **{f"/{name}": mask & known for name, mask in scene.masks.items()}}
        self._mu = compress(self._truth)
        self._ssim_mu = SSIM(self._mu, 1.0)
        self._nits = float(self._white) * WHITE_NITS
        self._luminance = luminance_weights(scene.bracket.colour)
        self._pu = pu21(self._truth * np.float32(self._nits))
        self._ssim_pu = SSIM(pu21(self._truth @ self._luminance * np.float32(self._nits)), PU21_PEAK)
        self._gain = self._mu_gain(self._truth)

    def __call__(self, estimate: F32) -> dict[str, float | None]:
        """Every metric of an (H, W, 3) radiance, 1.0 = the reference's white: "metric" and "metric/mask" to value.

        Raises InputError for another shape or values that are not finite.
        """
        if estimate.shape != self._truth.shape:
            raise InputError(
                f"the estimate is {estimate.shape[1]}x{estimate.shape[0]} with {estimate.shape[2:]} channels, "
                f"the truth of {self._scene.name} is {self._truth.shape[1]}x{self._truth.shape[0]} with (3,)"
                if estimate.ndim >= 2
                else f"the estimate has shape {estimate.shape}, expected {self._truth.shape}"
            )
        if not np.isfinite(estimate).all():
            raise InputError(f"the estimate of {self._scene.name} holds {int((~np.isfinite(estimate)).sum())} values that are not finite")
        relative = np.clip(estimate / self._white, 0, 1).astype(np.float32)
        relative = np.where(self._areas[""][..., None], relative, self._truth)
        mu, pu = compress(relative), pu21(relative * np.float32(self._nits))
        gain = self._mu_gain(relative)
        similar_mu = self._ssim_mu.map(mu)
        similar_pu = self._ssim_pu.map(pu21(relative @ self._luminance * np.float32(self._nits)))
        found: dict[str, float | None] = {}
        for name, area in self._areas.items():
            where = None if area.all() else area
            found[f"psnr_mu{name}"] = psnr(mu, self._mu, where)
            found[f"psnr_l{name}"] = psnr(relative, self._truth, where)
            found[f"ssim_mu{name}"] = SSIM.mean(similar_mu, where)
            found[f"pu21_psnr{name}"] = psnr(pu, self._pu, where, PU21_PEAK)
            found[f"pu21_ssim{name}"] = SSIM.mean(similar_pu, where)
            found[f"gain_psnr{name}"] = psnr(gain, self._gain, where)
        found["grid_db"] = grid_excess(mu, self._mu, self._areas[""])
        masks = {name.removeprefix("/"): area for name, area in self._areas.items() if name}
        if not self._areas[""].all():
            masks[""] = self._areas[""]
        for metric in self._extra:
            found |= metric(relative, self._truth, masks, self._nits)
        return found

    def unscaled(self, estimate: F32) -> dict[str, float | None]:
        """PSNR-mu and PSNR-l of an estimate before a factor was fitted to it, under names of their own."""
        relative = np.clip(estimate / self._white, 0, 1).astype(np.float32)
        known = None if self._areas[""].all() else self._areas[""]
        return {
            "psnr_mu_unscaled": psnr(compress(relative), self._mu, known),
            "psnr_l_unscaled": psnr(relative, self._truth, known),
        }

    def _mu_gain(self, relative: F32) -> F32:
        return mu_gain(relative, self._reference.astype(np.float32) / np.float32(np.iinfo(self._reference.dtype).max))

    @property
    def settings(self) -> dict[str, str]:
        """Metric, or group of them, to the settings that its numbers depend on."""
        domain = "relative to the short frame's white, cut to 0..1"
        return {
            "psnr_mu": f"mu {MU:g}, {domain}, peak 1, RGB, mean square error over the picture",
            "psnr_l": f"linear, {domain}, peak 1, RGB",
            "ssim_mu": f"mu {MU:g}, {domain}, 11x11 Gaussian 1.5 px, K 0.01 0.03, range 1, mean over RGB, edge of 5 px left out",
            "pu21_psnr": f"PU21 banding_glare, 1.0 = {WHITE_NITS:g} cd/m2, cut to the short frame's white and 10000 cd/m2, peak 256, RGB",
            "pu21_ssim": f"PU21 banding_glare of luminance, 1.0 = {WHITE_NITS:g} cd/m2, range 256, window as ssim_mu",
            "gain_psnr": "the paper's gain (mu 100, offset 1/64) over the encoded reference, short frame's white = 1, peak 1, RGB",
            "grid_db": f"steps of the error between 4-pixel cells over those within, where the compressed truth is flat to {GRID_FLAT:g}",
            **{m.name: m.settings for m in self._extra},
        }


def fitted_scale(estimate: F32, scene: Scene) -> float:
    """The one factor that a method which had to guess the response may be forgiven: median of truth / estimate.

    Over pixels that the reference measured well (truth 0.02 to 0.8 in every channel) and whose truth is known; 1.0 where there are fewer
    than a hundred. Ratios of exposures fix radiance only up to such a factor (Grossberg and Nayar 2003).
    """
    assert scene.truth is not None
    good = (scene.truth > 0.02).all(axis=-1) & (scene.truth < 0.8).all(axis=-1)
    if scene.known is not None:
        good &= scene.known
    good &= (estimate > 1e-6).all(axis=-1)
    return float(np.median(scene.truth[good] / estimate[good])) if good.sum() >= 100 else 1.0
