"""Metrics beyond those of every row: gradient similarity, and what needs torch: ColorVideoVDP's JOD, LPIPS and DISTS through piq, and
no-reference scores through pyiqa.

None of these is imported before it is asked for, and what is missing is said in one line. Nothing is ever downloaded by LPIPS and
DISTS: their weights must lie in torch's own cache already. pyiqa is under a non-commercial licence, so no extra of this project installs
it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gmodiff.datasets.scene import Mask
from gmodiff.errors import InputError, MissingDependencyError
from gmodiff.evaluate.metrics import ExtraMetric, GradientSimilarity, compress
from gmodiff.radiometry import F32
from gmodiff.tiling import threads

DISPLAY = "standard_hdr_linear"
"""ColorVideoVDP's name of the display: 30 inches, 4K, 10 lux, seen from two picture heights (75.4 pixels a degree)."""
PEAK_NITS = 10000.0
"""Its peak is raised from 1500 cd/m2: a short frame's white may be at 3248 (16 times the reference's), and what a display cuts off
nobody would see."""

NO_REFERENCE = ("musiq", "maniqa", "clipiqa")
NAMES = ("jod", "gms", "lpips", "dists", *NO_REFERENCE)

VGG_FILE = "vgg16-397923af.pth"
PIQ_FILES = {"lpips": "lpips_weights.pt", "dists": "dists_weights.pt"}


def load(name: str) -> ExtraMetric:
    """One of NAMES, ready to use.

    Raises MissingDependencyError where a package is missing, InputError where weights are, or where the name is unknown.
    """
    if name == "jod":
        return JOD()
    if name == GradientSimilarity.name:
        return GradientSimilarity()
    if name in PIQ_FILES:
        return PiqMetric(name)
    if name in NO_REFERENCE:
        return PyiqaMetric(name)
    raise InputError(f"metric {name!r}: expected one of {', '.join(NAMES)} (PSNR, SSIM and PU21 are always there)")


class JOD:
    """ColorVideoVDP (Mantiuk et al. 2024): 10 is indistinguishable, one less is one just-objectionable difference.

    Inside a mask: the mean over its pixels of ColorVideoVDP's own map of differences, as JOD.
    """

    name, needs_truth = "jod", True

    def __init__(self, display: str = DISPLAY) -> None:
        torch = _torch("cvvdp")
        import_torchvision()
        try:
            with _quiet(), _interrupted_later():
                import pycvvdp
        except ImportError:
            raise MissingDependencyError('JOD needs ColorVideoVDP: pip install "gmodiff[evaluate]"') from None
        with _quiet():
            known = pycvvdp.vvdp_display_photometry.load(display, [])
            photometry = pycvvdp.vvdp_display_photo_eotf(
                PEAK_NITS,
                known.contrast * PEAK_NITS / known.Y_peak,  # its black stays where it was
                "BT.709-linear",
                E_ambient=known.E_ambient,
                name=f"{display} with its peak raised to {PEAK_NITS:g} cd/m2",
            )
            self._metric = pycvvdp.cvvdp(
                display_name=display, display_photometry=photometry, heatmap="raw", quiet=True, device=torch.device("cpu")
            )
        self._torch = torch
        version = (
            str(self._metric.get_info_string()).replace('"', "").replace("(custom-display: unspecified)", f"({display}, its peak raised)")
        )
        self.settings = f"{version}; BT.709, cut to the short frame's white; 1.0 = the scale of pu21; in masks: mean of its map"

    def __call__(self, estimate: F32, truth: F32, masks: Mapping[str, Mask], white_nits: float) -> dict[str, float | None]:
        """See `metrics.ExtraMetric`."""
        pair = [self._torch.from_numpy(np.ascontiguousarray(p * np.float32(white_nits))) for p in (estimate, truth)]
        with self._torch.no_grad(), _quiet():
            value, stats = self._metric.predict(*pair, dim_order="HWC")
        found: dict[str, float | None] = {"jod": float(value)}
        local = 10 - 10 * stats["heatmap"].squeeze().numpy().astype(np.float32)
        for name, mask in masks.items():
            if name:
                found[f"jod/{name}"] = float(local[mask].mean(dtype=np.float64)) if mask.any() else None
        return found


