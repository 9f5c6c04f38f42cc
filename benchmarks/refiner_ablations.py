"""What each part of the refiner is good for: rows of the same kind as `gmodiff evaluate`, side by side in one run.

    python benchmarks/refiner_ablations.py --card compact.json -o results/ benchmarks/sets/synthetic-val.toml ...
    options: --scene PATTERN (repeatable), --metric jod (or none), --variants regressor,one_step,..., --resume, --force
    then: gmodiff report results/*.jsonl

The card's refiner (NAME-refiner.json) lies beside it. Variants:
    regressor        the estimate, not refined
    one_step         the refiner as users run it
    unconstrained    one step, without the reference's measured interval
    unguided         the denoiser gets no context
    no_skips         the decoder gets no features of the estimate
    from_noise       one step that starts from noise instead of the estimate
    fifty_steps      50 DDIM steps from noise, no classifier-free guidance
Everything runs on torch in float32. Noise is drawn per square from its place, so that runs repeat. A prior on HDR latents instead of gain
maps has not been trained, and has no row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gmodiff.align import align
from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.scene import Scene
from gmodiff.estimate import Estimator
from gmodiff.evaluate.methods import METHODS, Method
from gmodiff.evaluate.run import evaluate
from gmodiff.merge import merge
from gmodiff.model.diffusion import ONE_STEP_AT
from gmodiff.model.refiner import Refiner, read_refiner
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.radiometry import F32
from gmodiff.refine import CONTEXT, Refinement
from gmodiff.runtime import load_card, load_model, load_refiner

VARIANTS: dict[str, dict[str, Any]] = {
    "one_step": {},
    "unconstrained": {},
    "unguided": {"guided": False},
    "no_skips": {"skipped": False},
    "from_noise": {"noise": True},
    "fifty_steps": {"noise": True, "steps": 50},
}


class Variant:
    """A refiner with parts taken away, as `runtime.Model`."""

    runtime = "torch"

    def __init__(self, card: Any, refiner: Refiner, less: Mapping[str, Any]) -> None:
        self.card, self.refiner, self.less = card, refiner, dict(less)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, F32]:
        """See `model.on_arrays.RefinerOnArrays`."""
        given = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
        less = dict(self.less)
        if less.pop("noise", False):
            height, width = given["gain"].shape[-2:]
            dice = torch.Generator().manual_seed(ONE_STEP_AT)
            less["noise"] = torch.randn((1, self.refiner.autoencoder.shape.latent, height // 8, width // 8), generator=dice)
        with torch.no_grad():
            refined = self.refiner.refine(given["gain"], given["short"], given["degradation"], [given[k] for k in CONTEXT], **less)
        return {"refined": refined.numpy()}


def without_constraint(estimator: Estimator, scene: Scene) -> F32:
    """The estimate as it comes."""
    alignments = align(scene.bracket)
    return estimator(scene.bracket, alignments, merge(scene.bracket, alignments).radiance).radiance


def constrained(estimator: Estimator, scene: Scene) -> F32:
    """As `gmodiff merge`."""
    return reconstruct_radiance(scene.bracket, estimator).radiance


def methods(card: str, chosen: list[str]) -> dict[str, Method]:
    """Variant by name."""
    model = load_model(card, runtime="torch", device="cpu")
    own = load_refiner(card, runtime="torch", device="cpu").card
    path = Path(card)
    refiner, _ = read_refiner(path.with_name(f"{path.stem}-refiner.safetensors"))
    state = f"{load_card(card).fingerprint}+{own.fingerprint}"
    found = {}
    for name in chosen:
        refinement = None if name == "regressor" else Refinement(Variant(own, refiner, VARIANTS[name]))
        how: Callable[..., F32] = without_constraint if name == "unconstrained" else constrained
        run = partial(how, Estimator(model, refinement=refinement))
        found[name] = Method(name, f"{name} of {path.name}", run, state=lambda scene: state)
    return found


def main() -> None:
    """Run the chosen variants on the sets."""
    names = ["regressor", *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--card", required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--variants", default=",".join(names))
    parser.add_argument("--scene", action="append", default=[])
    parser.add_argument("--metric", action="append")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    chosen = arguments.variants.split(",")
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        parser.error(f"variant {unknown[0]!r}: expected {', '.join(names)}")
    METHODS.update(methods(arguments.card, chosen))
    for path in arguments.sets:
        outcome = evaluate(
            open_dataset(path, arguments.data),
            arguments.out,
            methods=chosen,
            metrics=None if arguments.metric is None else [m for m in arguments.metric if m != "none"],
            scenes=arguments.scene,
            resume=arguments.resume,
            force=arguments.force,
            progress=lambda done, total, row: print(done, total, row and (row["scene"], row["method"], row["metrics"].get("psnr_mu"))),
        )
        print(outcome.rows)


if __name__ == "__main__":
    main()
