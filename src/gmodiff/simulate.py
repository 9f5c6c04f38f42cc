"""A camera made of numbers: scene radiance in, a bracket of photos out, with the truth known.

The order is that of light: scene (shake, moving objects, waves) -> vignetting -> lens blur -> exposure -> shot and read noise
-> clipping per channel -> demosaicing blur -> noise reduction -> black point -> colour matrix -> whitening of highlights
-> camera response -> quantisation -> sharpening -> JPEG.

Radiance 1.0 is where the reference frame's encoding ends (`HDRImage.radiance` has the same convention).
The truth of a simulated bracket is the reference's radiance *behind the lens*, vignetting and lens blur included: what a perfect
merge of perfect frames gives.

The same seed gives the same codes on every machine. Random numbers are NumPy's PCG64, one stream per purpose and frame; pixels
pass only through operations that IEEE 754 rounds correctly (+ - * / sqrt, floor, rint, table look-up) in a fixed order, never
through a library's resampling, a sum over an axis or a transcendental function (curves use those in double precision, before
they become float32 tables). Only the JPEG step depends on a codec: libjpeg-turbo in OpenCV, whose integer transform is the
same on every processor but may change between versions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.image import Bracket, Frame
from gmodiff.moving_scene import Cutout, Motion, generator, moving_scene
from gmodiff.radiometry import F32, CameraResponse, NoiseModel
from gmodiff.tiling import for_each_strip

# ---- camera -------------------------------------------------------------------------------------------------------------


def s_curve(contrast: tuple[float, float, float] = (0.5, 0.5, 0.5), gamma: float = 2.2) -> CameraResponse:
    """A camera-like response: encoded ** gamma bent into an S per channel, contrast 0 (plain gamma) to 1 (a hard S).

    The S is the smoothstep blended in by contrast before the exponent, so mid-grey stays near its place while shadows fall
    and highlights roll off, as in the curves measured from real cameras.
    """
    if not all(0 <= c <= 1 for c in contrast):
        raise InputError(f"contrast {contrast} must lie in 0..1")
    grid = np.linspace(0.0, 1.0, 4097)
    forward = [grid + c * (grid * grid * (3 - 2 * grid) - grid) for c in contrast]
    linear = np.stack([np.interp(grid, bent, grid) ** gamma for bent in forward], axis=1)
    return CameraResponse.from_samples(grid, linear, f"s-curve {contrast[0]:g}/{contrast[1]:g}/{contrast[2]:g} gamma {gamma:g}")


@dataclass(frozen=True)
class Camera:
    """What turns radiance into a photo.

    response: from linear to encoded light.   iso: gain; 100 is the base.
    full_well: electrons at linear 1.0 and ISO 100.   read_electrons: read noise, standard deviation in electrons.
    lens_px, demosaic_px: standard deviation of the blur before and after the sensor (red and blue; green half the variance).
    vignetting: share of light lost in the corners, 0..1.   white_level: linear value at which the sensor is full, 1.0 = where
    the encoding ends.   saturation: of the colour matrix behind the sensor, 1 (none) to 3; the sensor sees colours as much nearer to grey,
    and clips them there, so that what clips changes hue.   whitening: how much of its colour a pixel has lost where its brightest channel
    is at white, 0..1, as cameras' renderings do; from WHITENING_FROM on.   denoising: noise standard deviations at which in-camera noise
    reduction has taken half of a detail, 0 (none) to 8.   black: linear value that the camera calls black, -0.02 (light scattered in the
    lens, which lifts everything) to 0.02 (crushed).   sharpening: share of the encoded detail finer than about a pixel that is added,
    0 (none) to 2.   bits: 8 or 16.   jpeg_quality: 1..100, or None for no JPEG; chroma is stored 4:2:0.
    """

    response: CameraResponse = field(default_factory=lambda: CameraResponse.named("srgb"))
    iso: float = 100.0
    full_well: float = 30000.0
    read_electrons: float = 4.0
    lens_px: float = 0.0
    demosaic_px: float = 0.5
    vignetting: float = 0.0
    white_level: float = 1.0
    saturation: float = 1.0
    whitening: float = 0.0
    denoising: float = 0.0
    black: float = 0.0
    sharpening: float = 0.0
    bits: int = 8
    jpeg_quality: int | None = 95

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise InputError(f"camera has {self.bits} bits, expected 8 or 16")
        if self.jpeg_quality is not None and (self.bits != 8 or not 1 <= self.jpeg_quality <= 100):
            raise InputError(f"JPEG quality {self.jpeg_quality} with {self.bits} bits: expected 1..100 and 8 bits, or None")
        if not 0 <= self.vignetting < 1:
            raise InputError(f"vignetting {self.vignetting} must lie in 0..1")
        if not 1 <= self.saturation <= 3 or not 0 <= self.whitening <= 1:
            raise InputError(f"saturation {self.saturation} must lie in 1..3, whitening {self.whitening} in 0..1")
        if not 0 <= self.denoising <= 8 or abs(self.black) > 0.02 or not 0 <= self.sharpening <= 2:
            raise InputError(
                f"denoising {self.denoising} must lie in 0..8, black {self.black} in -0.02..0.02, sharpening {self.sharpening} in 0..2"
            )
        if min(self.iso, self.full_well, self.white_level) <= 0 or min(self.read_electrons, self.lens_px, self.demosaic_px) < 0:
            raise InputError("camera ISO, full well and white level must be positive; read noise and blurs must not be negative")

    @property
    def noise(self) -> NoiseModel:
        """The noise this camera adds: variance x * g / full_well + (read * g / full_well)**2, gain g = ISO / 100.

        The encoded term is the quantisation alone (uniform over one code), JPEG damage not included.
        """
        per_electron = self.iso / 100.0 / self.full_well
        return NoiseModel(per_electron, self.read_electrons * per_electron, 1.0 / (2**self.bits - 1) / sqrt(12.0))

    def through_lens(self, radiance: F32) -> F32:
        """(H, W, 3) radiance of the scene to radiance on the sensor: vignetting, then lens blur."""
        if self.vignetting > 0:
            radiance = radiance * _vignette(radiance.shape[0], radiance.shape[1], self.vignetting)[..., None]
        return blur(radiance, self.lens_px)

    def expose(self, on_sensor: F32, relative_exposure: float, seed: int | Sequence[int], *, noiseless: bool = False) -> NDArray[Any]:
        """(H, W, 3) radiance on the sensor to the photo, uint8 or uint16; relative_exposure 1 puts radiance 1.0 at white.

        Noise is Gaussian with the variance of `noise`; the Poisson shape of fewer than about ten electrons is not kept.
        noiseless: what the mean of many such photos would tend to, noise reduction and all.
        """
        noise = self.noise
        linear = on_sensor * np.float32(relative_exposure)
        if self.saturation > 1:
            linear = _spread(linear, 1 / self.saturation)
        if not noiseless:
            sigma = np.sqrt(np.float32(noise.read**2) + np.float32(noise.shot) * linear)
            linear += sigma * generator(seed).standard_normal(linear.shape, dtype=np.float32)
        np.clip(linear, 0.0, min(self.white_level, 1.0), out=linear)
        if self.demosaic_px > 0:
            linear = np.stack([blur(linear[..., c], self.demosaic_px * s) for c, s in enumerate((1.0, sqrt(0.5), 1.0))], axis=-1)
        if self.denoising > 0:
            linear = self._denoised(linear)
        if self.black != 0:
            linear = np.clip((linear - np.float32(self.black)) * np.float32(1 / (1 - self.black)), 0, 1)
        if self.saturation > 1:
            linear = np.clip(_spread(linear, self.saturation), 0, 1)
        if self.whitening > 0:
            brightest = np.maximum(np.maximum(linear[..., 0], linear[..., 1]), linear[..., 2])[..., None]
            near = np.maximum((brightest - np.float32(WHITENING_FROM)) * np.float32(1 / (1 - WHITENING_FROM)), 0)
            linear = linear + np.float32(self.whitening) * near * near * (brightest - linear)
        codes = encode_codes(linear, self.response, self.bits)
        if self.sharpening > 0:
            codes = _sharpened(codes, self.sharpening)
        return codes if self.jpeg_quality is None else _through_jpeg(codes, self.jpeg_quality)

    def _denoised(self, linear: F32) -> F32:
        """Detail finer than about a pixel, shrunk the more the smaller it is beside the noise (coring)."""
        smooth = blur(linear, DENOISING_PX)
        detail = linear - smooth
        noise = self.noise
        expected = np.float32(self.denoising**2) * (np.float32(noise.read**2) + np.float32(noise.shot) * smooth)
        return np.asarray(smooth + detail * (detail * detail / (detail * detail + expected + np.float32(1e-12))), np.float32)


DENOISING_PX, SHARPENING_PX = 1.2, 0.9
"""Standard deviation of the blur that tells detail from what it lies on."""

WHITENING_FROM = 0.3
"""Linear value of a pixel's brightest channel from which a camera's rendering begins to whiten it."""

NOISE_STREAM = 5
"""Purpose of a seed's stream for sensor noise; 1 to 4 are those of `moving_scene`."""


