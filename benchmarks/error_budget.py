"""Where the error of the merge, of the network and of the truth held as the network's answer is lies, in parts of the picture.

    python benchmarks/error_budget.py [--model CARD] [--scene PATTERN] benchmarks/sets/synthetic-val.toml ...

Squared error in the mu-law domain (that of PSNR-mu), as a share of the merge's over the scene, mean over scenes. Parts: what the
reference measured (no channel near clipping: there an estimate is held to the merge within half a deviation of noise) and did not, each
where something moved and where nothing did. And PSNR-mu of hybrids: the held truth in one part, the network's answer in the other,
which says how much a better network could bring at most, and where. Nothing is scaled: the methods are told the response.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.scene import Scene
from gmodiff.evaluate.methods import METHODS
from gmodiff.evaluate.metrics import compress
from gmodiff.model_card import Model
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.radiometry import F32, clipping_nearness
from gmodiff.runtime import load_model

MERGE, NETWORK, TRUTH = "merge", "network", "held truth"
HYBRIDS = ("held truth where measured, else network", "held truth where not measured, else network")


def errors(scene: Scene, model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """Squared error (H, W), mean over channels, of each picture."""
    assert scene.truth is not None
    white = np.float32(scene.short_white)
    truth = compress(scene.truth / white)

    def error(radiance: F32) -> np.ndarray:
        return np.square(compress(radiance / white) - truth).mean(axis=-1, dtype=np.float64)

    blind = scene.blind()
    yield MERGE, error(METHODS["classical"].run(blind))
    yield NETWORK, error(reconstruct_radiance(blind.bracket, model).radiance)
    yield TRUTH, error(METHODS["held-truth"].run(scene))


def parts(scene: Scene) -> dict[str, np.ndarray]:
    """(H, W) bool each, every pixel whose truth is known in one."""
    reference = scene.bracket.frames[scene.bracket.reference].encoded
    measured = clipping_nearness(reference.max(axis=-1) / np.iinfo(reference.dtype).max) == 0
    known = np.ones(measured.shape, bool) if scene.known is None else scene.known
    motion = scene.masks.get("motion")
    moved = np.zeros(measured.shape, bool) if motion is None else motion
    return {
        "measured, still": known & measured & ~moved,
        "measured, moved": known & measured & moved,
        "not measured, still": known & ~measured & ~moved,
        "not measured, moved": known & ~measured & moved,
    }


def decibels(mean_square: float) -> float:
    """PSNR of peak 1."""
    return -10 * np.log10(max(mean_square, 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--scene", default="*")
    given = parser.parse_args()
    model = load_model(given.model)
    for path in given.sets:
        shares: dict[str, list[list[float]]] = {}
        psnr: dict[str, list[float]] = {}
        scenes = [s for s in open_dataset(path, given.data).scenes if fnmatchcase(s.name, given.scene)]
        for source in scenes:
            scene = source.load()
            found = dict(errors(scene, model))
            in_parts = parts(scene)
            known = np.logical_or.reduce(list(in_parts.values()))
            whole, count = float(found[MERGE][known].sum()), int(known.sum())
            measured = in_parts["measured, still"] | in_parts["measured, moved"]
            for name, where in in_parts.items():
                shares.setdefault(name, []).append([where.sum() / count, *(float(e[where].sum()) / whole for e in found.values())])
            pictures = found | {
                HYBRIDS[0]: np.where(measured, found[TRUTH], found[NETWORK]),
                HYBRIDS[1]: np.where(measured, found[NETWORK], found[TRUTH]),
            }
            for name, error in pictures.items():
                psnr.setdefault(name, []).append(decibels(float(error[known].mean())))
        print(f"\n{path.stem}, {len(scenes)} scenes, model {model.card.name}, {model.runtime}\n")
        print("| picture | PSNR-mu, mean |\n|---|---|")
        for name, values in psnr.items():
            print(f"| {name} | {np.mean(values):.2f} |")
        print("\n| part | pixels | error of the merge | of the network | of the held truth |\n|---|---|---|---|---|")
        for name, rows in shares.items():
            print(f"| {name} | " + " | ".join(f"{100 * v:.0f} %" for v in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
