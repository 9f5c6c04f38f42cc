"""The command `gmodiff train`: stages, then the files that ship."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError, says_memory

if TYPE_CHECKING:
    from gmodiff.train.recipes import Recipe

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@click.group(short_help="Train the networks, and export what ships.")
def train() -> None:
    """Train the compact model: the regressor, its degradation mask, the noise reducer, then export. The refiner, in three parts, is
    optional.

    \b
      gmodiff train regressor --data DATA --out runs/regressor --cache scenes/
      gmodiff train mask --data DATA --from runs/regressor --out runs/mask --cache scenes/
      gmodiff train noise --data DATA --regressor runs/mask --out runs/noise --cache scenes/
      gmodiff train autoencoder --data DATA --out runs/autoencoder --cache scenes/
      gmodiff train prior --data DATA --from runs/autoencoder --regressor runs/mask --out runs/prior --cache scenes/
      gmodiff train onestep --data DATA --from runs/prior --regressor runs/mask --out runs/onestep --cache scenes/
      gmodiff train export --from runs/mask --noise runs/noise -o compact.json

    The full-size system, on a GPU: sd21-regressor, sd21-mask, sd21-onestep (docs/full-model.md).

    DATA holds HDR pictures (.hdr, .exr) and photos (.jpg, .png), in it or one folder below; a MANIFEST.csv with the columns file and
    split keeps pictures out. Run a stage again with the same settings and it goes on where it was killed. Several processes:
    torchrun --nproc-per-node 2 -m gmodiff train regressor ...
    """


def _finite(_: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A range lets NaN pass."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value}: expected a finite number", param=option)
    return value


def _guide(when: str) -> Callable[..., Any]:
    return click.option(
        "--regressor",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help=f"The finished regressor beside which it works: a run or a file.  [{when}]",
    )


_GUIDE = _guide("required")
UNGIVEN = "Steps, crops, scenes and rate that are not given are those of the stage's recipe; a run says them when it begins."


def _stage(stage: str, about: str, *more: Callable[..., Any], start: str = "") -> Callable[..., Any]:
    """A stage's command. start: what --from has to be, where it must be given."""
    wanted = f"Begin with these weights: a run or a file{start and f', of {start}'}.{start and '  [required]'}"

    def wrap(function: Callable[..., Any]) -> Any:
        for option in reversed(
            (
                *more,
                click.option("--data", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Pictures to train on."),
                click.option(
                    "--out", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Checkpoint, log and weights go here."
                ),
                click.option("--from", "start", type=click.Path(path_type=Path), metavar="RUN", help=wanted),
                click.option(
                    "--cache", type=click.Path(path_type=Path), metavar="FOLDER", help="Keep rendered scenes here (about 15 MB each)."
                ),
                click.option(
                    "--curves",
                    type=click.Path(path_type=Path),
                    metavar="FILE",
                    help="Measured responses. Default: responses/curves.json in DATA.",
                ),
                click.option("--steps", type=click.IntRange(min=1), help="Steps in all."),
                click.option("--batch", type=click.IntRange(min=1), help="Crops a step."),
                click.option("--crop", type=click.IntRange(min=32), help="Side of a crop in pixels, a multiple of 32, at most 768."),
                click.option("--scenes", type=click.IntRange(min=1), help="Different simulated brackets."),
                click.option("--rate", type=click.FloatRange(min=0, max=1, min_open=True), callback=_finite, help="Largest learning rate."),
                click.option("--save-every", type=click.IntRange(min=1), help="Steps from checkpoint to checkpoint."),
                click.option("--check-scenes", type=click.IntRange(min=1), help="Scenes never trained on, looked at with each checkpoint."),
                click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of crops and first weights, and of a regressor's scenes."),
                click.option("--bf16", is_flag=True, help="Compute in bfloat16 where that is safe."),
                click.option(
                    "--workers", type=click.IntRange(min=0), default=1, show_default=True, help="Processes that render and cut crops."
                ),
                click.option("--threads", type=click.IntRange(min=1), help="Threads of the network. Default: every core."),
            )
        ):
            function = option(function)
        return train.command(stage, short_help=about, help=f"{about}\n\n{UNGIVEN}")(function)

    return wrap


@_stage("regressor", "Train the estimate (stage 1).")
def regressor(**options: Any) -> None:
    """Stage 1."""
    _run("regressor", **options)


@_stage("mask", "Train the degradation mask on a finished regressor (stage 2).", start="the regressor")
def mask(**options: Any) -> None:
    """Stage 2."""
    _run("mask", **options)


@_stage("noise", "Train the noise reducer, which works where the reference measured, beside a finished regressor.", _GUIDE)
def noise(**options: Any) -> None:
    """Noise of the merge."""
    _run("noise", **options)


@_stage("autoencoder", "Train the autoencoder of the refiner (stage 3, first part).")
def autoencoder(**options: Any) -> None:
    """Stage 3, latents."""
    _run("autoencoder", **options)


@_stage(
    "prior",
    "Train latent diffusion on a finished autoencoder (stage 3, second part).",
    _GUIDE,
    click.option(
        "--latents", type=click.Choice(["gain", "light"]), default=None,
        help="Of gain maps, as one step needs them, or of radiance itself, a baseline.  [default: gain]",
    ),
    start="an autoencoder",
)  # fmt: skip
def prior(**options: Any) -> None:
    """Stage 3, the generative prior."""
    _run("prior", **options)


@_stage("onestep", "Train the one-step refiner on a finished prior (stage 3, last part).", _GUIDE, start="a prior")
def onestep(**options: Any) -> None:
    """Stage 3, one step."""
    _run("onestep", **options)


@_stage("sd21-regressor", "Train the full-size system's regressor, DaReg, as published (stage 1).")
def sd21_regressor(**options: Any) -> None:
    """Stage 1 at full size."""
    _run("sd21-regressor", **options)


@_stage("sd21-mask", "Train the full-size regressor's degradation mask (stage 2).", start="the regressor")
def sd21_mask(**options: Any) -> None:
    """Stage 2 at full size."""
    _run("sd21-mask", **options)


@_stage(
    "sd21-onestep",
    "Train one step of Stable Diffusion 2.1 with adapters (stage 3).",
    _guide("required, unless --from is a run that holds one"),
    click.option("--backbone", metavar="PATH|HUB_ID", help="Stable Diffusion 2.1 base: a diffusers folder or a hub's OWNER/NAME."),
    click.option("--rank", type=click.IntRange(min=1), help="Of the adapters.  [default: 16]"),
    click.option(
        "--perceptual", "look", type=click.Choice(["auto", "dists", "pyramid"]), default="auto", show_default=True,
        help="Third term of the loss: DISTS as published, whose weights must lie in torch's cache, or a Laplacian pyramid; "
             "auto: the first if it can be had.",
    ),
    click.option(
        "--adversarial", type=click.FloatRange(min=0, max=10), callback=_finite, help="Weight of the term in latents; the release has 0."
    ),
    click.option("--recompute", is_flag=True, default=None, help="Less memory, more time: compute activations again for the gradients."),
)  # fmt: skip
def sd21_onestep(**options: Any) -> None:
    """Stage 3 at full size."""
    _run("sd21-onestep", **options)


def _run(
    stage: str,
    data: Path,
    out: Path,
    start: Path | None,
    cache: Path | None,
    curves: Path | None,
    workers: int,
    threads: int | None,
    crop: int | None,
    bf16: bool,
    regressor: Path | None = None,
    backbone: str | None = None,
    look: str | None = None,
    **overrides: Any,
) -> None:
    _need_torch()
    import torch

    from gmodiff.train.loop import train
    from gmodiff.train.recipes import RECIPES
    from gmodiff.train.scenes import SIZE_PX, SceneStore, find_sources
    from gmodiff.train.stages import BESIDE_REGRESSOR, NEEDED, needed_first, regressor_of

    if crop is not None and (crop % 32 or crop > SIZE_PX):
        raise InputError(f"--crop {crop}: expected a multiple of 32, at most {SIZE_PX}")
    if stage == "sd21-onestep" and crop is not None and crop < 64:
        raise InputError(f"--crop {crop}: expected 64 or more, since batch norm needs more than one token")
    if threads is not None:
        torch.set_num_threads(threads)
    given = {k: v for k, v in overrides.items() if v is not None} | ({"crop_px": crop} if crop is not None else {})
    if look is not None:
        from gmodiff.train.full_size import perceptual_loss

        given["perceptual"] = perceptual_loss(look)
        click.echo(f"third term of the loss: {given['perceptual']}", err=True)
    recipe = replace(RECIPES[stage], bf16=bf16, **given)
    recipe = replace(recipe, warm_up=min(recipe.warm_up, max(1, recipe.steps // 10)))
    for option, folder, reason in (("--out", out, "a run is a folder"), ("--cache", cache, "scenes are kept in a folder")):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InputError(f"{option} {folder}: a file lies there, and {reason}; give another name")
    start, regressor = _weights_file("--from", start), _weights_file("--regressor", regressor)
    for given_as in (start, regressor):
        _note_unfinished(given_as, but=stage)
    if stage in NEEDED and start is None:
        raise InputError(needed_first(stage))  # before every picture is looked at
    if stage in BESIDE_REGRESSOR:
        regressor_of(stage, regressor)  # before every picture is looked at
    holds_regressor = stage in ("mask", "sd21-mask") or (stage == "sd21-onestep" and regressor is None)
    seed = _scene_seed(recipe, start if holds_regressor else regressor)
    sources = find_sources(data, curves)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    seen = f"{len(sources.hdr)} HDR pictures and {len(sources.photos)} photos, {recipe.scenes} simulated brackets"
    recipe = replace(recipe, data=seen, hardware=where)
    store = SceneStore(sources, seed, cache)
    try:
        weights = train(
            recipe,
            store,
            out,
            start=start,
            regressor=regressor,
            backbone=backbone,
            workers=workers,
            say=_say,
        )
    except KeyboardInterrupt:
        click.echo(f"gmodiff: stopped; the same command goes on from the last checkpoint in {out}, if there is one", err=True)
        sys.exit(INTERRUPTED)
    except (RuntimeError, MemoryError) as error:
        if "DataLoader worker" in str(error):
            raise InputError(
                f"a worker that makes scenes ended without a word, perhaps for want of memory: give fewer --workers than {workers}, and "
                "the same command goes on from the last checkpoint"
            ) from None
        if not says_memory(error):
            raise
        asked = f"{recipe.batch} crops of {recipe.crop_px} pixels"
        first = "give --recompute and go on; or " if recipe.stage == "sd21-onestep" and not recipe.recompute else ""
        raise InputError(f"not enough memory for {asked}: {first}give another --out and a smaller --batch or --crop, or --bf16") from None
    if weights is not None:
        click.echo(weights)


def _weights_file(option: str, given: Path | None) -> Path | None:
    """A run's weights, or the file itself."""
    from gmodiff.model.released import DAREG_FILE
    from gmodiff.train.loop import WEIGHTS

    path = given / WEIGHTS if given is not None and given.is_dir() else given
    if given is not None and path is not None and not path.is_file() and (given / DAREG_FILE).is_file():
        path = given / DAREG_FILE  # a released folder
    if path is not None and not path.is_file():
        raise InputError(f"{option} {path}: no weights there; a run that has saved holds {WEIGHTS}")
    return path


def _scene_seed(recipe: Recipe, regressor: Path | None) -> int:
    """Every later stage learns on the scenes of the regressor it belongs to; the autoencoder, which has none, on those of REGRESSOR."""
    from gmodiff.model.sd21_files import read_facts
    from gmodiff.model.weights import read_weights
    from gmodiff.train.recipes import REGRESSOR

    if recipe.stage in ("regressor", "sd21-regressor"):
        return recipe.seed
    if regressor is None or (recipe.full_size and regressor.suffix != ".safetensors"):
        return REGRESSOR.seed  # a released file says nothing of itself
    facts = read_facts(regressor) if recipe.full_size else read_weights(regressor)[1]
    return int(facts.get("scene_seed", facts.get("recipe", {}).get("seed", REGRESSOR.seed)))  # older files have the first run's alone


def _note_unfinished(weights: Path | None, but: str | None = None) -> None:
    """A word about stages of a weights file that were stopped early. but: a stage that now goes on, of which nothing is said."""
    from gmodiff.model.sd21_files import read_facts

    facts: dict[str, Any] = {}
    with suppress(FileFormatError):  # said better by who reads the weights
        facts = read_facts(weights) if weights is not None and weights.suffix == ".safetensors" else facts
    for stage, where in facts.get("unfinished", {}).items():
        if stage != but:
            click.echo(f"note: {stage} of {weights} was stopped at {where}", err=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _need_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f'training needs {error.name}: pip install "gmodiff[train]"') from None


@train.command(short_help="Write a trained model's ONNX file, weights and card.")
@click.option("--from", "start", type=click.Path(path_type=Path), required=True, metavar="RUN", help="A run or a weights file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="NAME.json",
              help="The card; NAME.onnx and NAME.safetensors go beside it.")  # fmt: skip
@click.option("--noise", type=click.Path(path_type=Path), metavar="RUN",
              help="Of a regressor: the noise reducer that works beside it, a run or a weights file.")  # fmt: skip
@click.option("--guide", type=click.Path(path_type=Path), metavar="CARD",
              help="Of a refiner: card of the regressor it was trained beside.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1, max_open=True), callback=_finite,
              help="Of a refiner: degradation from which it refines; the default is what it is trained for.  [default: 0.5]")  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite.")
def export(start: Path, output: Path, noise: Path | None, guide: Path | None, threshold: float | None, force: bool) -> None:
    """Write NAME.onnx (any runtime), NAME.safetensors (torch), both in half precision, and the card NAME.json.

    \b
      gmodiff train export --from runs/mask --noise runs/noise -o compact.json
      gmodiff train export --from runs/onestep --guide compact.json -o compact-refiner.json

    --refine looks for the refiner of NAME.json as NAME-refiner.json beside it.
    """
    from gmodiff.model_card import NOISE_SUFFIX
    from gmodiff.refine import THRESHOLD
    from gmodiff.runtime import load_card, refiner_path

    if threshold is not None and guide is None:
        raise InputError(f"--threshold {threshold:g} is a refiner's: give the card of its regressor with --guide")
    if noise is not None and guide is not None:
        raise InputError(f"--noise {noise}: goes with a regressor, and --guide with a refiner; give one of them")
    if output.suffix != ".json":
        raise InputError(f"-o {output}: give the card a name ending in .json")
    beside = output.with_name(f"{output.stem}{NOISE_SUFFIX}{output.suffix}")
    files_beside = [beside.with_suffix(s) for s in (".onnx", ".safetensors")]
    files = [output, *(output.with_suffix(s) for s in (".onnx", ".safetensors")), *(files_beside if guide is None else ())]
    taken = [p for p in files if p.exists()]
    if taken and not force:
        raise InputError(f"{taken[0]} exists: give --force to overwrite it, or another name")
    _need_torch()
    from gmodiff.train.shipping import ship, ship_refiner

    weights = _weights_file("--from", start)
    assert weights is not None
    _note_unfinished(weights)
    threshold = THRESHOLD if threshold is None else threshold
    paths = (
        ship(weights, output, _weights_file("--noise", noise), _say)
        if guide is None
        else ship_refiner(weights, output, load_card(str(guide)), threshold, _say)
    )
    if guide is None and noise is None:
        for stale in files_beside:
            stale.unlink(missing_ok=True)  # the card names them no longer
    for path in paths:
        click.echo(f"{path}: {path.stat().st_size / 1e6:.3f} MB")
    found_as = None if guide is None else refiner_path(str(guide))
    if found_as is not None and found_as.resolve() != output.resolve():
        _say(f"note: --refine finds the refiner of {guide} as {found_as}; export it there to use it")


@train.command(short_help="Put measured scores on a model's card.")
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="ROWS.jsonl...")
@click.option("-o", "--card", type=click.Path(path_type=Path), required=True, metavar="NAME.json", help="The card to complete.")
@click.option("--method", "measured_as", default=None, metavar="NAME", help="Method of the rows. Default: the model's name.")
def scores(rows: tuple[Path, ...], card: Path, measured_as: str | None) -> None:
    """Put the means of evaluation rows on a card; rows of other weights are refused.

    \b
      gmodiff evaluate benchmarks/sets/synthetic-val.toml -m compact=model:compact.json -o results/
      gmodiff train scores results/synthetic-val.jsonl -o compact.json
    """
    _need_torch()
    from gmodiff.train.shipping import add_scores

    add_scores(card, rows, measured_as or card.stem)
    click.echo(card)
