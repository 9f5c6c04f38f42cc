"""What is behind the routes: jobs that are asked for, what they leave, files that are checked; and when all of it goes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from gmodiff.errors import GMODiffError, InputError
from gmodiff.image import MAX_FRAMES, MIN_FRAMES, HDRImage
from gmodiff.inspection import describe
from gmodiff.reader import read
from gmodiff.web import pictures
from gmodiff.web.merging import RENDITION_BYTES_PER_PIXEL, Ingredients, Models, Rendering, Wanted, prepare, render
from gmodiff.web.pictures import Picture, in_file
from gmodiff.web.queue import RUNNING, WAITING, Job, Queue
from gmodiff.web.workspace import KEPT_S, Upload, Workspace, remove_folder, told_as

MAX_QUEUE = 200
GONE = "this merge is not here any more: merge the photos again"
CHECK = "check-"
"""How the ids of files that were checked begin."""
FILE_BYTES_PER_PIXEL = 14
"""Most that a picture takes as a file: EXR of floats; others take far less."""
RENDITIONS_KEPT = 3
"""Of one merge; older ones are removed when a setting makes another."""


class Strict(BaseModel):
    """A request body whose fields are all known."""

    model_config = ConfigDict(extra="forbid")


class Settings(Strict):
    """Of a rendition; see `merging.Rendering`."""

    look: str = "camera"
    base: str = "tonemap"
    headroom: float = 3.0
    network: float = 1.0
    refine: float = 0.0

    def rendering(self) -> Rendering:
        """Checked."""
        return Rendering(**self.model_dump())


class MergeWanted(Strict):
    """photos: ids.   ev: stops of each, brighter = higher; reference: one of the ids."""

    photos: list[str]
    ev: list[float] | None = None
    reference: str | None = None
    align: bool = True
    settings: Settings = Settings()


@dataclass
class _Kept:
    """What one merge left: for renditions to come, and the latest of them. making: held while one is made."""

    ingredients: Ingredients
    folder: Path
    pictures: list[str]
    making: threading.Lock = field(default_factory=threading.Lock)


class Page:
    """Everything behind the routes: workspace, queue, pictures. One a server."""

    def __init__(self, workspace: Workspace, models: Models, *, at_once: int = 1) -> None:
        self.workspace, self.models = workspace, models
        self.queue = Queue(at_once=at_once, explain=workspace.in_users_words)
        self.pictures: dict[str, Picture] = {}
        self._kept: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self._checking = threading.Semaphore(2)  # files decoded or encoded at once
        self.closing = threading.Event()
        threading.Thread(target=self._tidy, name="tidy", daemon=True).start()

    def close(self) -> None:
        """End all jobs and remove all files; a second time there is nothing to do."""
        self.closing.set()
        self.queue.close()
        self.workspace.close()

    def merge(self, asked: MergeWanted) -> Job:
        """Put a merge into the queue. Raises InputError for what can be seen to be wrong without reading a pixel."""
        uploads = self.workspace.hold(asked.photos)
        try:
            job, wanted = self._asked(asked, uploads)
        except BaseException:
            self.workspace.release(uploads)
            raise
        return self.queue.submit(job, lambda job: self._merge(job, wanted), after=lambda: self.workspace.release(uploads))

    def _asked(self, asked: MergeWanted, uploads: tuple[Upload, ...]) -> tuple[Job, Wanted]:
        if not MIN_FRAMES <= len(uploads) <= MAX_FRAMES:
            raise InputError(f"a bracket has {MIN_FRAMES} to {MAX_FRAMES} photos, these are {len(uploads)}")
        if len(set(asked.photos)) != len(asked.photos):
            raise InputError("a photo is in this bracket twice: take it out once")
        if asked.reference is not None and asked.reference not in asked.photos:
            raise InputError("the reference is not one of the photos that are used: choose another")
        if asked.ev is not None and len(asked.ev) != len(uploads):
            raise InputError(f"{len(asked.ev)} exposures for {len(uploads)} photos: fill in all of them, or none")
        if asked.ev is not None and not all(math.isfinite(v) and abs(v) <= 40 for v in asked.ev):
            raise InputError("exposures must be numbers from -40 to 40 stops")
        self._check_queue()
        wanted = Wanted(
            uploads,
            None if asked.ev is None else tuple(asked.ev),
            None if asked.reference is None else asked.photos.index(asked.reference),
            asked.settings.rendering(),
            asked.align,
        )
        self.workspace.check_room(wanted.bytes())
        title = f"{uploads[0].name} and {len(uploads) - 1} more"
        about = {"photos": asked.photos, "names": [u.name for u in uploads], "settings": asked.settings.model_dump()}
        return Job("merge", title, about), wanted

    def render(self, key: str, settings: Settings) -> Job:
        """Put a new rendition of a finished merge into the queue."""
        rendering = settings.rendering()
        job = self.queue.get(key)
        if job is None or key not in self._kept:
            raise InputError(GONE)
        self._check_queue()
        for old in self._renders(key):
            if old.ended is not None:
                self.queue.forget(old.id)
        about = {"of": key, "settings": settings.model_dump()}
        return self.queue.submit(Job("render", job.title, about), lambda again: self._render(again, job, rendering))

    def check(self, path: Path, name: str) -> Picture:
        """A file of anybody's as a picture, with its facts. The file goes with the picture. Raises what `read` raises, naming it."""
        folder = self.workspace.new_folder("check")
        place = folder / f"file{path.suffix}"
        path.replace(place)
        try:
            with self._checking:
                image = read(place, max_pixels=self.workspace.limits.pixels)
                facts = describe(place, image)
                with self.workspace.room(RENDITION_BYTES_PER_PIXEL * image.radiance[..., 0].size, folder):
                    image = _in_files(image, folder)
        except GMODiffError as error:
            remove_folder(folder)
            raise type(error)(told_as(str(error), place, name)) from None
        except BaseException:
            remove_folder(folder)
            raise
        notes = [told_as(n, place, name) for n in facts["notes"]]
        picture = Picture(folder.name, image, folder, {"check": facts | {"file": name, "notes": notes}}, name=Path(name).stem or "picture")
        with self._lock:
            self.pictures[picture.id] = picture
        self._forget_checks()
        return picture

    def picture(self, key: str) -> Picture:
        """A picture by its id. Raises InputError where it is gone."""
        with self._lock:
            if key not in self.pictures:
                raise InputError(pictures.GONE)
            self.pictures[key].touched = time.time()
            return self.pictures[key]

    def forget_check(self, key: str) -> None:
        """Drop a file that was checked; pictures of merges stay, and go with them."""
        with self._lock:
            gone = self.pictures.pop(key, None) if key.startswith(CHECK) else None
        if gone is not None:
            gone.gone = True
            remove_folder(gone.folder)

    def forget(self, key: str) -> None:
        """Drop a job, its renditions, its pictures and its files."""
        self.queue.forget(key)
        for again in self._renders(key):
            self.queue.forget(again.id)
        with self._lock:
            kept = self._kept.pop(key, None)
            for name in kept.pictures if kept else ():
                self.pictures.pop(name).gone = True
        if kept is not None:
            remove_folder(kept.folder)
            _give_back_memory()

    def written(self, key: str, suffix: str, *, quality: int, compact: bool, strip: bool) -> BinaryIO:
        """A picture as a file, opened. Raises InputError where it is gone, or there is no room for the file."""
        picture = self.picture(key)
        found = picture.made(suffix, quality=quality, compact=compact, strip=strip)
        if found is not None:
            return found
        with self._checking, self.workspace.room(FILE_BYTES_PER_PIXEL * picture.image.radiance[..., 0].size, picture.folder):
            return picture.written(suffix, quality=quality, compact=compact, strip=strip)

    def _check_queue(self) -> None:
        if sum(j.state in (WAITING, RUNNING) for j in self.queue.jobs()) >= MAX_QUEUE:
            raise InputError(f"{MAX_QUEUE} merges are waiting already: wait for some of them, or use gmodiff batch")

    def _renders(self, key: str) -> list[Job]:
        return [j for j in self.queue.jobs() if j.kind == "render" and j.about["of"] == key]

    def _merge(self, job: Job, wanted: Wanted) -> None:
        folder = self.workspace.new_folder("merge")
        try:
            with self.workspace.room(wanted.bytes(), folder):
                found = prepare(wanted, folder, self.workspace.limits.pixels, job.report)
                first = folder / "rendition-0"
                first.mkdir()
                picture = render(found, wanted.rendering, self.models, first, job.report)
            with self._lock:
                job.check()  # removed or cancelled while it ran: nobody would ever remove what it made
                self.pictures[picture.id] = picture
                self._kept[job.id] = _Kept(found, folder, [picture.id])
        except GMODiffError as error:
            remove_folder(folder)
            text = str(error)
            for upload in wanted.photos:  # here, since they may have been removed from the page meanwhile
                text = told_as(text, upload.path, upload.name)
            raise type(error)(text) from error
        except BaseException:
            remove_folder(folder)
            raise
        job.picture, job.summary = picture.id, dict(picture.facts)
        _give_back_memory()

    def _render(self, again: Job, job: Job, settings: Rendering) -> None:
        kept = self._kept.get(job.id)
        if kept is None:
            raise InputError(GONE)
        while not kept.making.acquire(timeout=0.2):  # renditions of one merge share files
            again.check()
        try:
            picture = self._rendition(again, job, kept, settings)
        finally:
            kept.making.release()
        job.picture, job.summary = picture.id, dict(picture.facts)
        again.picture, again.summary = job.picture, job.summary

    def _rendition(self, again: Job, job: Job, kept: _Kept, settings: Rendering) -> Picture:
        """A further picture of a merge. Raises InputError where the merge is removed meanwhile; then nothing of it stays."""
        folder = kept.folder / f"rendition-{again.id}"
        height, width = kept.ingredients.bracket.shape
        try:
            with self.workspace.room(RENDITION_BYTES_PER_PIXEL * height * width, kept.folder):
                again.check()
                folder.mkdir()
                picture = render(kept.ingredients, settings, self.models, folder, again.report)
            with self._lock:
                if self._kept.get(job.id) is not kept:
                    raise InputError(GONE)
                self.pictures[picture.id] = picture
                kept.pictures.append(picture.id)
                dropped = [self.pictures.pop(key) for key in kept.pictures[:-RENDITIONS_KEPT]]
                del kept.pictures[:-RENDITIONS_KEPT]
        except BaseException as error:
            if self._kept.get(job.id) is not kept:
                remove_folder(kept.folder)
                if isinstance(error, (OSError, GMODiffError)):
                    raise InputError(GONE) from error
            remove_folder(folder)
            raise
        for old in dropped:
            old.gone = True
            remove_folder(old.folder)
        return picture

    def _forget_checks(self, keep: int = 5) -> None:
        with self._lock:
            checked = sorted((key for key in self.pictures if key.startswith(CHECK)), key=lambda key: self.pictures[key].touched)
        for key in checked[:-keep]:
            self.forget_check(key)

    def _tidy(self) -> None:
        """Once in a while, drop what is old."""
        while not self.closing.wait(600):
            try:
                self.remove_old()
            except Exception:  # the next time may do
                traceback.print_exc(file=sys.stderr)

    def remove_old(self, now: float | None = None) -> None:
        """Drop photos, merges and checked files that nobody has touched for a day. now: seconds since the epoch."""
        limit = (time.time() if now is None else now) - KEPT_S
        self.workspace.remove_old(now)
        for job in self.queue.jobs():
            with self._lock:
                kept = self._kept.get(job.id)
                looked_at = [self.pictures[p].touched for p in kept.pictures] if kept else []
            if job.ended is not None and max([job.ended, *looked_at]) < limit:
                self.forget(job.id)
        with self._lock:
            checked = [key for key, p in self.pictures.items() if key.startswith(CHECK) and p.touched < limit]
        for key in checked:
            self.forget_check(key)


def _in_files(image: HDRImage, folder: Path) -> HDRImage:
    """What is large of a picture, mapped from files."""
    parts: dict[str, Any] = {
        part: None if getattr(image, part) is None else in_file(getattr(image, part), folder / f"{part}.npy")
        for part in ("radiance", "base", "provenance", "degradation")
    }
    gain_map = image.gain_map
    if gain_map is not None:
        gain_map = replace(gain_map, codes=in_file(gain_map.codes, folder / "codes.npy"))
    return replace(image, gain_map=gain_map, **parts)


def _give_back_memory() -> None:
    """Hand what a merge freed back to the system, where the C library keeps it for itself (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
