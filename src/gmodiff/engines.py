"""What runs a network: OpenVINO, ONNX Runtime or torch, each imported when a model is loaded with it."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gmodiff.errors import FileFormatError, InputError, MissingDependencyError, says_memory
from gmodiff.model_card import Arrays, Card, Model
from gmodiff.radiometry import F32
from gmodiff.tiling import threads


def openvino_package() -> Any:
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
    return openvino_package().Core()


class Engine(ABC):
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

    def rest(self) -> None:  # noqa: B027  (ONNX Runtime has no say in it)
        """Let go of working memory until asked again."""


class OpenVINO(Engine):
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
        self._lock = threading.Lock()
        """A request works for one thread, and its answers lie in it until they are taken: the page shares a model between merges."""

    @property
    def runtime(self) -> str:
        """See `Model`."""
        exact = "INFERENCE_PRECISION_HINT" in self._settings
        precision = "float32" if exact else "bfloat16 where the processor has it" if self._device == "CPU" else "its own precision"
        return f"OpenVINO on {self._device}, {precision}"

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """See `Model`."""
        with self._lock:
            return self._answer(inputs)

    def _answer(self, inputs: Arrays) -> dict[str, F32]:
        key = tuple((k, v.shape) for k, v in inputs.items())
        if key not in self._compiled:
            fixed = self._model.clone()
            fixed.reshape({k: list(v.shape) for k, v in inputs.items()})
            while len(self._compiled) > 1:  # programs hold memory; a picture's tiles have one size
                del self._compiled[next(iter(self._compiled))]
            try:
                with _memory_errors():
                    program = self._core.compile_model(fixed, self._device, self._settings)
                    self._compiled[key] = program, program.create_infer_request()
            except RuntimeError as error:
                raise InputError(f"OpenVINO cannot run model {self.card.name} on {self._device} ({_first_line(error)})") from None
        _, request = self._compiled[key]
        with _memory_errors():
            request.infer(dict(inputs), share_inputs=True)
        # Names of the graph as read: a compiled one may have given an output a second name.
        outputs = zip(self._names, request.model_outputs, strict=True)
        return {name: np.array(request.get_tensor(output).data, np.float32) for name, output in outputs}

    def rest(self) -> None:
        """See `Engine`."""
        with self._lock:
            for key, (program, _) in self._compiled.items():
                self._compiled[key] = program, program.create_infer_request()  # the old one holds the inputs that it shared
                program.release_memory()


class OnnxRuntime(Engine):
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


class Torch(Engine):
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

    def rest(self) -> None:
        """See `Engine`."""
        import torch

        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Every engine says in its own way that memory did not suffice."""
    try:
        yield
    except Exception as error:
        if says_memory(error):
            raise MemoryError(_first_line(error)) from None
        raise


def _missing(package: str, extra: str) -> MissingDependencyError:
    return MissingDependencyError(f"runtime {package} is not installed: pip install {extra}, or leave --runtime out")


def _not_loadable(path: Path, engine: str, error: Exception) -> FileFormatError:
    return FileFormatError(f"{path}: {engine} cannot load it ({_first_line(error)}): of another program, or of a newer ONNX opset")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]
