"""From trained weights to the files that ship: the ONNX graph, half-precision weights, and the card that names and describes both."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from gmodiff.errors import InputError, OutputError
from gmodiff.evaluate.rows import Row, latest, read_rows
from gmodiff.model.export import export_onnx
from gmodiff.model.noise_reducer import NOISE_HALO_PX, NoiseReducer, read_noise_reducer, write_noise_reducer
from gmodiff.model.on_arrays import OnArrays
from gmodiff.model.refiner import FORMAT as REFINER_FORMAT
from gmodiff.model.refiner import REFINER_HALO_PX, read_refiner, write_refiner
from gmodiff.model.regressor import GAIN_LIMIT, HALO_PX, MAX_FRAMES, STRIDE
from gmodiff.model.weights import digest, read_weights, stored_format, write_weights
from gmodiff.model_card import CARD_FORMAT, NOISE_SUFFIX, REFINER_ANSWER, Card, sha256
from gmodiff.train.loop import Say
from gmodiff.writer import replacing

ABOUT = "degradation-aware regressor of the gain map: fusion weights over aligned frames and a bounded residual"
ABOUT_REFINER = "one-step latent diffusion on the gain map, where the regressor doubts its estimate"
LICENCE = "Apache-2.0"
SCORES = ("psnr_mu", "psnr_l", "pu21_psnr", "jod")


TRACING = "tracing the network for ONNX, which takes a while"


@contextmanager
def _together(card: Path) -> Iterator[Path]:
    """A card's path in a folder of its own. What is written there takes its place beside `card` when all of it is finished, the card last;
    what is interrupted leaves nothing, and what was there before as it was. Raises OutputError where it cannot be written.
    """
    try:
        card.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{card.stem}-", dir=card.parent) as folder:
            yield Path(folder) / card.name
            for path in sorted(Path(folder).iterdir(), key=lambda p: p.name == card.name):
                path.replace(card.with_name(path.name))
    except OSError as error:
        raise OutputError(f"{card}: cannot be written ({error.strerror or error})") from None


def ship(weights: Path, card: Path, noise: Path | None = None, say: Say = print) -> list[Path]:
    """Write card, card.onnx and card.safetensors of a regressor, and where there is one the same two of the noise reducer beside it, all
    of them or none; returns what was written, the card first. The card has no scores yet: see `add_scores`.

    Raises InputError for weights that are not to ship, OutputError where the files cannot be written.
    """
    if stored_format(weights) == REFINER_FORMAT:
        _refuse_unfinished(weights, read_refiner(weights)[1])
        raise InputError(f"{weights} holds a refiner: give the card of the regressor it was trained beside with --guide")
    network, facts = read_weights(weights)
    _refuse_broken(weights, network)
    if not facts.get("steps", {"mask": 1}).get("mask"):  # files without a history are as they are
        raise InputError(f"{weights} has no trained mask (steps: {facts['steps']}): gmodiff train mask makes it")
    if noise is not None:
        _check_noise(noise, digest(network))  # before anything is written
    say(TRACING)
    own = {"name": card.stem, "about": ABOUT, "max_frames": MAX_FRAMES, "stride": STRIDE, "halo_px": HALO_PX, "gain_limit": GAIN_LIMIT}
    own["weights"] = digest(network)
    with _together(card) as unfinished:
        write_weights(network, unfinished.with_suffix(".safetensors"), facts | {"name": card.stem}, half=True)
        beside = [] if noise is None else _noise_shipped(noise, unfinished, own)
        return _shipped(card, unfinished, own, network, facts, beside)


def _check_noise(weights: Path, guide: str) -> tuple[NoiseReducer, dict[str, Any]]:
    """The noise reducer of a file and the facts beside it. Raises where it is none, broken, or trained beside other weights than guide."""
    network, facts = read_noise_reducer(weights)
    _refuse_broken(weights, network)
    if facts.get("guide") != guide:
        raise InputError(f"{weights} was trained beside another regressor: gmodiff train noise --regressor trains one for this")
    return network, facts


def _noise_shipped(weights: Path, card: Path, own: dict[str, Any]) -> list[Path]:
    """The two files of a noise reducer; what the card says of it goes into `own`."""
    network, facts = _check_noise(weights, own["weights"])
    single = card.with_name(f"{card.stem}{NOISE_SUFFIX}.safetensors")
    graph = single.with_suffix(".onnx")
    write_noise_reducer(network, single, facts | {"name": card.stem}, half=True)
    export_onnx(OnArrays.read("noise", single), graph)
    own["noise"] = {"stride": STRIDE, "halo_px": NOISE_HALO_PX} | _made(network, facts)
    return [graph, single]


def ship_refiner(weights: Path, card: Path, guide: Card, threshold: float, say: Say = print) -> list[Path]:
    """Write card, card.onnx and card.safetensors of a refiner, all of them or none; as `ship`.

    guide: of the regressor it was trained beside.   threshold: degradation, 0..1, from which it refines.
    """
    network, facts = read_refiner(weights)
    _refuse_broken(weights, network)
    _refuse_unfinished(weights, facts)
    if facts.get("answer") != REFINER_ANSWER:
        raise InputError(f"{weights} was trained by an older version, for another answer: go on with gmodiff train onestep --from it")
    if guide.kind != "regressor" or facts.get("guide") != guide.facts.get("weights"):
        raise InputError(f"{weights} was not trained beside model {guide.name}: give the card of its regressor with --guide")
    say(TRACING)
    own = {
        "name": card.stem,
        "about": ABOUT_REFINER,
        "kind": "refiner",
        "max_frames": guide.max_frames,
        "stride": STRIDE,
        "halo_px": REFINER_HALO_PX,
        "gain_limit": GAIN_LIMIT,
        "guide": guide.facts["weights"],
        "threshold": threshold,
        "answer": REFINER_ANSWER,
    }
    with _together(card) as unfinished:
        write_refiner(network, unfinished.with_suffix(".safetensors"), facts | {"name": card.stem}, half=True)
        return _shipped(card, unfinished, own, network, facts)


def _refuse_unfinished(weights: Path, facts: Mapping[str, Any]) -> None:
    done = [stage for stage, steps in facts.get("steps", {}).items() if steps]
    if "onestep" not in done:
        trained = ", ".join(done) or "nothing"
        raise InputError(f"{weights} is not trained for one step yet (trained: {trained}): autoencoder, prior and onestep make a refiner")


def _refuse_broken(weights: Path, network: nn.Module) -> None:
    broken = [name for name, values in network.state_dict().items() if not bool(values.isfinite().all())]
    if broken:
        raise InputError(f"{weights}: {len(broken)} of its tensors are not finite ({broken[0]} is the first): train again, slower")


def _made(network: nn.Module, facts: dict[str, Any]) -> dict[str, Any]:
    """What a card says of how a network was made."""
    recipes = facts.get("recipes", {})
    if not recipes and "recipe" in facts:  # older files kept that of their first stage alone
        recipes = {facts["recipe"].get("stage", ""): facts["recipe"]}
    commands = {stage: recipe.get("command", "not recorded") for stage, recipe in recipes.items()}
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "licence": LICENCE,
        "trained_on": _of_stages(facts.get("data", {})),
        "trained_by": _of_stages(commands),
        "hardware": _of_stages(facts.get("hardware", {})),
        "hours": {stage: round(seconds / 3600, 2) for stage, seconds in facts.get("spent", {}).items()},
        "steps": facts.get("steps", {}),
    }


def _of_stages(said: Mapping[str, str]) -> str:
    """What is known of each stage, those with the same to say together."""
    stages: dict[str, list[str]] = {}
    for stage, what in said.items():
        stages.setdefault(what, []).append(stage)
    if len(stages) == 1:
        return next(iter(stages))
    return "; ".join(f"{', '.join(names)}: {what}" for what, names in stages.items()) or "not recorded"


def _shipped(
    card: Path, unfinished: Path, own: dict[str, Any], network: nn.Module, facts: dict[str, Any], beside: Sequence[Path] = ()
) -> list[Path]:
    """Graph and card beside the weights already written; where all of them are going to lie. unfinished: the card, until then."""
    single, graph = unfinished.with_suffix(".safetensors"), unfinished.with_suffix(".onnx")
    # What was rounded to half precision is what the graph holds too.
    export_onnx(OnArrays.read(own.get("kind", "regressor"), single), graph)
    content: dict[str, Any] = {
        "format": CARD_FORMAT,
        **own,
        "sha256": {p.name: sha256(p) for p in (graph, single, *beside)},
        **_made(network, facts),
        "scores": {},
    }
    _write(unfinished, content)
    return [card, *(card.with_name(p.name) for p in (graph, single, *beside))]


def add_scores(card: Path, rows: Sequence[Path], method: str) -> None:
    """Put the means of a method's rows on a card. Raises InputError where there are none, or where they are of other weights."""
    model = Card.read(card)
    found = latest([r for path in rows for r in read_rows(path)[0] if r["method"] == method and r["status"] == "ok"])
    if not found:
        raise InputError(f"no finished rows of method {method!r} in {', '.join(map(str, rows))}: gmodiff evaluate writes them")
    # Rows of CARD@refine name the regressor's state too, before that of the refiner.
    states = {str(r.get("method_hash")) for r in found}
    if {s.rpartition("+")[2] if model.kind == "refiner" else s for s in states} != {model.state}:
        raise InputError(
            f"the rows of {method!r} were measured with other weights than {card} names, or with another threshold or reach: evaluate "
            "this model first"
        )
    _write(card, json.loads(card.read_text()) | {"scores": _scores(found)})


def _write(card: Path, content: dict[str, Any]) -> None:
    with replacing(card, force=True) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")


def _scores(found: Sequence[Row]) -> dict[str, Any]:
    """Dataset to the means of rows and how many scenes they are of."""
    scores: dict[str, Any] = {}
    for name in sorted({r["dataset"] for r in found}):
        mine = [r for r in found if r["dataset"] == name]
        means = {k: [r["metrics"][k] for r in mine if r["metrics"].get(k) is not None] for k in SCORES}
        scores[name] = {"scenes": len(mine), **{k: round(statistics.fmean(v), 2) for k, v in means.items() if v}}
    return scores
