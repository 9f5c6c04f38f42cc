"""Models by name or path, ready to run: on OpenVINO, on ONNX Runtime where there is no OpenVINO, on torch when asked.

Nothing here is imported, and no engine is loaded, before somebody asks for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from gmodiff.engines import Engine, OnnxRuntime, OpenVINO, Torch
from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.model_card import CARD_SUFFIX, FULL_MODEL, NOISE_SUFFIX, REFINER_SUFFIX, Card, Model, check_weights

RUNTIMES = ("auto", "openvino", "onnxruntime", "torch")
DEFAULT_MODEL = "compact"
NO_MODEL = "none"
"""What the command calls the classical merge alone."""
WEIGHTS_FOLDER = "weights"


def shipped_models() -> list[str]:
    """Names of the models in this package."""
    folder = _shipped_folder()
    return sorted(p.stem for p in folder.glob(f"*{CARD_SUFFIX}")) if folder.is_dir() else []


def model_cards() -> list[Card]:
    """Cards of the models in this package."""
    return [Card.read(_shipped_folder() / f"{name}{CARD_SUFFIX}") for name in shipped_models()]


def load_card(name: str) -> Card:
    """The card of a model, by name or path, as `load_model`."""
    return Card.read(_card_path(name))


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    runtime: str = "auto",
    device: str = "auto",
    exact: bool = False,
    backbone: str | None = None,
    weights: str | None = None,
    precision: str = "auto",
    offload: str = "auto",
) -> Model:
    """A model by name, or by the path of its card (.json) with the weights beside it.

    runtime: one of RUNTIMES; auto takes OpenVINO, else ONNX Runtime, else torch, whichever is installed.   device: "auto" or what the
    runtime calls one ("cpu", "cuda", "GPU").   exact: float32 throughout; otherwise OpenVINO computes convolutions in bfloat16 where the
    processor can.   backbone, weights, precision, offload: of the full-size model alone, "sd21", see `full_model.load_full_model`.
    Raises InputError for an unknown name or runtime, FileFormatError where weights are not those of the card,
    MissingDependencyError where the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r}: expected {', '.join(RUNTIMES)}")
    path = None if name == FULL_MODEL else _card_path(name)
    card = None if path is None else Card.read(path)
    if card is None or card.kind == FULL_MODEL:
        if runtime not in ("auto", "torch"):
            raise InputError(f"runtime {runtime!r}: model {name} runs on torch alone; leave --runtime out")
        if exact and precision not in ("auto", "float32"):
            raise InputError(f"precision {precision!r} and exact: exact is float32; give one of them")
        from gmodiff.full_model import load_full_model

        precision = "float32" if exact else precision
        return load_full_model(path, backbone=backbone, weights=weights, device=device, precision=precision, offload=offload)
    assert path is not None
    given = {"--backbone": backbone is not None, "--weights": weights is not None, "--precision": precision != "auto"}
    given["--offload"] = offload != "auto"
    if any(given.values()):
        options = ", ".join(option for option, is_given in given.items() if is_given)
        raise InputError(f"{options}: of the full-size model; give --model {FULL_MODEL}, or leave this out")
    chosen = _installed_runtime() if runtime == "auto" else runtime
    suffix = ".safetensors" if chosen == "torch" else ".onnx"
    stored = path.with_suffix(suffix)
    check_weights(stored, card)
    engines: dict[str, Callable[[Card, Path, str, bool], Engine]] = {
        "openvino": OpenVINO,
        "onnxruntime": OnnxRuntime,
        "torch": Torch,
    }
    model = engines[chosen](card, stored, device, exact)
    noise = card.facts.get("noise")
    if noise is not None:
        beside = path.with_name(f"{path.stem}{NOISE_SUFFIX}{suffix}")
        own = replace(card, kind="noise", stride=noise["stride"], halo_px=noise["halo_px"])

        def reducer() -> Model:
            try:
                check_weights(beside, card)
            except (InputError, FileFormatError) as error:
                raise type(error)(f"{error}; --keep-noise goes without it") from None
            # In float32: it begins with differences of nearly equal numbers.
            return engines[chosen](own, beside, device, True)

        model.reducer = reducer
    return model


