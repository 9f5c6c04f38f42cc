"""Pictures that a training run of seconds can learn from."""

from pathlib import Path

import numpy as np
import OpenImageIO as oiio
from PIL import Image


def write_hdr(path: Path, light: np.ndarray) -> None:
    out = oiio.ImageOutput.create(str(path))
    out.open(str(path), oiio.ImageSpec(light.shape[1], light.shape[0], 3, "float"))
    out.write_image(light.astype(np.float32))
    out.close()


def write_pictures(folder: Path) -> Path:
    """Two small panoramas and a photo."""
    rng = np.random.default_rng(0)
    for n in range(2):
        y, x = np.mgrid[0:128, 0:256] / 16
        light = 0.1 + np.abs(np.sin(x + n) * np.cos(y)) + (rng.random((128, 256)) < 0.02) * 30
        write_hdr(folder / f"scene_{n}.hdr", light[..., None] * (1.0, 0.8, 0.6))
    noise = rng.integers(0, 255, (28, 40, 3), np.uint8)
    Image.fromarray(noise).resize((1280, 896), Image.Resampling.BICUBIC).save(folder / "photo.jpg")
    return folder