def render_bracket(
    radiance: Sequence[F32] | Callable[[int], F32],
    exposures: Sequence[float],
    camera: Camera,
    *,
    seed: int,
    reference: int | None = None,
    names: Sequence[str] | None = None,
    noiseless: bool = False,
) -> Bracket:
    """Photos of a scene, shortest exposure first.

    radiance: frame index to (H, W, 3) float32 scene radiance, 1.0 = white of the reference frame; a sequence or a function.
    exposures: relative exposure of each frame, rising; only ratios to the reference's matter. reference: the middle frame if None.
    The bracket carries the camera's response, and the noise model that a file of this camera would get. noiseless: see `Camera.expose`.
    """
    index = len(exposures) // 2 if reference is None else reference
    if not 0 <= index < len(exposures) or list(exposures) != sorted(exposures) or exposures[0] <= 0:
        raise InputError(f"exposures {list(exposures)} with reference {index}: expected positive, rising values and one of their indices")
    noise = NoiseModel.of_photo(camera.iso, camera.bits, camera.jpeg_quality is not None)
    frames = []
    for i, exposure in enumerate(exposures):
        scene = radiance(i) if callable(radiance) else radiance[i]
        codes = camera.expose(camera.through_lens(scene), exposure / exposures[index], (seed, NOISE_STREAM, i), noiseless=noiseless)
        frames.append(Frame(codes, float(exposure), names[i] if names else f"frame_{i + 1}", noise=noise))
    return Bracket(tuple(frames), index, camera.response)


