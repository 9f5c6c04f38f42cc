"""Small scenes with known radiance, and the photos a known camera would take of them."""

from __future__ import annotations

import numpy as np

from gmodiff.image import Bracket, Frame
from gmodiff.radiometry import CameraResponse, NoiseModel


def scene(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """(H, W, 3) radiance, 0.002 to about 12: smooth colours, texture, and a bright disc."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    base = 0.02 * 2.0 ** (5 * x / width)
    texture = 1 + 0.25 * np.sin(x / 3.1 + 2 * np.sin(y / 7.3)) * np.cos(y / 2.7)
    image = (base * texture)[..., None] * np.array([1.0, 0.9, 0.75], np.float32)
    disc = np.hypot(x - 0.7 * width, y - 0.35 * height) < 0.16 * height
    image[disc] = np.array([3.2, 2.9, 2.3]) * (1 + 0.1 * np.sin(x[disc] / 2))[:, None]
    spots = rng.random((height, width)) < 0.002
    image[spots] *= 0.2
    return image.astype(np.float32)


def photos(
    radiance: np.ndarray | list[np.ndarray],
    stops: tuple[float, ...] = (-2.0, 0.0, 2.0),
    reference: int | None = None,
    response: CameraResponse | None = None,
    noise: float = 0.0,
    dtype: type = np.uint8,
    seed: int = 0,
) -> Bracket:
    """A bracket of one radiance, or of one radiance per frame; the reference's white is radiance 1. noise: linear, at white."""
    rng = np.random.default_rng(seed)
    response = response or CameraResponse.named("srgb")
    scenes = radiance if isinstance(radiance, list) else [radiance] * len(stops)
    frames = []
    top = np.iinfo(dtype).max
    for i, (light, stop) in enumerate(zip(scenes, stops, strict=True)):
        linear = light * 2.0**stop
        linear = linear + noise * np.sqrt(np.maximum(linear, 0.01)) * rng.standard_normal(linear.shape)
        encoded = np.rint(response.encode(linear.astype(np.float32)).astype(np.float64) * top).astype(dtype)
        quiet = NoiseModel(shot=max(noise**2, 1e-7), read=max(noise * 0.1, 1e-5), encoded=0.3 / top)
        frames.append(Frame(encoded, 2.0**stop, f"frame{i}", noise=quiet))
    return Bracket(tuple(frames), len(frames) // 2 if reference is None else reference, response)


def psnr_mu(estimate: np.ndarray, truth: np.ndarray, peak: float) -> float:
    """PSNR in dB of log(1 + 5000 h) / log(5001), h = radiance / peak clipped to 0..1."""

    def compress(h: np.ndarray) -> np.ndarray:
        return np.log1p(5000 * np.clip(h / peak, 0, 1)) / np.log(5001)

    return float(-10 * np.log10(np.mean((compress(estimate) - compress(truth)) ** 2)))