def load_refiner(name: str = DEFAULT_MODEL, *, runtime: str = "auto", device: str = "auto") -> Model:
    """The refiner of a model: the card called NAME-refiner.json beside the model's own; always in float32, since what is taken from it is
    a small difference of large values. Raises InputError where there is none; the rest as `load_model`.
    """
    refiner_card(name)
    return load_model(str(refiner_path(name)), runtime=runtime, device=device, exact=True)


def state_of(name: str, *, refined: bool = False) -> str:
    """State (`Card.state`) of a model, and behind a plus that of its refiner where it takes part: what kept answers rest on."""
    own = load_card(name).state
    return f"{own}+{refiner_card(name).state}" if refined else own


def check_model(name: str, *, refined: bool = False, keep_noise: bool = False) -> None:
    """Raise what is wrong with the files of a model, without loading any: InputError where none is there, FileFormatError where one is not
    what its card says.   refined, keep_noise: whether those of its refiner count, and those of its noise reducer do not.
    """
    for path in (_card_path(name), refiner_path(name)) if refined else (_card_path(name),):
        card = Card.read(path)
        beside = path.stem + NOISE_SUFFIX
        files = [path.with_name(n) for n in card.sha256 if not (keep_noise and n.startswith(beside))]
        there = [f for f in files if f.is_file()]
        for file in there or [path.with_suffix(".onnx")]:
            check_weights(file, card)


def refiner_card(name: str) -> Card:
    """The card of a model's refiner, without loading it. Raises InputError where there is none, FileFormatError where it cannot be used."""
    own = refiner_path(name)
    model = own.stem.removesuffix(REFINER_SUFFIX)
    if model.endswith(REFINER_SUFFIX):
        raise InputError(f"model {model} is a refiner, which works beside a regressor: give --model {model.removesuffix(REFINER_SUFFIX)}")
    if not own.is_file():
        raise InputError(f"model {model} has no refiner ({own.name} would lie beside its card): leave --refine out, or train one")
    return Card.read(own)


def has_refiner(name: str) -> bool:
    """Whether `load_refiner` would find one. Raises InputError for a model that is not there."""
    return name != FULL_MODEL and refiner_path(name).is_file()


def refiner_path(name: str) -> Path:
    """Where the card of a model's refiner lies, if it has one. Raises InputError for a model that is not there."""
    path = _card_path(name)
    return path.with_name(f"{path.stem}{REFINER_SUFFIX}{CARD_SUFFIX}")


def _card_path(name: str) -> Path:
    if name in shipped_models():
        return _shipped_folder() / f"{name}{CARD_SUFFIX}"
    path = Path(name)
    if path.suffix in (".onnx", ".safetensors"):
        path = path.with_suffix(CARD_SUFFIX)
    if path.suffix == CARD_SUFFIX and path.is_file():
        return path
    weights = Path(name)
    if weights.is_file() and weights.suffix in (".onnx", ".safetensors"):
        raise InputError(f"model {name!r}: weights without their card; expected {path.name} beside them (gmodiff train export writes it)")
    known = ", ".join([*(m for m in shipped_models() if not m.endswith(REFINER_SUFFIX)), FULL_MODEL, NO_MODEL])
    missing = "there is no such file; " if path.suffix == CARD_SUFFIX else ""
    raise InputError(f"model {name!r}: {missing}expected {known}, or the card (.json) of a model with its weights beside it")


def _shipped_folder() -> Path:
    return Path(str(files("gmodiff"))) / WEIGHTS_FOLDER


def _installed_runtime() -> str:
    for name in ("openvino", "onnxruntime", "torch"):
        if find_spec(name) is not None:
            return name
    raise MissingDependencyError("no runtime for models is installed: pip install openvino (or onnxruntime, or torch), or use --model none")
