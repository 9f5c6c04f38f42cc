"""What training makes small: differences of the network gain, and of radiance in the mu-law domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from gmodiff.model.regressor import GAIN_LIMIT, mu_gain, radiance_from_mu_gain
from gmodiff.radiometry import CLIPPED_ENCODED, TAPER_ENCODED
from gmodiff.refine import DETAIL_PX, FULL_FROM, THRESHOLD

MU = 5000.0
"""mu of the mu-law domain (Kalantari and Ramamoorthi 2017, equation 5)."""

ERROR_ABSOLUTE, ERROR_RELATIVE = 0.02, 0.05
"""An estimate errs where its luminance is wrong by more than the first (the paper's threshold, of the short frame's white, system of
stage 2) or by more than the second as a share of the truth plus ERROR_FLOOR: the paper's own threshold never marks anything dark."""
ERROR_FLOOR = 0.01
PSNR_WEIGHT = 0.0035
"""Of a decibel, beside L1 terms that are about 0.01 each."""
BEST_DB = 60.0
"""PSNR beyond which nothing is to be gained."""
PAPER_LUMINANCE = (0.299, 0.587, 0.114)


def compress(relative: Tensor) -> Tensor:
    """log(1 + mu h) / log(1 + mu) of radiance relative to the short frame's white, not cut."""
    return torch.log1p(MU * relative.clamp_min(0)) / math.log1p(MU)


def unmeasured(encoded: Tensor) -> Tensor:
    """(B, 1, H, W), 0..1: how near a pixel of the reference (B, 3, H, W) is to clipping, and so how far an estimate is followed there.

    Elsewhere the pipeline holds it to the merge (`provenance.constrain`).
    """
    brightest = encoded.amax(dim=1, keepdim=True)
    return ((brightest - TAPER_ENCODED) / (CLIPPED_ENCODED - TAPER_ENCODED)).clamp(0, 1)


