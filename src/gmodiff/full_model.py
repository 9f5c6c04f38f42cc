"""The full-size model (`model.sd21`), loaded from the released files or a converted one, on the device and in the memory that there is.

torch and diffusers are imported when a model is loaded, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmodiff import machine
from gmodiff.errors import InputError, MissingDependencyError, says_memory
from gmodiff.full_estimate import MIN_TILE_PX, FullEstimator, check_tile
from gmodiff.model_card import FULL_MODEL, Arrays, Card, check_weights, sha256
from gmodiff.radiometry import F32

if TYPE_CHECKING:
    import torch

    from gmodiff.model.sd21 import Sd21

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("auto", "on", "off")
WEIGHTS = 1041e6
"""Numbers that the system holds (docs/full-model.md)."""
UNET_BATCH = 4
"""The UNet's tiles at once, at most, on a GPU that holds the whole system."""
ROOM_BYTES = 4e9
"""What a GPU should have free beside the weights; with less, parts wait in main memory until it is their turn."""

REGRESSOR_BYTES, FUSING_BYTES, STRIP_BYTES = 680.0, 340.0, 3050.0
"""Working memory of the regressor in float32: for a pixel of the picture, on the device or, while that is visited, in main memory; the same
while the frames are fused; and for a pixel of the strip that is fused, half as much later. Counted by torch (tests/test_full_model.py)."""
KEPT_BYTES, VAE_BYTES, UNET_BYTES = 80.0, 6300.0, 222e3
"""In float32 too: of what is kept beside the other parts, a pixel of the picture; of the VAE, a pixel of what it sees at once; of the UNet,
a latent of a tile. Measured (docs/full-model.md)."""
FEATURES_BYTES, TOKEN_BYTES = 736.0, 2 * 1280 * 4.0
"""The same of what the encoder keeps for the decoder where the picture is seen whole, a pixel; and of keys and values in the UNet's widest
attention to the context, a token of 32x32 pixels, for each tile at once. By their sizes."""
FIXED_BYTES = 0.5e9
"""Of libraries, and what they take to compute."""