class PiqMetric:
    """LPIPS (Zhang et al. 2018, VGG) or DISTS (Ding et al. 2020) of the mu-compressed pictures, through piq; 0 is identical.

    network: piq's own module.
    """

    needs_truth = True

    def __init__(self, name: str) -> None:
        torch = _torch("piq")
        import_torchvision()
        try:
            with _quiet():
                import piq
        except ImportError:
            raise MissingDependencyError(f'{name} needs piq: pip install "gmodiff[evaluate]"') from None
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        missing = [f for f in (VGG_FILE, PIQ_FILES[name]) if not (folder / f).is_file()]
        if missing:
            raise InputError(f"{name} needs the weights {' and '.join(missing)} in {folder} (nothing is downloaded here): put them there")
        with _quiet():
            self.network = (piq.LPIPS if name == "lpips" else piq.DISTS)().eval()
        self._torch = torch
        self.name, self.settings = name, f"piq {piq.__version__}, VGG-16, on mu 5000 pictures"

    def __call__(self, estimate: F32, truth: F32, masks: Mapping[str, Mask], white_nits: float) -> dict[str, float | None]:
        """See `metrics.ExtraMetric`; whole picture only."""
        pair = [_planes(self._torch, p) for p in (estimate, truth)]
        with self._torch.no_grad(), _quiet():
            return {self.name: float(self.network(*pair))}


class PyiqaMetric:
    """A score of the estimate alone (MUSIQ, MANIQA, CLIPIQA), of its mu-compressed picture, through pyiqa; higher is better."""

    needs_truth = False

    def __init__(self, name: str) -> None:
        torch = _torch("pyiqa")
        import_torchvision()
        try:
            with _quiet():
                import pyiqa
        except ImportError:
            raise MissingDependencyError(
                f"{name} needs pyiqa, which this project does not install because its licence is non-commercial: pip install pyiqa"
            ) from None
        try:
            with _quiet():
                self._metric = pyiqa.create_metric(name, device="cpu")
        except Exception as error:  # whatever a missing hub, file or network makes of it
            raise InputError(
                f"{name}: pyiqa cannot load it ({(str(error).splitlines() or [type(error).__name__])[0]}): are its weights there?"
            ) from None
        self._torch = torch
        self.name, self.settings = name, f"pyiqa {getattr(pyiqa, '__version__', '?')}, no reference, on mu 5000 pictures"

    def __call__(self, estimate: F32, truth: F32, masks: Mapping[str, Mask], white_nits: float) -> dict[str, float | None]:
        """See `metrics.ExtraMetric`; truth is not looked at."""
        with self._torch.no_grad(), _quiet():
            return {self.name: float(self._metric(_planes(self._torch, estimate)))}


def _planes(torch: Any, relative: F32) -> Any:
    """(H, W, 3) relative radiance to a (1, 3, H, W) tensor of the mu-compressed picture."""
    return torch.from_numpy(np.ascontiguousarray(compress(relative).transpose(2, 0, 1)))[None]


def _torch(package: str) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingDependencyError(f'{package} needs torch: pip install "gmodiff[evaluate]"') from None
    torch.set_num_threads(threads())
    # It tells of a CUDA compiler without a GPU whenever a metric is loaded; none of them compiles anything.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return torch


class _quiet(warnings.catch_warnings):
    """Other people's deprecation warnings are not our user's."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Ctrl-C waits until the end of the block: pycvvdp swallows it while it imports what it can do without."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked:
        raise KeyboardInterrupt


_kept: list[Any] = []


def import_torchvision() -> None:
    """Import torchvision, also where its compiled half was built for another torch.

    An index that serves a CUDA build of torchvision beside a CPU build of torch gives one whose operators do not load, and importing it
    fails on the first of them. The metrics here use none; declaring the two that torchvision describes at import is enough.
    """
    with _quiet():
        try:
            import torchvision
        except ImportError:
            raise MissingDependencyError('this metric needs torchvision: pip install "gmodiff[evaluate]"') from None
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
                del sys.modules[module]
            torch = _torch("torchvision")
            library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)  # its definitions go when it does
            import torchvision  # noqa: F401
