"""Make src/gmodiff/response_prior.json: what real cameras' inverse responses look like, from half of the measured cameras.

    python benchmarks/make_response_prior.py [--curves ../shared/data/responses/curves.json] [--check]

The curves were fitted to real JPEG brackets, each channel anchored at the encoded value 0.975, the noisiest place there is. Re-anchored
at mid-grey the three channels of a camera coincide (local exponents agree within a few per cent from 0.06 to 0.8), as they must where one
tone curve is applied after white balance. So a bracket gives one sample, the median of its channels, and each camera has the same weight
however many brackets it took. `--check` fails where the stored file is not what this script makes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CURVES = ROOT.parent / "shared" / "data" / "responses" / "curves.json"
TARGET = ROOT / "src" / "gmodiff" / "response_prior.json"

CAMERAS = ("SM-A528B", "XQ-CT72", "Canon EOS 30D", "E995")
HELD_OUT = ("PENTAX K100D", "Canon EOS REBEL T2i", "Canon EOS 5D Mark II", "Canon PowerShot S45")
LEFT_OUT = {"mercury_reflect": "its red channel is 3 stops away from the others at encoded 0.1: the fit failed on moving reflections"}
COMPONENTS = 3
ANCHOR = 0.5

NODES = np.concatenate([[0.002, 0.004, 0.007], np.arange(1, 101) * 0.01])

SMOOTHING = 0.05
"""Standard deviation, in encoded values, of the smoothing of the exponents: the measured curves are broken lines over a dozen knots."""


GRID = np.arange(1, 2001) / 2000


def extended(encoded: np.ndarray, log2_linear: np.ndarray) -> np.ndarray:
    """The curve on GRID, 0 at ANCHOR, continued with the exponent (d log2 linear / d log2 encoded) it has at either end."""
    position, grid = np.log2(encoded), np.log2(GRID)
    low = (log2_linear[3] - log2_linear[0]) / (position[3] - position[0])
    high = (log2_linear[-1] - log2_linear[-5]) / (position[-1] - position[-5])
    below, above = np.minimum(grid - position[0], 0), np.maximum(grid - position[-1], 0)
    curve = np.interp(grid, position, log2_linear) + np.clip(low, 0.5, 2.0) * below + np.clip(high, 1.0, 6.0) * above
    return np.asarray(curve - np.interp(ANCHOR, GRID, curve))


def smoothed(curve: np.ndarray) -> np.ndarray:
    """A curve on GRID with its exponents smoothed, on NODES, 0 at ANCHOR."""
    exponent = np.diff(curve) / np.diff(np.log2(GRID))
    reach = int(4 * SMOOTHING * len(GRID))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / len(GRID) / SMOOTHING) ** 2)
    exponent = np.convolve(np.pad(exponent, reach, mode="edge"), kernel / kernel.sum(), mode="valid")
    smooth = np.concatenate([[0.0], np.cumsum(exponent * np.diff(np.log2(GRID)))])
    return np.asarray(np.interp(NODES, GRID, smooth) - np.interp(ANCHOR, GRID, smooth))


def sample_of(entry: dict[str, Any], encoded: np.ndarray) -> np.ndarray:
    """One bracket's curve on NODES: the median of its channels, each 0 at ANCHOR."""
    return smoothed(np.median([extended(encoded, np.asarray(entry["log2_linear"][channel])) for channel in "rgb"], axis=0))


def make_prior(curves: dict[str, Any]) -> dict[str, Any]:
    """The content of response_prior.json."""
    encoded = np.asarray(curves["encoded"])
    entries = [c for c in curves["curves"] if c["camera"] in CAMERAS and c["bracket"] not in LEFT_OUT]
    samples = np.array([sample_of(entry, encoded) for entry in entries])
    weights = np.array([1.0 / sum(e["camera"] == entry["camera"] for e in entries) for entry in entries])
    weights /= weights.sum()
    mean = weights @ samples
    _, singular, directions = np.linalg.svd((samples - mean) * np.sqrt(weights)[:, None], full_matrices=False)
    return {
        "what": "Mean and principal components of measured inverse camera responses: log2 of linear light, 0 at encoded "
        f"{ANCHOR}, on the grid 'encoded'. A component is scaled to one standard deviation. Made by benchmarks/make_response_prior.py.",
        "cameras": list(CAMERAS),
        "held_out_cameras": list(HELD_OUT),
        "brackets": [e["bracket"] for e in entries],
        "left_out": LEFT_OUT,
        "anchor": ANCHOR,
        "encoded": [round(float(v), 4) for v in NODES],
        "mean": [round(float(v), 5) for v in mean],
        "components": [[round(float(v), 5) for v in s * d] for s, d in zip(singular[:COMPONENTS], directions[:COMPONENTS], strict=True)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--check", action="store_true", help="compare with the stored file instead of writing it")
    options = parser.parse_args()
    prior = make_prior(json.loads(options.curves.read_text()))
    text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in prior.items()) + "\n}\n"
    if options.check:
        same = TARGET.read_text() == text
        print(f"{TARGET.name}: {'as made' if same else 'differs from what this script makes'}")
        return 0 if same else 1
    TARGET.write_text(text)
    print(f"wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