class FullModel:
    """The full-size system, ready to run; a `model_card.Model`."""

    def __init__(self, card: Card, system: Sd21, *, exact: bool) -> None:
        self.card, self.system = card, system
        self._exact = exact

    @property
    def runtime(self) -> str:
        """See `Model`."""
        where = f"torch on {self.system.device}, {str(self.system.dtype).removeprefix('torch.')}"
        return f"{where}, parts waiting in main memory" if self.system.offload else where

    def estimator(self, tile_px: int | None = None) -> FullEstimator:
        """What the pipeline is given."""
        return FullEstimator(self, tile_px)

    def __call__(self, inputs: Arrays, *, tile_px: int | None = None, progress: Callable[[float], None] | None = None) -> dict[str, F32]:
        """The gain map of three frames.

        inputs: encoded (3, 3, H, W), 0..1, RGB, the short, middle and long frame, channels before rows; stops (3,), log2 exposure relative
        to the short frame.   tile_px: side of the VAE's tiles; None: the whole picture up to 2 megapixels.   Returns gain and regressed,
        (1, 3, H, W), 0..1: the refined gain map and the one before refinement; degradation, (1, 1, H, W), 0..1. Raises InputError for
        another shape, values that are not finite, tiles smaller than MIN_TILE_PX, or where memory does not suffice.
        """
        import torch

        encoded, stops = np.asarray(inputs["encoded"], np.float32), np.asarray(inputs["stops"], np.float32)
        if encoded.ndim != 4 or encoded.shape[:2] != (3, 3) or stops.shape != (3,):
            raise InputError(f"frames of shape {encoded.shape} with exposures of shape {stops.shape}: expected (3, 3, H, W) and (3,)")
        height, width = encoded.shape[2:]
        if height == 0 or width == 0:
            raise InputError(f"frames of shape {encoded.shape}: there is no pixel in them")
        if not all(np.isfinite(values.sum(dtype=np.float64)) for values in (encoded, stops)):
            raise InputError("frames or stops with values that are not finite: expected 0..1, and exposures in stops")
        if tile_px is not None:
            check_tile(tile_px, self.card.name)
        visiting = self._check_memory(height, width, tile_px)
        with (
            self._memory_errors(height, width, tile_px),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=not self._exact),
        ):
            found = self.system.refine(
                torch.from_numpy(np.ascontiguousarray(encoded)),
                torch.from_numpy(np.exp2(stops - stops[0])),
                vae_tile_px=tile_px,
                unet_batch=self._unet_batch(height, width, tile_px, visiting),
                visiting=visiting,
                progress=progress,
            )
        arrays = {"gain": found.gain, "regressed": found.regressed, "degradation": found.mask}
        return {name: values.numpy() for name, values in arrays.items()}

    # ---- memory ----

    def working_bytes(
        self,
        height: int,
        width: int,
        tile_px: int | None = None,
        unet_batch: int = 1,
        *,
        visiting: bool = False,
        offload: bool | None = None,
    ) -> float:
        """About what a picture takes on the device beside the weights that are there already: of the part that takes most.

        visiting: the regressor's pictures wait in main memory (`Sd21.refine`), which takes `waiting_bytes` there.   offload: parts do, and
        come in their turn; None: as the system is placed.
        """
        from gmodiff.model.dareg import STRIDE
        from gmodiff.model.sd21 import LATENT_PX, UNET_TILE, vae_side

        system, pixels = self.system, height * width
        side = tile_px or vae_side(height, width)
        seen = min(side, height) * min(side, width)
        whole = pixels / LATENT_PX**2 <= UNET_TILE**2
        latents = pixels / LATENT_PX**2 if whole else unet_batch * UNET_TILE**2
        tokens = pixels / STRIDE**2 * (1 if whole else unet_batch)
        offload = system.offload if offload is None else offload

        def coming(*parts: Any) -> float:
            """Weights that are brought in for a part of the work, where they wait in main memory until then."""
            return sum(p.numel() * p.element_size() for part in parts for p in part.parameters()) if offload else 0.0

        kept, size = KEPT_BYTES * pixels, self._relative_size
        features = FEATURES_BYTES * pixels if side >= max(height, width) else 0.0
        phases = (
            max(self.regressor_bytes(height, width, visiting=visiting), size * kept) + coming(system.dareg, system.context),
            size * (kept + VAE_BYTES * seen) + coming(system.gain_encoder, system.gain_decoder),
            size * (kept + features + UNET_BYTES * latents + TOKEN_BYTES * tokens) + coming(system.unet),
        )
        return max(phases) + FIXED_BYTES

    def regressor_bytes(self, height: int, width: int, *, visiting: bool = False) -> float:
        """What the regressor takes of that on the device, without its weights."""
        from gmodiff.model.dareg import fused_px

        strip, pixels = STRIP_BYTES * fused_px(height, width), height * width
        later = strip / 2 + REGRESSOR_BYTES * pixels
        return self._relative_size * (strip if visiting else max(strip + FUSING_BYTES * pixels, later))

    def waiting_bytes(self, height: int, width: int) -> float:
        """About what the regressor's pictures take in main memory while they visit the device."""
        return self._relative_size * REGRESSOR_BYTES * height * width + FIXED_BYTES

    @property
    def _relative_size(self) -> float:
        """Bytes of a number, in those of float32: 1, or 0.5 in half precision."""
        return next(self.system.parameters()).element_size() / 4

    def _unet_batch(self, height: int, width: int, tile_px: int | None, visiting: bool = False) -> int:
        """Tiles of the UNet at once: as many as there is room for, on a GPU that holds the whole system."""
        if self.system.device.type != "cuda" or self.system.offload:
            return 1
        free = 0.9 * (free_bytes(self.system.device) or 0.0)
        return next((n for n in range(UNET_BATCH, 1, -1) if self.working_bytes(height, width, tile_px, n, visiting=visiting) <= free), 1)

    def _check_memory(self, height: int, width: int, tile_px: int | None) -> bool:
        """Whether the regressor's pictures have to wait in main memory. Raises InputError where memory does not suffice even so."""
        free = free_bytes(self.system.device)
        if free is None or self.working_bytes(height, width, tile_px) <= free:
            return False
        if self._can_wait(height, width) and self.working_bytes(height, width, tile_px, visiting=True) <= free:
            return True
        raise InputError(self._too_little(height, width, tile_px, free))

    def _can_wait(self, height: int, width: int) -> bool:
        """Whether main memory is another than the device's, and has room for the regressor's pictures."""
        import torch

        if self.system.device.type != "cuda":
            return False
        free = free_bytes(torch.device("cpu"))
        return free is None or self.waiting_bytes(height, width) <= free

    @contextmanager
    def _memory_errors(self, height: int, width: int, tile_px: int | None) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if says_memory(error):
                raise InputError(self._too_little(height, width, tile_px, free_bytes(self.system.device))) from None
            raise

    def _too_little(self, height: int, width: int, tile_px: int | None, free: float | None) -> str:
        """What would fit, in one line."""
        from gmodiff.model.sd21 import vae_side

        device, visiting = self.system.device, self._can_wait(height, width)
        needed = self.working_bytes(height, width, tile_px, visiting=visiting)
        line = f"not enough memory on {device}: model {self.card.name} takes about {needed / 1e9:.1f} GB for {width}x{height} pixels"
        if free is None:
            return f"{line}; give --tile {MIN_TILE_PX}, or merge smaller copies"
        line += f", and {free / 1e9:.1f} GB are free"
        in_force = tile_px or vae_side(height, width)
        tiles = [t for t in (1024, 768, MIN_TILE_PX) if t < in_force]
        fits = next((t for t in tiles if self.working_bytes(height, width, t, visiting=visiting) <= 0.95 * free), None)
        if fits is not None:
            return f"{line}; --tile {fits} fits"
        if device.type == "cuda" and not self.system.offload:
            more = free + sum(p.numel() * p.element_size() for p in self.system.parameters())
            for tile in (in_force, *tiles):
                if self.working_bytes(height, width, tile, visiting=visiting, offload=True) <= 0.95 * more:
                    return f"{line}; --offload on{f' --tile {tile}' if tile != in_force else ''} fits"
        if device.type == "cuda" and not visiting and self.working_bytes(height, width, tile_px, visiting=True) <= free:
            room = self.waiting_bytes(height, width)
            return f"{line}; with {room / 1e9:.1f} GB free in main memory it would fit: close other programs, or use --model compact"
        pixels = self._most_pixels(height / max(width, 1), 0.95 * free, visiting)
        if pixels > 1e5:
            return f"{line}; photos of up to about {pixels / 1e6:.1f} megapixels fit with --tile {MIN_TILE_PX}, or use --model compact"
        return f"{line}; close other programs, or use --model compact"

    def _most_pixels(self, shape: float, free: float, visiting: bool) -> float:
        """Of a picture of this height over its width that fits with the smallest tiles."""
        least, most = 0.0, 1e10
        for _ in range(40):
            pixels = (least + most) / 2
            width = (pixels / max(shape, 1e-6)) ** 0.5
            fits = self.working_bytes(int(width * shape), int(width), MIN_TILE_PX, visiting=visiting) <= free
            least, most = (pixels, most) if fits else (least, pixels)
        return least


