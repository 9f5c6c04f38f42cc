"""Run a trained network where the user is: OpenVINO on the processor, ONNX Runtime where there is no OpenVINO, torch when asked.

A model is a card (what it is, what made it, the hash of its weights) and a function from named arrays to named arrays; the pipeline
never knows what runs behind it. Nothing here is imported, and no engine is loaded, before somebody asks for a model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError
from gmodiff.radiometry import F32
from gmodiff.tiling import threads

RUNTIMES = ("auto", "openvino", "onnxruntime", "torch")
DEFAULT_MODEL = "compact"
FULL_MODEL = "sd21"
"""Name of the full-size model, and what the cards of files converted from it say they are."""
NO_MODEL = "none"
"""What the command calls the classical merge alone."""
KINDS = ("regressor", "refiner", FULL_MODEL)
REFINER_ANSWER = "change"
"""What a refiner was trained to answer: the change that denoising makes, put on the estimate. Cards and weights that do not say so are
older, and were trained for decode(x0) alone."""
CARD_SUFFIX = ".json"
CARD_FORMAT = "gmodiff-card-1"
WEIGHTS_FOLDER = "weights"
REFINER_SUFFIX = "-refiner"
NOISE_SUFFIX = "-noise"
"""Of the name of a regressor's files, those of the network that reduces noise beside it; they have no card of their own."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Card:
    """What a model is.

    name, about: for people.   sha256: file name to the hash of its content.   max_frames: most frames of a bracket that it takes.
    stride: sides of its input are multiples of it.   halo_px: how far around a pixel it has to see.
    kind: "regressor"; "refiner", which works beside one; or FULL_MODEL, which does both.
    facts: everything else the file says: data, licences, hours, hardware, scores, recipe.
    """

    name: str
    about: str
    sha256: Mapping[str, str]
    max_frames: int
    stride: int
    halo_px: int
    gain_limit: float
    kind: str = "regressor"
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights: rows of an evaluation carry them."""
        return hashlib.sha256(json.dumps(dict(self.sha256), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Name and fingerprint, as files are signed: two models may have one name. The name alone where the card names no weights."""
        return f"{self.name} {self.fingerprint}" if self.sha256 else self.name

    @staticmethod
    def read(path: Path) -> Card:
        """Raises FileFormatError where the file is not a card of ours."""
        try:
            stored = json.loads(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError("no JSON object")
            if stored.pop("format") != CARD_FORMAT:
                raise ValueError("another format")
            known = {k: stored.pop(k) for k in ("name", "about", "sha256", "max_frames", "stride", "halo_px", "gain_limit")}
            card = Card(**known, kind=stored.pop("kind", "regressor"), facts=stored)
            if card.kind not in KINDS:
                raise ValueError(f"kind {card.kind!r}: this version knows {', '.join(KINDS)}")
            if card.kind == "refiner" and not (0 <= stored["threshold"] < 1 and isinstance(stored["guide"], str)):
                raise ValueError("threshold out of range, or no guide")
            beside = stored.get("noise")
            if beside is not None:
                if not isinstance(beside, dict):
                    raise ValueError(f"noise is {beside!r}, expected what is known of a noise reducer")
                sizes = [beside[k] for k in ("stride", "halo_px")]
                if card.kind != "regressor" or not all(type(n) is int and n > 0 for n in sizes) or sizes[1] % sizes[0]:
                    raise ValueError("a noise reducer of no regressor, or its stride or halo_px out of range")
            if card.kind == "refiner" and stored.get("answer") != REFINER_ANSWER:
                raise FileFormatError(f"{path}: a refiner of an older version, which answered otherwise: train it again")
            whole = (card.max_frames, card.stride, card.halo_px)
            if not (isinstance(card.sha256, dict) and all(type(n) is int and n > 0 for n in whole) and card.max_frames > 2):
                raise ValueError("max_frames, stride or halo_px out of range")
            number = isinstance(card.gain_limit, (int, float))
            if card.halo_px % card.stride or not number or not 0 < card.gain_limit < 10:
                raise ValueError("halo_px is no multiple of stride, or gain_limit out of range")
            return card
        except OSError as error:
            raise FileFormatError(
                f"{path}: cannot be read ({error.strerror}); expected a model card (.json), see gmodiff train export"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FileFormatError(f"{path}: not a model card of this program ({why}); export or copy it again") from None


class Model(Protocol):
    """A network, ready to run."""

    @property
    def card(self) -> Card:
        """What it is."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it, in words."""
        ...

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """Arrays by name; see `model.on_arrays` for the compact model's."""
        ...


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
    engines: dict[str, Callable[[Card, Path, str, bool], _Engine]] = {
        "openvino": _OpenVINO,
        "onnxruntime": _OnnxRuntime,
        "torch": _Torch,
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
    return load_model(str(_refiner_path(name)), runtime=runtime, device=device, exact=True)


def refiner_card(name: str) -> Card:
    """The card of a model's refiner, without loading it. Raises InputError where there is none, FileFormatError where it cannot be used."""
    own = _refiner_path(name)
    model = own.stem.removesuffix(REFINER_SUFFIX)
    if model.endswith(REFINER_SUFFIX):
        raise InputError(f"model {model} is a refiner, which works beside a regressor: give --model {model.removesuffix(REFINER_SUFFIX)}")
    if not own.is_file():
        raise InputError(f"model {model} has no refiner ({own.name} would lie beside its card): leave --refine out, or train one")
    return Card.read(own)


def has_refiner(name: str) -> bool:
    """Whether `load_refiner` would find one. Raises InputError for a model that is not there."""
    return name != FULL_MODEL and _refiner_path(name).is_file()


def _refiner_path(name: str) -> Path:
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


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_weights(path: Path, card: Card) -> None:
    """Raise FileFormatError unless a file's content is what the card says, InputError where it is not there."""
    wanted = card.sha256.get(path.name)
    if wanted is None:
        named = ", ".join(sorted(card.sha256)) or "no file"
        raise InputError(f"model {card.name}: this runtime needs {path.name}, and the card names {named}; name the card as its files are")
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the weights of model {card.name} belong there") from None
    if found != wanted:
        raise FileFormatError(
            f"{path}: not the weights that the card of model {card.name} names (sha256 {found[:12]}, expected {wanted[:12]}): "
            "install or copy it again"
        )


def _installed_runtime() -> str:
    for name in ("openvino", "onnxruntime", "torch"):
        if find_spec(name) is not None:
            return name
    raise MissingDependencyError("no runtime for models is installed: pip install openvino (or onnxruntime, or torch), or use --model none")


def _missing(package: str, extra: str) -> MissingDependencyError:
    return MissingDependencyError(f"runtime {package} is not installed: pip install {extra}, or leave --runtime out")


# ---- engines --------------------------------------------------------------------------------------------------------------


def _openvino() -> Any:
    """The package, imported without its telemetry: that would write an identifier into the home folder and report the import to an
    analytics host. Where it cannot be imported, OpenVINO goes without (openvino.tools.ovc.telemetry_stub). Raises ImportError.
    """
    name = "openvino_telemetry"
    had = name in sys.modules
    if not had:
        sys.modules[name] = None  # type: ignore[assignment]  # what Python takes for "cannot be imported"
    try:
        import openvino

        return openvino
    finally:
        if not had:
            sys.modules.pop(name, None)  # another thread may have been here


@cache
def _core() -> Any:
    """OpenVINO itself, one for as long as the process lives. Raises ImportError.

    Its CPU plugin gives the thread that loads it a stack for signal handlers, and frees that stack in whichever thread lets the plugin go:
    were that another one, the next signal (Ctrl-C, or a child process that ends) would kill the process.
    """
    return _openvino().Core()


class _Engine(ABC):
    """What runs a network. reducer: loads the one that works beside a regressor where the reference measured; None for none."""

    card: Card
    reducer: Callable[[], Model] | None = None

    @cached_property
    def noise_reducer(self) -> Model | None:
        """The network beside this one, loaded when first asked for. Raises what `load_model` does."""
        return None if self.reducer is None else self.reducer()

    @property
    @abstractmethod
    def runtime(self) -> str:
        """See `Model`."""

    @abstractmethod
    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """See `Model`."""


class _OpenVINO(_Engine):
    """OpenVINO; one compiled program per shape of input, since fixed shapes run faster and in less memory."""

    def __init__(self, card: Card, weights: Path, device: str, exact: bool) -> None:
        try:
            self._core = _core()
        except ImportError:
            raise _missing("openvino", "openvino") from None
        self.card = card
        self._device = "CPU" if device == "auto" else device.upper()
        there = self._core.available_devices
        # Where there is more than one GPU they are listed as GPU.0 and GPU.1, and "GPU" means the first.
        kinds = {d.split(".")[0] for d in there}
        if self._device not in (*there, *kinds) and self._device.split(".")[0] not in there:
            raise InputError(f"device {device!r}: this OpenVINO has {', '.join(there)}; try --runtime torch or onnxruntime")
        try:
            self._model = self._core.read_model(str(weights))
        except RuntimeError as error:
            raise _not_loadable(weights, "OpenVINO", error) from None
        self._names = [output.get_any_name() for output in self._model.outputs]
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if exact else {}
        self._settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads()} if self._device == "CPU" else {}
        self._compiled: dict[tuple[Any, ...], Any] = {}

    @property
    def runtime(self) -> str:
        """See `Model`."""
        exact = "INFERENCE_PRECISION_HINT" in self._settings
        precision = "float32" if exact else "bfloat16 where the processor has it" if self._device == "CPU" else "its own precision"
        return f"OpenVINO on {self._device}, {precision}"

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """See `Model`."""
        key = tuple((k, v.shape) for k, v in inputs.items())
        if key not in self._compiled:
            fixed = self._model.clone()
            fixed.reshape({k: list(v.shape) for k, v in inputs.items()})
            while len(self._compiled) > 1:  # programs hold memory; a picture's tiles have one size
                del self._compiled[next(iter(self._compiled))]
            try:
                with _memory_errors():
                    self._compiled[key] = self._core.compile_model(fixed, self._device, self._settings).create_infer_request()
            except RuntimeError as error:
                raise InputError(f"OpenVINO cannot run model {self.card.name} on {self._device} ({_first_line(error)})") from None
        request = self._compiled[key]
        with _memory_errors():
            request.infer(dict(inputs), share_inputs=True)
        # Names of the graph as read: a compiled one may have given an output a second name.
        outputs = zip(self._names, request.model_outputs, strict=True)
        return {name: np.array(request.get_tensor(output).data, np.float32) for name, output in outputs}


class _OnnxRuntime(_Engine):
    """ONNX Runtime with the best provider that is there."""

    PROVIDERS = ("CUDAExecutionProvider", "CoreMLExecutionProvider", "DmlExecutionProvider", "CPUExecutionProvider")

    def __init__(self, card: Card, weights: Path, device: str, exact: bool) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise _missing("onnxruntime", "onnxruntime") from None
        self.card = card
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 4
        there = onnxruntime.get_available_providers()
        wanted = [p for p in self.PROVIDERS if p in there]
        if device != "auto":
            wanted = [p for p in there if p.lower() == f"{device}ExecutionProvider".lower()]
            wanted += [] if wanted == ["CPUExecutionProvider"] else ["CPUExecutionProvider"] * bool(wanted)
        if not wanted:
            raise InputError(f"device {device!r}: this ONNX Runtime has {', '.join(p.removesuffix('ExecutionProvider') for p in there)}")
        try:
            chosen = [(p, {"use_tf32": "0"}) if p == "CUDAExecutionProvider" else p for p in wanted]  # float32 is what we say it is
            self._session = onnxruntime.InferenceSession(str(weights), options, providers=chosen)
        except Exception as error:
            raise _not_loadable(weights, "ONNX Runtime", error) from None
        self._names = [o.name for o in self._session.get_outputs()]

    @property
    def runtime(self) -> str:
        """See `Model`."""
        return f"ONNX Runtime on {self._session.get_providers()[0].removesuffix('ExecutionProvider')}, float32"

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """See `Model`."""
        with _memory_errors():
            return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))


