"""What each part of the refiner is good for: rows of the same kind as `gmodiff evaluate`, side by side in one run.

    python benchmarks/refiner_ablations.py --card compact.json --prior RUN --light RUN -o results/ benchmarks/sets/synthetic-val.toml ...
    options: --scene PATTERN (repeatable), --metric jod (repeatable; none for none), --variants regressor,one_step,..., --resume, --force
    then: python benchmarks/refiner_ablations.py --table results/*.jsonl        # means, in Markdown; --variants: of these
    and:  python benchmarks/refiner_ablations.py --autoencoder RUN benchmarks/sets/synthetic-val.toml

The card's refiner (NAME-refiner.json) lies beside it. Variants:
    regressor        the estimate, not refined
    one_step         the refiner as users run it
    unconstrained    one step, without the reference's measured interval and without `stillness`
    free             the estimate, not refined, without them: what `unconstrained` is to be compared with
    unguided         the denoiser gets no context
    wrong_context    denoiser and gates get the context of another place: each square's, moved by half its width
    no_skips         the decoder gets no features of the estimate
    from_noise       one step that starts from noise instead of the estimate
    fifty_steps      50 DDIM steps from noise by the prior alone (--prior, a run of `train prior`), no classifier-free guidance, no skips
    fifty_light      the same on latents of radiance instead of gain maps (--light, a run of `train prior --latents light`)
Parts are taken away after training, not left out of it. Every answer has the same form, what the latent's change makes of the estimate,
so that the autoencoder's own error costs none of them anything; it is used where the mask doubts, as the refiner's is. Everything runs on
torch in float32, as the refiner does for users; --bf16: encoders and denoisers in bfloat16, in half the time. Alignment, merge and the
regressor's answer are computed once a scene and shared: the seconds of a row are of what follows them, noise reduction included. GFLOP in
the table are of refining one square with its surroundings, as torch counts them (two for a multiplication and an addition). Noise belongs
to its place in the picture, so that squares agree and runs repeat. Beside the masks of every scene there is "doubt": where the regressor's
degradation mask is above the refiner's threshold. --autoencoder: how true gain maps and true radiance of the sets come back through the
autoencoder of a run.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

import gmodiff
from full_model_cost import operations
from gmodiff.align import Alignment
from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.scene import Scene, SceneSource, fingerprint
from gmodiff.errors import GMODiffError, InputError
from gmodiff.estimate import Estimator
from gmodiff.evaluate.methods import METHODS, Method
from gmodiff.evaluate.rows import latest, read_rows
from gmodiff.evaluate.run import evaluate
from gmodiff.image import Bracket
from gmodiff.merge import Merged, merge
from gmodiff.model.autoencoder import LATENT_FOLD
from gmodiff.model.diffusion import ONE_STEP_AT
from gmodiff.model.refiner import Refiner, read_refiner
from gmodiff.model.regressor import GAIN_LIMIT, mu_gain, radiance_from_mu_gain
from gmodiff.pipeline import Reconstruction, aligned, estimated
from gmodiff.radiometry import F32
from gmodiff.refine import CONTEXT, CORE_PX, Refinement, Square
from gmodiff.runtime import load_model, refiner_card, state_of
from gmodiff.train.loop import WEIGHTS
from gmodiff.train.losses import MU, compress

PLAIN = ("regressor", "free")
VARIANTS: dict[str, dict[str, Any]] = {
    "one_step": {},
    "unconstrained": {},
    "unguided": {"guided": False},
    "wrong_context": {"wrong": True},
    "no_skips": {"skipped": False},
    "from_noise": {"noisy": True},
    "fifty_steps": {"noisy": True, "steps": 50, "skipped": False},
    "fifty_light": {"noisy": True, "steps": 50, "skipped": False},
}
FREE = ("free", "unconstrained")


class Variant:
    """A refiner with parts taken away, as `model_card.Model`."""

    runtime = "torch"

    def __init__(self, card: Any, refiner: Refiner, less: Mapping[str, Any], *, bf16: bool = False) -> None:
        self.card, self.refiner, self.less = card, refiner, dict(less)
        self.half = partial(torch.autocast, "cpu", torch.bfloat16) if bf16 else nullcontext
        self.noise: torch.Tensor | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, F32]:
        """See `model.on_arrays.RefinerOnArrays`."""
        given = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in inputs.items()}
        less = {k: v for k, v in self.less.items() if k not in ("noisy", "wrong")}
        context = [given[k].roll(given[k].shape[-1] // 2, dims=-1) if self.less.get("wrong") else given[k] for k in CONTEXT]
        noise = self.noise if self.less.get("noisy") else None
        with torch.no_grad():
            refined = self.refiner.refine(given["gain"], given["short"], given["degradation"], context, noise=noise, half=self.half, **less)
        return {"refined": refined.numpy()}


class Once:
    """A model that remembers what it answered last: all variants of a scene share the estimate."""

    MOST = 8
    """Answers kept; a scene has fewer tiles."""

    def __init__(self, model: Any) -> None:
        self.card, self.runtime, self._model = model.card, model.runtime, model
        self.noise_reducer = getattr(model, "noise_reducer", None)
        self._answers: dict[bytes, dict[str, F32]] = {}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, F32]:
        """See `model_card.Model`."""
        asked = hashlib.blake2b()
        for name, values in inputs.items():
            asked.update(f"{name} {values.shape}".encode())
            asked.update(np.ascontiguousarray(values))
        key = asked.digest()
        if key not in self._answers:
            while len(self._answers) >= self.MOST:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = self._model(inputs)
        return dict(self._answers[key])


class InPlace(Refinement):
    """A refinement whose variant gets the noise that belongs to a square's place."""

    def answer(self, given: Mapping[str, F32], square: Square) -> F32:
        """See `Refinement.answer`."""
        variant = cast(Variant, self.model)
        height, width = (s // LATENT_FOLD for s in square.picture)
        dice = torch.Generator().manual_seed(ONE_STEP_AT)
        whole = torch.randn((1, variant.refiner.autoencoder.shape.latent, height, width), generator=dice)
        rows, columns = (slice(a.start // LATENT_FOLD, a.stop // LATENT_FOLD) for a in square.around)
        variant.noise = whole[..., rows, columns]
        return super().answer(given, square)


class OfLight(InPlace):
    """A refinement on radiance in the mu-law domain, as `train.refiner_stages.light` has it, whose change is put on the estimate's gain."""

    def kept(self, inputs: Mapping[str, Any], said: Mapping[str, F32]) -> dict[str, Any]:
        """See `Refinement.kept`; and the reference as stored, 0..1."""
        return {**super().kept(inputs, said), "encoded": inputs["encoded"]}

    def answer(self, given: Mapping[str, F32], square: Square) -> F32:
        """See `Refinement.answer`."""
        gain, seen = torch.from_numpy(given["gain"]), torch.from_numpy(given["encoded"])
        light = compress(radiance_from_mu_gain(gain, seen)).clamp(max=GAIN_LIMIT)
        found = torch.from_numpy(super().answer({**given, "gain": light.numpy()}, square)).clamp(0, GAIN_LIMIT)
        refined = mu_gain(torch.expm1(found * math.log1p(MU)) / MU, seen)
        return np.asarray(refined.clamp(0, GAIN_LIMIT).numpy(), np.float32)


@dataclass(frozen=True)
class WithDoubt:
    """A scene source whose scenes say where the regressor doubts its estimate."""

    source: SceneSource
    estimator: Estimator
    threshold: float

    @property
    def name(self) -> str:
        """See `SceneSource`."""
        return self.source.name

    @property
    def fingerprint(self) -> str:
        """See `SceneSource`."""
        return fingerprint(f"{self.threshold} {self.estimator.model.card.state} {self.source.fingerprint}", {})

    def load(self) -> Scene:
        """See `SceneSource`."""
        scene = self.source.load()
        found = begun(scene.bracket).estimated(self.estimator).degradation
        if found is None:
            raise GMODiffError(f"{scene.name}: the model says nothing of its doubts")
        return replace(scene, masks={**scene.masks, "doubt": found > 255 * self.threshold})


@dataclass(frozen=True)
class Begun:
    """What every variant of a scene begins with."""

    bracket: Bracket
    alignments: tuple[Alignment, ...]
    merged: Merged

    def estimated(self, estimator: Estimator) -> Reconstruction:
        """As `gmodiff merge`."""
        return estimated(self.bracket, self.alignments, self.merged, estimator, keep=True)


_last: list[Begun] = []


def begun(bracket: Bracket) -> Begun:
    """Aligned and merged; kept until the next scene."""
    if not _last or _last[0].bracket is not bracket:
        alignments = aligned(bracket)
        _last[:] = [Begun(bracket, alignments, merge(bracket, alignments, with_motion=True))]
    return _last[0]


def without_constraint(estimator: Estimator, scene: Scene) -> F32:
    """The estimate as it comes."""
    start = begun(scene.bracket)
    return estimator(scene.bracket, start.alignments, start.merged.radiance).radiance


def constrained(estimator: Estimator, scene: Scene) -> F32:
    """As `gmodiff merge`."""
    return begun(scene.bracket).estimated(estimator).radiance


def methods(model: Once, card: str, chosen: list[str], weights: Mapping[str, Path], *, bf16: bool) -> dict[str, Method]:
    """Variant by name. weights: of variants that have others than the card's refiner."""
    own = refiner_card(card)
    path = Path(card)
    refiner, _ = read_refiner(path.with_name(f"{path.stem}-refiner.safetensors"))
    state = state_of(card, refined=True)
    found = {}
    for name in chosen:
        refinement, rests_on = None, {}
        if name not in PLAIN:
            network = refiner
            if name in weights:
                network, rests_on = _prior(name, weights[name], own), {name: weights[name]}
            kind = OfLight if name == "fifty_light" else InPlace
            refinement = kind(Variant(own, network, VARIANTS[name], bf16=bf16))
        how: Callable[..., F32] = without_constraint if name in FREE else constrained
        run = partial(how, Estimator(model, refinement=refinement))
        mine = fingerprint(f"{state} {VARIANTS.get(name)}{' in bfloat16' if bf16 and name not in PLAIN else ''}", rests_on)
        found[name] = Method(name, f"{name} of {path.name}", run, state=lambda scene, mine=mine: mine)
    return found


def _prior(variant: str, weights: Path, card: Any) -> Refiner:
    """The prior that a variant needs. Raises InputError for other weights, which would run too."""
    network, facts = read_refiner(weights)
    wanted = "light" if variant == "fifty_light" else "gain"
    if facts.get("latents") != wanted or facts.get("guide") != card.facts["guide"]:
        raise InputError(f"{weights} is no prior of {wanted} latents beside the card's regressor: {variant} needs one")
    return network


COLUMNS = {
    "PSNR-mu": ("psnr_mu", 2), "PSNR-l": ("psnr_l", 2), "PU21": ("pu21_psnr", 2), "JOD": ("jod", 3), "GMS": ("gms", 4),
    "PSNR-mu, doubt": ("psnr_mu/doubt", 2), "PSNR-mu, motion": ("psnr_mu/motion", 2), "PSNR-mu, clipped": ("psnr_mu/clipped", 2),
    "JOD, doubt": ("jod/doubt", 3), "JOD, motion": ("jod/motion", 3), "JOD, clipped": ("jod/clipped", 3), "GMS, doubt": ("gms/doubt", 4),
}  # fmt: skip


def gflop(variant: str) -> float:
    """GFLOP of refining one square, of the refiner that ships, or another of its shape."""
    if variant in PLAIN:
        return 0.0
    card = refiner_card("compact")
    side = CORE_PX + 2 * card.halo_px
    refiner, _ = read_refiner(Path(gmodiff.__file__).parent / "weights" / "compact-refiner.safetensors")
    square = Variant(card, refiner, VARIANTS[variant])
    latent = refiner.autoencoder.shape.latent
    square.noise = torch.randn((1, latent, side // LATENT_FOLD, side // LATENT_FOLD), generator=torch.Generator().manual_seed(0))
    given = {"gain": np.zeros((1, 3, side, side), np.float32), "short": np.zeros((1, 3, side, side), np.float32)}
    given["degradation"] = np.zeros((1, 1, side // 4, side // 4), np.float32)
    for name, channels, fold in zip(CONTEXT, refiner.denoiser.shape.context, (8, 16, 32), strict=True):
        given[name] = np.zeros((1, channels, side // fold, side // fold), np.float32)
    return operations(lambda: square(given)) / 1e9


def table(paths: list[Path], variants: list[str]) -> None:
    """Means over scenes that every variant has, a table a set; where a mask is empty, a scene counts for nothing in its columns."""
    rows = [row for row in latest([row for path in paths for row in read_rows(path)[0]]) if row["status"] == "ok"]
    rows = [row for row in rows if row["method"] in variants]
    there = {row["method"] for row in rows}
    counted = {variant: gflop(variant) for variant in variants if variant in there}
    for name in sorted({row["dataset"] for row in rows}):
        mine: dict[str, dict[str, Any]] = {}
        for row in rows:
            if row["dataset"] == name:
                mine.setdefault(row["method"], {})[row["scene"]] = row
        scenes = sorted(set.intersection(*(set(found) for found in mine.values())))
        print(
            f"\n{name}, {len(scenes)} scenes\n\n| variant | {' | '.join(COLUMNS)} | seconds | GFLOP |\n|---|{'---:|' * (len(COLUMNS) + 2)}"
        )
        for variant in (v for v in variants if v in mine):
            cells = []
            for key, digits in COLUMNS.values():
                told = [[mine[v][s]["metrics"].get(key) for v in mine] for s in scenes]
                values = [mine[variant][s]["metrics"][key] for s, all_of in zip(scenes, told, strict=True) if None not in all_of]
                cells.append(f"{np.mean(values):.{digits}f}" if values else "–")
            cells.append(f"{np.median([mine[variant][s]['seconds'] for s in scenes]):.1f}")
            cells.append(f"{counted[variant]:.1f}")
            print(f"| {variant} | {' | '.join(cells)} |")


def there_and_back(paths: list[Path], data: Path | None, scenes: list[str], weights: Path) -> None:
    """Mean PSNR of true gain maps and of true radiance in the mu-law domain, peak 1, without and with what the encoder saw."""
    network = read_refiner(weights)[0].autoencoder
    for path in paths:
        dataset = open_dataset(path, data)
        found: dict[str, list[float]] = {}
        for source in dataset.scenes:
            scene = source.load() if not scenes or any(fnmatchcase(source.name, pattern) for pattern in scenes) else None
            if scene is None or scene.truth is None:
                continue
            reference = scene.bracket.frames[scene.bracket.reference].encoded
            pictures = np.stack([scene.truth / np.float32(scene.short_white), reference / np.float32(np.iinfo(reference.dtype).max)])
            height, width = (s - s % LATENT_FOLD for s in reference.shape[:2])
            truth, encoded = torch.from_numpy(np.ascontiguousarray(pictures[:, :height, :width].transpose(0, 3, 1, 2), np.float32))[:, None]
            kinds = {"gain": mu_gain(truth, encoded).clamp(max=GAIN_LIMIT), "light": compress(truth).clamp(max=GAIN_LIMIT)}
            for kind, picture in kinds.items():
                with torch.no_grad():
                    latent, skips = network.encode(picture)
                    for how, back in (("without skips", network.decode(latent)), ("with", network.decode(latent, skips))):
                        found.setdefault(f"{kind}, {how}", []).append(float(-10 * torch.log10(((back - picture) ** 2).mean())))
                found.setdefault(f"{kind}, deviation of its latents", []).append(float(latent.std()))
                found.setdefault(f"{kind}, best linear code of that size", []).append(_best_linear(picture, network.shape.latent))
            if scene.perfect is not None:
                # The same gain without the reference's noise and JPEG: what is between the two is nothing that a picture has.
                clean = scene.bracket.response.encode(scene.truth)[:height, :width]
                apart = mu_gain(truth, torch.from_numpy(np.ascontiguousarray(clean.transpose(2, 0, 1)))[None]) - kinds["gain"]
                found.setdefault("gain, of the noisy reference beside that of the light itself", []).append(
                    float(-10 * torch.log10((apart**2).mean()))
                )
        for name, values in found.items():
            print(f"{dataset.name}, {len(values)} scenes, {name}: mean {np.mean(values):.2f}, least {min(values):.2f}")


def _best_linear(picture: torch.Tensor, numbers: int) -> float:
    """PSNR, peak 1, of the best that so many numbers for each cell of LATENT_FOLD pixels a side can do linearly: principal components of
    this very picture, which no code for all pictures can be above unless it is not linear.
    """
    cells = torch.nn.functional.pixel_unshuffle(picture, LATENT_FOLD)[0].flatten(1).double()
    moments = torch.linalg.eigvalsh(torch.cov(cells))
    return float(-10 * torch.log10(moments[:-numbers].clamp_min(0).sum() / len(cells)))


def _file(run: Path) -> Path:
    return run / WEIGHTS if run.is_dir() else run


def main() -> None:
    """Run the chosen variants on the sets."""
    names = [*PLAIN, *VARIANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--table", action="store_true", help="print means of these rows")
    parser.add_argument("--card")
    parser.add_argument("--autoencoder", type=Path, help="say how gain maps come back, and end")
    parser.add_argument("--prior", type=Path)
    parser.add_argument("--light", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--variants", default=",".join(names))
    parser.add_argument("--scene", action="append", default=[])
    parser.add_argument("--metric", action="append")
    parser.add_argument("--bf16", action="store_true", help="encoders and denoisers in bfloat16")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--force", action="store_true")
    arguments = parser.parse_args()
    chosen = arguments.variants.split(",")
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        parser.error(f"variant {unknown[0]!r}: expected {', '.join(names)}")
    if arguments.table:
        return table(arguments.sets, chosen)
    if arguments.autoencoder is not None:
        return there_and_back(arguments.sets, arguments.data, arguments.scene, _file(arguments.autoencoder))
    if arguments.card is None or arguments.out is None:
        parser.error("--card and -o are needed")
    runs = {"fifty_steps": arguments.prior, "fifty_light": arguments.light}
    weights = {k: _file(v) for k, v in runs.items() if v is not None}
    missing = [k for k in runs if k in chosen and k not in weights]
    if missing:
        parser.error(f"variant {missing[0]} needs the run of a prior: --{'prior' if missing[0] == 'fifty_steps' else 'light'}")
    model = Once(load_model(arguments.card, runtime="torch", device="cpu"))
    METHODS.update(methods(model, arguments.card, chosen, weights, bf16=arguments.bf16))
    threshold = float(refiner_card(arguments.card).facts["threshold"])
    doubts = Estimator(model)
    for path in arguments.sets:
        dataset = open_dataset(path, arguments.data)
        outcome = evaluate(
            replace(dataset, scenes=tuple(WithDoubt(s, doubts, threshold) for s in dataset.scenes)),
            arguments.out,
            methods=chosen,
            metrics=None if arguments.metric is None else [m for m in arguments.metric if m != "none"],
            scenes=arguments.scene,
            resume=arguments.resume,
            force=arguments.force,
            pictures=False,
            progress=lambda done, total, row: print(done, total, row and (row["scene"], row["method"], row["metrics"].get("psnr_mu"))),
        )
        print(outcome.rows)


if __name__ == "__main__":
    try:
        main()
    except GMODiffError as error:
        raise SystemExit(str(error)) from None