def free_bytes(device: torch.device) -> float | None:
    """Memory that is free on a device; None where nobody says."""
    import torch

    if device.type == "cuda":
        # What torch holds and does not use is free to it, though not to others.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "cpu":
        return float(machine.free_bytes())
    most = getattr(torch.mps, "recommended_max_memory", None) if device.type == "mps" else None
    return None if most is None else max(float(most() - torch.mps.current_allocated_memory()), 0.0)


# ---- loading ----------------------------------------------------------------------------------------------------------------


def load_full_model(
    card_path: Path | None = None,
    *,
    backbone: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    offload: str = "auto",
    stored_statistics: bool = False,
) -> FullModel:
    """The full-size model from the released files, or from one that `gmodiff convert` made.

    card_path: the card (.json) of a converted file, its weights beside it; None: backbone and weights are needed.   backbone: folder or hub
    id of Stable Diffusion 2.1 base.   weights: folder with the two released files.   device: auto, cpu, cuda, cuda:1, mps.   precision: one
    of PRECISIONS; auto is float32 on the processor and float16 elsewhere.   offload: one of OFFLOADS: parts wait in main memory until it is
    their turn; auto: where a GPU is small; on: only where a GPU has memory of its own.   stored_statistics: see `model.sd21.Context`.
    Raises InputError, FileFormatError or MissingDependencyError, each saying what to do.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected {', '.join(PRECISIONS)}")
    if offload not in OFFLOADS:
        raise InputError(f"offload {offload!r}: expected {', '.join(OFFLOADS)}")
    if card_path is None:
        missing = [o for o, v in (("--backbone PATH_OR_HUB_ID", backbone), ("--weights FOLDER", weights)) if v is None]
        if missing:
            raise InputError(
                f"--model {FULL_MODEL} needs {' and '.join(missing)}: nothing of it is in this package, see docs/full-model.md"
            )
    elif weights is not None:
        raise InputError(f"--weights {weights}: {card_path} has its weights beside it; leave --weights out, or give --model {FULL_MODEL}")
    try:
        import torch

        from gmodiff.model.released import DAREG_FILE, GMODIFF_FILE, read_released
        from gmodiff.model.sd21 import assemble
        from gmodiff.model.sd21_backbone import open_backbone
        from gmodiff.model.sd21_files import read_sd21
    except ImportError as error:
        raise MissingDependencyError(f'the full-size model needs {error.name or "torch"}: pip install "gmodiff[sd21]"') from None
    place, dtype = _device(device), _dtype(precision)
    if offload == "on" and place.type != "cuda":
        advice = "give --device cuda, or leave --offload out" if torch.cuda.is_available() else "leave --offload out"
        raise InputError(f"--offload on: device {place} computes in main memory; {advice}")
    if dtype is None:
        dtype = torch.float32 if place.type == "cpu" else torch.float16
    with _loading_memory(place, dtype, offload):
        if card_path is None:
            assert weights is not None
            assert backbone is not None
            folder = Path(weights)
            released = read_released(folder)
            system = assemble(open_backbone(backbone), released)
            card = released_card({name: sha256(folder / name) for name in (DAREG_FILE, GMODIFF_FILE)}, backbone)
        else:
            card = Card.read(card_path)
            file = card_path.with_suffix(".safetensors")
            check_weights(file, card)
            system = read_sd21(file, backbone)
        system.context.stored_statistics = stored_statistics
        parts_wait = offload == "on"
        if offload == "auto" and place.type == "cuda":
            held = sum(p.numel() for p in system.parameters()) * torch.empty(0, dtype=dtype).element_size()
            parts_wait = held + ROOM_BYTES > (free_bytes(place) or 0)
        system.place(place, dtype, offload=parts_wait)
    return FullModel(card, system, exact=dtype == torch.float32)


def released_card(hashes: dict[str, str], backbone: str | None) -> Card:
    """What is known of the released weights. backbone: where it came from, by its last name or its hub id."""
    facts: dict[str, Any] = {
        "backbone": None if backbone is None else Path(backbone).resolve().name if Path(backbone).exists() else backbone,
        "licence": "that of the weights and of the backbone; ask their authors",
    }
    about = "the full-size system of the paper (arXiv 2512.16357), one step of Stable Diffusion 2.1 on the regressor's gain map"
    return Card(FULL_MODEL, about, hashes, max_frames=3, stride=32, halo_px=32, gain_limit=1.0, kind=FULL_MODEL, facts=facts)


def _device(name: str) -> torch.device:
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    gpu = "cuda" if cuda else "mps" if mps else "cpu"
    kind = name.lower().split(":")[0]
    if kind == "mps" and not mps:
        raise InputError(f"device {name!r}: no Apple GPU here: leave --device out")
    if kind == "cuda" and not cuda and torch.version.cuda is None:
        raise InputError(f"device {name!r}: this torch has no CUDA ({torch.__version__}): install a CUDA build, or leave --device out")
    if kind == "cuda" and not cuda:
        raise InputError(f"device {name!r}: no NVIDIA GPU here, or none that torch {torch.__version__} can use: leave --device out")
    try:
        device = torch.device(gpu if name == "auto" else name.lower())
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not tried")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["it is not there"])[0].partition(": ")[0] if kind in ("cuda", "mps") else "not tried"
        there = f"; there are {torch.cuda.device_count()} GPUs, cuda:0 the first" if kind == "cuda" else ""
        raise InputError(f"device {name!r}: torch cannot use it ({reason}){there}; expected cpu, cuda, cuda:1 or mps") from None
    return device


def _dtype(precision: str) -> torch.dtype | None:
    import torch

    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)


@contextmanager
def _loading_memory(place: torch.device, dtype: torch.dtype, offload: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if says_memory(error):
            if place.type in str(error).lower():  # "CUDA out of memory", "MPS backend out of memory": not main memory
                advice = "--offload auto keeps parts of them in main memory; or " if offload == "off" and place.type == "cuda" else ""
                name = str(dtype).removeprefix("torch.")
                raise InputError(
                    f"not enough memory on {place} to load model {FULL_MODEL}: its weights take {WEIGHTS * dtype.itemsize / 1e9:.1f} GB in "
                    f"{name}; {advice}close other programs, or use --model compact"
                ) from None
            raise InputError(
                f"not enough memory to load model {FULL_MODEL}: its weights take 4.2 GB in float32, and about twice that while they are "
                "loaded; close other programs, or use --model compact"
            ) from None
        raise
