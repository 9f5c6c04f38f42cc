"""One set of a batch, from its photos to its picture, wherever it runs: a worker here, or a worker of a cluster."""

from __future__ import annotations

import errno
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gmodiff.batch.storage import deliver, fetched, name, sha256, stamp
from gmodiff.errors import GMODiffError, InputError

PREVIEW_PX = 360
"""Longer side of the picture in the report."""


@dataclass(frozen=True)
class Settings:
    """What makes a difference to a result; as the options of `gmodiff merge`. weights: state of the network's (`model_card.Card.state`),
    "" without one.
    """

    model: str = "compact"
    weights: str = ""
    runtime: str = "auto"
    device: str = "auto"
    exact: bool = False
    estimate_size: str = "auto"
    tile: int | None = None
    refine: float = 0.0
    keep_noise: bool = False
    response: str = "auto"
    align: bool = True
    look: str = "camera"
    headroom: float = 3.0
    base: str = "tonemap"
    quality: int = 95
    compact: bool = False
    strip: bool = False
    max_pixels: int = 250_000_000

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Job:
    """One set to make.

    output: its name in the manifest.   target: path or URL of the result.   photos: paths or URLs.   scratch: folder beside the results
    for unfinished files; None on machines that have their own.   ev, reference: as for `read_bracket`.   known: hashes of the photos of the
    result that is there, made with the same settings; None where it has to be made in any case.   bytes: estimated memory.
    """

    output: str
    target: str
    photos: tuple[str, ...]
    settings: Settings
    scratch: str | None = None
    ev: tuple[float, ...] | None = None
    reference: str | None = None
    known: tuple[str, ...] | None = None
    fresh: bool = False
    bytes: int = field(default=0, compare=False)

    def unread(self) -> list[dict[str, str]]:
        """Its photos as the manifest tells them, before any is looked at."""
        return [{"place": p, "stamp": "", "sha256": ""} for p in self.photos]

    def failed(self, reason: str) -> dict[str, Any]:
        """The outcome of a set that was never finished, for one line's reason."""
        return {"status": "failed", "error": reason, "photos": self.unread(), "seconds": 0.0, "peak_mb": None}


_MODELS: dict[tuple[Any, ...], Any] = {}
_ONE_AT_A_TIME = threading.Lock()  # a worker of a cluster may have several threads; memory is reckoned for one set a process


def make_set(job: Job) -> dict[str, Any]:
    """Merge a set and put its picture in its place; the outcome for the manifest, with "preview" (JPEG bytes) beside it.

    Never raises for what is wrong with one set: its outcome is "failed" with a line, and "full" where the disk was full.
    "kept" where the photos turn out to be those the result was made from.
    """
    with _ONE_AT_A_TIME:
        started, worked = time.monotonic(), time.process_time()
        outcome: dict[str, Any] = {"photos": job.unread()}
        try:
            outcome |= {"status": "done"} | _made(job, outcome["photos"])
        except GMODiffError as error:
            outcome |= {"status": "failed", "error": " ".join(str(error).split()), "full": _is_full(error)}
        except MemoryError:
            outcome |= {"status": "failed", "error": "not enough memory for photos of this size: fewer --workers, or smaller copies"}
        except Exception as error:  # a fault of this program in one set must not take the other five hundred along
            reason = " ".join(str(error).split())[:200]
            outcome |= {"status": "failed", "error": f"{type(error).__name__}: {reason}", "full": _is_full(error)}
        taken = {"seconds": round(time.monotonic() - started, 3), "cpu_seconds": round(time.process_time() - worked, 3)}
        return outcome | taken | {"peak_mb": peak_mb()}


def _made(job: Job, photos: list[dict[str, str]]) -> dict[str, Any]:
    from gmodiff.bracket import read_bracket
    from gmodiff.pipeline import reconstruct
    from gmodiff.writer import write

    for entry in photos:
        entry["stamp"] = stamp(entry["place"])  # before anything is read: what changes from here on is noticed
    with fetched(list(job.photos)) as local, TemporaryDirectory(dir=job.scratch, prefix="set-") as folder:
        for entry, file in zip(photos, local, strict=True):
            entry["sha256"] = sha256(file)
        if job.known is not None and job.known == tuple(p["sha256"] for p in photos):
            return {"kept": True}
        settings = job.settings
        bracket = read_bracket(
            local,
            ev=job.ev,
            reference=job.reference if job.reference is None else _local_name(job, local),
            response=settings.response,
            max_pixels=settings.max_pixels,
        )
        network = load_estimator(settings)
        image = reconstruct(
            bracket, network.estimates, align=settings.align, look=settings.look, base=settings.base, headroom=settings.headroom
        )
        made = Path(folder) / name(job.target)
        write(image, made, quality=settings.quality, compact=settings.compact, strip=settings.strip)
        facts = {"bytes": made.stat().st_size, "sha256": sha256(made), "result": _result(bracket, image, network)}
        preview = _preview(image)
        if any(stamp(p["place"]) != p["stamp"] for p in photos):
            raise InputError("a photo changed while it was being merged; run again when the card is no longer written to")
        deliver(made, job.target, fresh=job.fresh)
        return facts | {"preview": preview}


def _local_name(job: Job, local: list[Path]) -> str:
    """The reference as `read_bracket` knows it: a photo of a URL is a local file meanwhile."""
    for place, file in zip(job.photos, local, strict=True):
        if job.reference in (place, name(place)):
            return str(file)
    return str(job.reference)


def load_estimator(settings: Settings) -> Any:
    """The network of some settings, ready; loaded once a process. Raises InputError and its relatives."""
    from gmodiff.networks import load_network

    asked = {k: getattr(settings, k) for k in ("runtime", "device", "exact", "estimate_size", "tile", "refine", "keep_noise")}
    key = (settings.model, settings.weights, *asked.values())
    if key not in _MODELS:
        _MODELS.clear()  # settings change between batches, and a network holds memory
        _MODELS[key] = load_network(settings.model, **asked)
    return _MODELS[key]


def _result(bracket: Any, image: Any, network: Any) -> dict[str, Any]:
    """What a person wants to know of a picture among five hundred: the summary, without what the row says elsewhere."""
    from gmodiff.summary import summary

    facts = summary(bracket, image, network.model, outputs=[], seconds=0.0)
    known = [v for v in facts["disagreement_stops"] if v is not None]
    moved = max((a["shift_px"] for a in facts["alignment"]), default=0.0)
    kept = ("width", "height", "frames", "reference", "exposure_source", "response", "headroom_stops", "provenance", "notes")
    more = {"disagreement_stops": max(known) if known else None, "moved_px": round(moved, 1)}
    return {k: facts[k] for k in kept} | more | {"noise_reduced": image.metadata["noise_reduced"]}


def _preview(image: Any) -> bytes:
    """The SDR picture, small, as JPEG."""
    import cv2

    base = image.base
    scale = PREVIEW_PX / max(base.shape[:2])
    if scale < 1:
        size = (max(round(base.shape[1] * scale), 1), max(round(base.shape[0] * scale), 1))
        base = cv2.resize(base, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(base, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    return bytes(data.tobytes()) if done else b""


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            return True
        error = error.__cause__ or error.__context__
    return False


def peak_mb() -> int | None:
    """Most memory this process ever held, in megabytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3 / 1.024))