@dataclass(frozen=True)
class Simulation:
    """A bracket with its truth: (H, W, 3) radiance behind the lens in the reference's geometry, and (H, W) where things moved.

    scene: (H, W, 3) radiance before the lens, when the reference was taken.
    """

    bracket: Bracket
    truth: F32 = field(repr=False)
    motion_mask: NDArray[np.bool_] = field(repr=False)
    scene: F32 = field(repr=False)


def simulate(
    radiance: F32,
    exposures: Sequence[float],
    camera: Camera,
    motion: Motion,
    *,
    seed: int,
    reference: int | None = None,
    margin: int = 0,
    cutouts: Sequence[Cutout] = (),
) -> Simulation:
    """`moving_scene`, then `render_bracket`, with the truth."""
    index = len(exposures) // 2 if reference is None else reference
    scene = moving_scene(radiance, exposures, motion, seed=seed, reference=index, margin=margin, cutouts=cutouts)
    bracket = render_bracket(scene.frame, exposures, camera, seed=seed, reference=index)
    seen = scene.frame(index)
    return Simulation(bracket, camera.through_lens(seen), scene.motion_mask, seen)


# ---- pixels -------------------------------------------------------------------------------------------------------------


def blur(image: F32, sigma_px: float) -> F32:
    """Image (H, W) or (H, W, C) blurred to a standard deviation of sigma_px, edges repeated: passes of [a, 1 - 2a, a], variance 2a each."""
    passes = ceil(sigma_px * sigma_px / 0.4)
    for _ in range(passes):
        a = np.float32(sigma_px * sigma_px / 2 / passes)
        for axis in (0, 1):
            padded = np.pad(image, [(1, 1) if k == axis else (0, 0) for k in range(image.ndim)], mode="edge")
            before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
            image = image + a * (before - image) + a * (after - image)
    return image


def _spread(linear: F32, factor: float) -> F32:
    """(H, W, 3) colours moved from (or, below 1, towards) a grey of a quarter red, half green and a quarter blue."""
    grey = (np.float32(0.25) * linear[..., 0] + np.float32(0.5) * linear[..., 1] + np.float32(0.25) * linear[..., 2])[..., None]
    return np.asarray(grey + np.float32(factor) * (linear - grey), np.float32)


ENCODE_NODES = 16384
"""Nodes of the forward response over sqrt(linear): dense in the dark, where responses are steep."""


def encode_codes(linear: F32, response: CameraResponse, bits: int) -> NDArray[Any]:
    """(H, W, 3) linear 0..1 to codes, uint8 or uint16: the forward response by table, interpolated, rounded."""
    nodes = np.linspace(0.0, 1.0, ENCODE_NODES) ** 2
    table = response.encode(np.repeat(nodes[:, None], 3, axis=1)) * np.float32(2**bits - 1)
    step = np.diff(table, axis=0, append=table[-1:])
    codes = np.empty(linear.shape, np.uint8 if bits == 8 else np.uint16)

    def work(first: int, end: int) -> None:
        position = np.sqrt(linear[first:end]) * np.float32(ENCODE_NODES - 1)
        node = position.astype(np.int32)
        position -= node
        for c in range(3):
            value = table[:, c].take(node[..., c]) + position[..., c] * step[:, c].take(node[..., c])
            codes[first:end, :, c] = np.rint(value)

    for_each_strip(work, linear.shape[0])
    return codes


def _sharpened(codes: NDArray[Any], amount: float) -> NDArray[Any]:
    """Unsharp masking of (H, W, 3) codes."""
    encoded = codes.astype(np.float32)
    encoded += np.float32(amount) * (encoded - blur(encoded, SHARPENING_PX))
    return np.clip(np.rint(encoded), 0, np.iinfo(codes.dtype).max).astype(codes.dtype)


def _through_jpeg(codes: NDArray[Any], quality: int) -> NDArray[Any]:
    """(H, W, 3) uint8 RGB written as a baseline 4:2:0 JPEG and read back."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, stream = cv2.imencode(".jpg", codes[..., ::-1], settings)
    decoded = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(decoded[..., ::-1])


@lru_cache(maxsize=4)
def _vignette(height: int, width: int, lost: float) -> F32:
    """(H, W) share of light that arrives: the cos^4 law, 1 / (1 + k r^2)^2, with r = 1 in the corner, where `lost` is lost."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    r2 = (x * x + y * y) / (((height - 1) ** 2 + (width - 1) ** 2) / 4)
    falloff = 1 + (1 / sqrt(1 - lost) - 1) * r2
    return np.asarray(1 / (falloff * falloff), np.float32)