class _Torch(_Engine):
    """Torch, for machines with a GPU that has it already."""

    def __init__(self, card: Card, weights: Path, device: str, exact: bool) -> None:
        try:
            import safetensors  # noqa: F401  (reads the weights, later)
            import torch

            from gmodiff.model.on_arrays import OnArrays
        except ImportError:
            raise _missing("torch", '"gmodiff[torch]"') from None
        self.card = card
        gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            self._device = torch.device(gpu if device == "auto" else device)
            self._network = OnArrays.read(card.kind, weights).to(self._device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {device!r}: torch cannot use it ({_first_line(error)})") from None
        self._autocast = self._device.type == "cuda" and not exact

    @property
    def runtime(self) -> str:
        """See `Model`."""
        return f"torch on {self._device}, {'bfloat16' if self._autocast else 'float32'}"

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """See `Model`."""
        import torch

        given = {k: torch.from_numpy(np.ascontiguousarray(v)).to(self._device) for k, v in inputs.items()}
        with (
            _memory_errors(),
            torch.no_grad(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
            # Otherwise convolutions in float32 keep 10 bits of every factor (TF32), and algorithms are chosen by the clock.
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            found = self._network.by_name(given)
        return {k: v.float().cpu().numpy() for k, v in found.items()}


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Every engine says in its own way that memory did not suffice."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if any(word in str(error).lower() for word in ("alloc", "out of memory", "not enough memory")):
            raise MemoryError(_first_line(error)) from None
        raise


def _not_loadable(path: Path, engine: str, error: Exception) -> FileFormatError:
    return FileFormatError(f"{path}: {engine} cannot load it ({_first_line(error)}): of another program, or of a newer ONNX opset")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