def estimate_loss(gain: Tensor, truth: Tensor, encoded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 on the gain, in the mu-law domain, and on that domain's gradients, and the decibels each crop lacks to BEST_DB; and the parts.

    The last is the metric itself (as a loss: Chen et al. 2021, "HINet", equation 5): a crop that is nearly right counts as much as one
    where something clipped moved.

    gain: (B, 3, H, W) network gain.   truth: (B, 3, H, W) radiance relative to the short frame's white.   encoded: (B, 3, H, W).
    The gain counts above that white too, up to GAIN_LIMIT; the mu-law domain is cut at it, as the metric is.
    """
    wanted = mu_gain(truth, encoded).clamp(max=GAIN_LIMIT)
    by_gain = (gain - wanted).abs().mean()
    found, true = (compress(v.clamp(max=1)) for v in (radiance_from_mu_gain(gain, encoded), truth))
    by_light, parts = _mu_loss(found - true)
    return by_gain + by_light, {"gain": by_gain} | parts


def _mu_loss(apart: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1, a quarter of L1 on gradients, and the decibels each crop lacks to BEST_DB, of a difference (B, 3, H, W) in the mu-law domain."""
    by_mu = apart.abs().mean()
    by_slope = (apart[..., 1:] - apart[..., :-1]).abs().mean() + (apart[..., 1:, :] - apart[..., :-1, :]).abs().mean()
    psnr = _in_decibels((apart**2).mean(dim=(1, 2, 3))).mean()
    return by_mu + 0.25 * by_slope + PSNR_WEIGHT * (BEST_DB - psnr), {"mu": by_mu, "slope": by_slope, "psnr_mu": psnr}


def noise_loss(
    share: Tensor, held: Tensor, merged: Tensor, leeway: Tensor, truth: Tensor, measured: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the shares of the leeway; L1 in the mu-law domain and on its gradients, and the decibels each crop lacks to
    BEST_DB, of what they make of the picture; and the parts.

    The first is what teaches: in its units all noise is alike, wherever it lies and however dark it is there.

    share: (B, 3, H, W), -1..1, see `NoiseReducer`.   held, merged, leeway, truth: (B, 3, H, W) radiance relative to the short frame's
    white.   measured: (B, 1, H, W), 0..1, what each pixel counts: all where the reference measured, nothing where it clips. Between, what
    lies beyond the leeway is drawn to it; `provenance.constrain` leaves it there.
    """
    low, high = merged - leeway, merged + leeway
    wanted = ((truth.clamp(low, high) - held) / leeway).clamp(-1, 1)
    by_share = ((share - wanted) ** 2 * measured).mean()
    apart = (compress((held + leeway * share).clamp(low, high).clamp(max=1)) - compress(truth.clamp(max=1))) * measured
    by_light, parts = _mu_loss(apart)
    return by_share + by_light, {"share": by_share, "untouched": (wanted**2 * measured).mean()} | parts


def psnr_mu(found: Tensor, truth: Tensor, where: Tensor | None = None) -> float:
    """PSNR in the mu-law domain of two pictures (B, 3, H, W) relative to the short frame's white; NaN where there is nothing to judge.

    where: (B, 1, H, W) bool.
    """
    apart = (compress(found.clamp(max=1)) - compress(truth.clamp(max=1))) ** 2
    if where is not None:
        apart = apart[where.expand_as(apart)]
    return float(_in_decibels(apart.mean())) if apart.numel() else float("nan")


def decibels(found: Tensor, wanted: Tensor) -> Tensor:
    """(B,) PSNR of pictures (B, C, H, W), peak 1, up to BEST_DB."""
    return _in_decibels(((found - wanted) ** 2).mean(dim=(1, 2, 3)))


def _in_decibels(mean_square: Tensor) -> Tensor:
    """Of a mean square error, peak 1, up to BEST_DB, where the slope ends too."""
    return -10 * torch.log10(mean_square + 10 ** (-BEST_DB / 10))


def picture_loss(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """L1 on a picture and on its Laplacian pyramid, and the decibels it lacks to BEST_DB; and the mean PSNR."""
    psnr = decibels(found, wanted).mean()
    return (found - wanted).abs().mean() + pyramid_loss(found, wanted) + PSNR_WEIGHT * (BEST_DB - psnr), psnr


PYRAMID_LEVELS = 3
PYRAMID_WEIGHT = 2.0
"""Of `pyramid_loss` beside the two L1 terms of `refined_loss`, in whose stead detail would be averaged away. Not tuned."""


def pyramid_loss(found: Tensor, wanted: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean L1 between the bands of two Laplacian pyramids (Burt and Adelson 1983): texture that is missing costs at its own scale.

    found, wanted: (B, C, H, W), H and W multiples of 8.   weight: (B, 1, H, W) of each pixel.
    """
    apart = found - wanted  # the pyramid is linear
    total = apart.new_zeros(())
    for _ in range(PYRAMID_LEVELS):
        coarse = functional.avg_pool2d(apart, 2)
        band = (apart - functional.interpolate(coarse, scale_factor=2.0, mode="bilinear")).abs()
        total = total + (band if weight is None else band * weight).mean()
        apart = coarse
        weight = None if weight is None else functional.avg_pool2d(weight, 2)
    return total / PYRAMID_LEVELS


LATENT_WEIGHT = 0.002


def latent_loss(latent: Tensor) -> Tensor:
    """What holds each channel of a latent (B, C, h, w) near mean 0 and deviation 1, where diffusion expects it."""
    mean, deviation = latent.mean(dim=(0, 2, 3)), latent.std(dim=(0, 2, 3))
    return LATENT_WEIGHT * (mean**2 + (deviation - 1) ** 2).mean()


LEAST_WEIGHT = 0.2
"""What a pixel counts for where the mask sees no doubt: there the refined picture is not used, but the network has to know it."""


LEAST_USED = 0.05
"""Of crops' pixels: fewer that are used do not count for more each."""


def refined_loss(gain: Tensor, truth: Tensor, encoded: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 on the gain, in the mu-law domain, and between Laplacian pyramids of it (paper section 3.4; the pyramid stands for its DISTS,
    which needs weights of somebody else's).

    gain: (B, 3, H, W), not cut.   truth, encoded: see `estimate_loss`.   weight: (B, 1, H, W) of each pixel.
    """
    by_gain = (weight * (gain - mu_gain(truth, encoded).clamp(max=GAIN_LIMIT)).abs()).mean()
    found = compress(radiance_from_mu_gain(gain.clamp(0, GAIN_LIMIT), encoded).clamp(max=1))
    wanted = compress(truth.clamp(max=1))
    by_mu = (weight * (found - wanted).abs()).mean()
    by_pyramid = pyramid_loss(found, wanted, weight)
    parts = {"gain": by_gain, "mu": by_mu, "pyramid": by_pyramid}
    return by_gain + by_mu + PYRAMID_WEIGHT * by_pyramid, parts


def as_used(gain: Tensor, refined: Tensor, doubt: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
    """What `refine` makes of an answer, nothing of it where the reference measured, and the (B, 1, H, W) share of each pixel it takes.

    gain, refined: (B, 3, H, W) network gain of the estimate and of the answer.   doubt: (B, 1, H, W), 0..1.   encoded: (B, 3, H, W).
    """
    share = ((doubt - THRESHOLD) / FULL_FROM).clamp(0, 1) * unmeasured(encoded)
    change = (refined - gain).mean(dim=1, keepdim=True)
    return gain + share * (change - _blurred(change, DETAIL_PX)), share


def _blurred(picture: Tensor, deviation: float) -> Tensor:
    """(B, 1, H, W) under a Gaussian, edges mirrored."""
    reach = min(round(4 * deviation), *(s - 1 for s in picture.shape[-2:]))
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=picture.device, dtype=picture.dtype) / deviation) ** 2)
    bell = (bell / bell.sum())[None, None]
    wide = functional.pad(picture, (reach,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(wide, bell[..., None, :]), bell[..., None])


def errs(gain: Tensor, truth: Tensor, encoded: Tensor) -> Tensor:
    """(B, 1, H, W), 1.0 where the luminance of the estimate is wrong by more than the thresholds allow, else 0."""
    weights = torch.tensor(PAPER_LUMINANCE, dtype=gain.dtype, device=gain.device)[:, None, None]
    found, true = ((v.clamp(max=1) * weights).sum(dim=1, keepdim=True) for v in (radiance_from_mu_gain(gain, encoded), truth))
    apart = (found - true).abs()
    return ((apart >= ERROR_ABSOLUTE) | (apart >= ERROR_RELATIVE * (true + ERROR_FLOOR))).to(gain.dtype)


def full_size(logits: Tensor, like: Tensor) -> Tensor:
    """(B, 1, h, w) logits of the mask at the size of another picture, bilinear."""
    return functional.interpolate(logits, like.shape[-2:], mode="bilinear")


def mask_loss(logits: Tensor, wrong: Tensor) -> Tensor:
    """Binary cross entropy (paper section 3.3)."""
    return functional.binary_cross_entropy_with_logits(logits, wrong)


def average_precision(scores: Tensor, wrong: Tensor) -> float:
    """Area under precision over recall, pixels ranked by score; NaN where nothing is wrong."""
    order = scores.flatten().argsort(descending=True, stable=True)
    hits = wrong.flatten()[order].cpu().double()  # not every device has double precision
    if not hits.any():
        return float("nan")
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, dtype=torch.float64)
    return float((precision * hits).sum() / hits.sum())
