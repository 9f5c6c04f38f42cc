"""The routes of the page. Answers are JSON, raw tiles, or files; what goes wrong is one line in "error", never a stack trace.

Only photos, jobs and pictures by their ids: nothing that a client says is ever used as a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import math
import shutil
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from gmodiff import __version__
from gmodiff.errors import GMODiffError, InputError
from gmodiff.grouping import Shot, group
from gmodiff.image import MAX_FRAMES, MIN_FRAMES
from gmodiff.inspection import describe
from gmodiff.reader import read
from gmodiff.web.merging import Ingredients, Models, Rendering, Wanted, likely_reference, prepare, render, stops_of
from gmodiff.web.pictures import Picture
from gmodiff.web.queue import RUNNING, WAITING, Job, Queue
from gmodiff.web.workspace import KEPT_S, Upload, Workspace

STATIC = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
TAKEN_AS = (".jpg", ".exr", ".avif", ".png", ".tif", ".hdr", ".jxl")
MAX_QUEUE = 200
RENDITIONS_KEPT = 3
"""Of one merge; older ones are removed when a setting makes another."""
EVENT_S = 0.2


class Strict(BaseModel):
    """A request body whose fields are all known."""

    model_config = ConfigDict(extra="forbid")


class GroupsWanted(Strict):
    """photos: ids; all that are here if left out.   frames: photos of every bracket, or None to go by metadata."""

    photos: list[str] | None = None
    frames: int | None = None


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
    """What one merge left: for renditions to come, and the latest of them."""

    ingredients: Ingredients
    folder: Path
    pictures: list[str]


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
        """End all jobs and remove all files."""
        self.closing.set()
        self.queue.close()
        self.workspace.close()

    def merge(self, asked: MergeWanted) -> Job:
        """Put a merge into the queue. Raises InputError for what can be seen to be wrong without reading a pixel."""
        uploads = tuple(self.workspace.get(p) for p in asked.photos)
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
        if sum(j.state in (WAITING, RUNNING) for j in self.queue.jobs()) >= MAX_QUEUE:
            raise InputError(f"{MAX_QUEUE} merges are waiting already: wait for some of them, or use gmodiff batch")
        self.workspace.check_room(sum(100 * u.shot.width * u.shot.height for u in uploads[:1]))
        wanted = Wanted(
            uploads,
            None if asked.ev is None else tuple(asked.ev),
            None if asked.reference is None else asked.photos.index(asked.reference),
            asked.settings.rendering(),
            asked.align,
        )
        title = f"{uploads[0].name} and {len(uploads) - 1} more"
        about = {"photos": asked.photos, "names": [u.name for u in uploads], "settings": asked.settings.model_dump()}
        return self.queue.submit(Job("merge", title, about), lambda job: self._merge(job, wanted))

    def render(self, key: str, settings: Settings) -> Job:
        """Put a new rendition of a finished merge into the queue."""
        rendering = settings.rendering()
        job = self.queue.get(key)
        if job is None or key not in self._kept:
            raise InputError("this merge is not here any more: merge the photos again")
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
        except GMODiffError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise type(error)(str(error).replace(str(place), name).replace(place.name, name)) from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        notes = [n.replace(place.name, name) for n in facts["notes"]]
        picture = Picture(folder.name, image, folder, {"check": facts | {"file": name, "notes": notes}}, name=Path(name).stem or "picture")
        with self._lock:
            self.pictures[picture.id] = picture
        self._forget_checks()
        return picture

    def picture(self, key: str) -> Picture:
        """A picture by its id. Raises InputError where it is gone."""
        with self._lock:
            if key not in self.pictures:
                raise InputError("this picture is not here any more: merge or check it again")
            return self.pictures[key]

    def forget(self, key: str) -> None:
        """Drop a job, its pictures and its files."""
        self.queue.forget(key)
        with self._lock:
            kept = self._kept.pop(key, None)
            for name in kept.pictures if kept else ():
                self.pictures.pop(name, None)
        if kept is not None:
            shutil.rmtree(kept.folder, ignore_errors=True)
            _give_back_memory()

    def written(self, key: str, suffix: str, *, quality: int, compact: bool, strip: bool) -> Path:
        """A picture as a file."""
        with self._checking:
            return self.picture(key).written(suffix, quality=quality, compact=compact, strip=strip)

    def _merge(self, job: Job, wanted: Wanted) -> None:
        folder = self.workspace.new_folder("merge")
        try:
            found = prepare(wanted, folder, self.workspace.limits.pixels, job.report)
            first = folder / "rendition-0"
            first.mkdir()
            picture = render(found, wanted.rendering, self.models, first, job.report)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            if self.queue.get(job.id) is None:  # removed while it ran
                shutil.rmtree(folder, ignore_errors=True)
                return
            self.pictures[picture.id] = picture
            self._kept[job.id] = _Kept(found, folder, [picture.id])
        job.picture, job.summary = picture.id, dict(picture.facts)
        _give_back_memory()

    def _render(self, again: Job, job: Job, settings: Rendering) -> None:
        kept = self._kept.get(job.id)
        if kept is None:
            raise InputError("this merge is not here any more: merge the photos again")
        folder = kept.folder / f"rendition-{again.id}"
        folder.mkdir()
        try:
            picture = render(kept.ingredients, settings, self.models, folder, again.report)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self.pictures[picture.id] = picture
            kept.pictures.append(picture.id)
            dropped = [self.pictures.pop(key, None) for key in kept.pictures[:-RENDITIONS_KEPT]]
            del kept.pictures[:-RENDITIONS_KEPT]
        for old in dropped:
            if old is not None:
                shutil.rmtree(old.folder, ignore_errors=True)
        job.picture, job.summary = picture.id, dict(picture.facts)
        again.picture, again.summary = job.picture, job.summary

    def _forget_checks(self, keep: int = 5) -> None:
        with self._lock:
            checked = [key for key in self.pictures if key.startswith("check-")]
            gone = [self.pictures.pop(key) for key in checked[:-keep]]
        for picture in gone:
            shutil.rmtree(picture.folder, ignore_errors=True)

    def _tidy(self) -> None:
        """Once in a while, drop what is a day old."""
        while not self.closing.wait(600):
            self.workspace.remove_old()
            for job in self.queue.jobs():
                if job.ended is not None and time.time() - job.ended > KEPT_S:
                    self.forget(job.id)


def upload_as_dict(upload: Upload, stops: float | None = None) -> dict[str, Any]:
    """What the page shows of a photo."""
    shot = upload.shot
    return {
        "id": upload.id,
        "name": upload.name,
        "width": shot.width,
        "height": shot.height,
        "exposure_time_s": shot.exposure_time_s,
        "iso": shot.iso,
        "f_number": shot.f_number,
        "camera": shot.camera,
        "taken": None if shot.time is None else shot.time.isoformat(timespec="milliseconds"),
        "ev": stops,
        "notes": list(upload.notes),
    }


def create_app(page: Page) -> FastAPI:
    """The application; put a `guard.Guard` around it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        page.close()

    # No schema and no documentation pages: those would load scripts from elsewhere.
    app = FastAPI(title="GMODiff", version=__version__, openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    _answer_errors(app, page)

    def static(name: str, kind: str) -> Callable[[], Response]:
        content = files("gmodiff").joinpath("web", name).read_bytes()
        return lambda: Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    for route, (name, kind) in STATIC.items():
        app.get(f"/{route}")(static(name, kind))

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        limits = {f.name: getattr(page.workspace.limits, f.name) for f in fields(page.workspace.limits)}
        return {"version": __version__, "model": page.models.name, "refines": page.models.refines, "limits": limits, "writes": TAKEN_AS}

    # ---- photos -------------------------------------------------------------------------------------------------------

    @app.post("/api/photos")
    async def add_photo(request: Request, name: str = "photo") -> dict[str, Any]:
        path, shown = await _received(request, page.workspace, name)
        upload = await asyncio.to_thread(page.workspace.add, path, shown)
        return upload_as_dict(upload)

    @app.get("/api/photos")
    def photos() -> list[dict[str, Any]]:
        return [upload_as_dict(u) for u in page.workspace.uploads()]

    @app.delete("/api/photos/{key}")
    def remove_photo(key: str) -> dict[str, Any]:
        page.workspace.remove(key)
        return {}

    @app.get("/api/photos/{key}/thumbnail")
    def thumbnail(key: str) -> Response:
        return Response(page.workspace.get(key).thumbnail, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400"})

    @app.post("/api/groups")
    def groups(wanted: GroupsWanted) -> dict[str, Any]:
        uploads = page.workspace.uploads() if wanted.photos is None else [page.workspace.get(p) for p in wanted.photos]
        by_path = {u.path: u for u in uploads}
        plan = group([u.shot for u in uploads], frames=wanted.frames)
        found = []
        for bracket in plan.groups:
            mine = [by_path[s.path] for s in bracket.shots]
            found.append(_as_bracket(mine, bracket.why))
        left = [
            {"photo": upload_as_dict(by_path[s.path]), "reason": _for_the_page(page.workspace.in_users_words(why))}
            for s, why in plan.leftovers
            if isinstance(s, Shot)
        ]
        return {"groups": found, "leftovers": left}

    @app.post("/api/brackets")
    def bracket(wanted: GroupsWanted) -> dict[str, Any]:
        """These photos as one bracket, whatever their metadata say."""
        return _as_bracket([page.workspace.get(p) for p in wanted.photos or []], "put together by hand")

    # ---- jobs ---------------------------------------------------------------------------------------------------------

    @app.post("/api/jobs")
    def add_job(wanted: MergeWanted) -> dict[str, Any]:
        return page.merge(wanted).as_dict()

    @app.get("/api/jobs")
    def jobs() -> list[dict[str, Any]]:
        return page.queue.snapshot()

    @app.post("/api/jobs/{key}/cancel")
    def cancel(key: str) -> dict[str, Any]:
        page.queue.cancel(key)
        return {}

    @app.post("/api/jobs/{key}/render")
    def render_again(key: str, settings: Settings) -> dict[str, Any]:
        return page.render(key, settings).as_dict()

    @app.delete("/api/jobs/{key}")
    def remove_job(key: str) -> dict[str, Any]:
        page.forget(key)
        return {}

    @app.get("/api/events")
    async def events(request: Request) -> StreamingResponse:
        """All jobs, again whenever something changes (server-sent events)."""

        async def stream() -> AsyncIterator[str]:
            last, quiet = "", 0.0
            while not page.closing.is_set() and not await request.is_disconnected():
                now = json.dumps(page.queue.snapshot(brief=True))
                if now != last:
                    last, quiet = now, 0.0
                    yield f"data: {now}\n\n"
                elif quiet > 10:
                    quiet = 0.0
                    yield ": still here\n\n"
                await asyncio.sleep(EVENT_S)
                quiet += EVENT_S

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    # ---- pictures -----------------------------------------------------------------------------------------------------

    @app.post("/api/checks")
    async def check(request: Request, name: str = "file") -> dict[str, Any]:
        path, shown = await _received(request, page.workspace, name)
        try:
            picture = await asyncio.to_thread(page.check, path, shown)
        finally:
            path.unlink(missing_ok=True)
        return picture.describe()

    @app.get("/api/pictures/{key}")
    def picture(key: str) -> dict[str, Any]:
        return page.picture(key).describe()

    @app.get("/api/pictures/{key}/tiles/{layer}/{level}/{column}/{row}")
    def tile(key: str, layer: str, level: int, column: int, row: int) -> Response:
        data = page.picture(key).tile(layer, level, column, row)
        return Response(data, media_type="application/octet-stream", headers={"cache-control": "private, max-age=86400, immutable"})

    @app.get("/api/pictures/{key}/histogram")
    def histogram(key: str) -> dict[str, Any]:
        return page.picture(key).histogram()

    @app.get("/api/pictures/{key}/pixel")
    def pixel(key: str, x: int, y: int) -> dict[str, Any]:
        return page.picture(key).pixel(x, y)

    @app.get("/api/pictures/{key}/summary.json")
    def summary_file(key: str) -> Response:
        found = page.picture(key)
        headers = {"content-disposition": f'attachment; filename="{_ascii(found.name)}.json"'}
        return Response(json.dumps(dict(found.facts), indent=2), media_type="application/json", headers=headers)

    @app.get("/api/pictures/{key}/file{suffix}")
    def file(
        key: str,
        suffix: str,
        quality: Annotated[int, Query(ge=1, le=100)] = 95,
        compact: bool = False,
        strip: bool = False,
        download: bool = False,
    ) -> FileResponse:
        if suffix not in TAKEN_AS:
            raise InputError(f"suffix {suffix[:10]!r}: expected {', '.join(TAKEN_AS)}")
        place = page.written(key, suffix, quality=quality, compact=compact, strip=strip)
        name = f"{page.picture(key).name}{suffix}"
        kind = {".jpg": "image/jpeg", ".avif": "image/avif", ".png": "image/png"}.get(suffix, "application/octet-stream")
        return FileResponse(place, media_type=kind, filename=name, content_disposition_type="attachment" if download else "inline")

    return app


def _give_back_memory() -> None:
    """Hand what a merge freed back to the system, where the C library keeps it for itself (glibc)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _for_the_page(reason: str) -> str:
    """Why a photo was left over, with what can be done here instead of the command's options."""
    return reason.replace("brackets of such photos go by --frames or --pattern", "choose the photos of a bracket here")


def _as_bracket(uploads: list[Upload], why: str) -> dict[str, Any]:
    """Photos in order of exposure, with the one a merge would choose as the reference."""
    if not uploads:
        raise InputError("no photos were chosen")
    ordered = sorted(uploads, key=lambda u: (u.shot.exposure is None, u.shot.exposure or 0.0))
    reference = likely_reference(ordered)
    stops = stops_of(ordered)
    return {
        "why": why,
        "photos": [upload_as_dict(u, s) for u, s in zip(ordered, stops, strict=True)],
        "reference": None if reference is None else ordered[reference].id,
    }


async def _received(request: Request, workspace: Workspace, name: str) -> tuple[Path, str]:
    length = request.headers.get("content-length", "")
    stated = int(length) if length.isascii() and length.isdigit() else 0
    if stated > workspace.limits.file_bytes:
        raise InputError(
            f"{name[:80]} is {stated / 1e6:.0f} MB, above the limit of {workspace.limits.file_bytes / 1e6:g} MB (--max-upload)"
        )
    await asyncio.to_thread(workspace.check_room, stated)
    return await workspace.receive(request.stream(), name)


def _ascii(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_. ") else "_" for c in name)


def _answer_errors(app: FastAPI, page: Page) -> None:
    """Every failure becomes {"error": one line}."""

    @app.exception_handler(GMODiffError)
    async def refused(_: Request, error: GMODiffError) -> JSONResponse:
        return JSONResponse({"error": page.workspace.in_users_words(str(error))}, 400)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first.get("type") == "json_invalid":
            return JSONResponse({"error": "the request is not JSON"}, 400)
        where = ".".join(str(part) for part in first.get("loc", ()) if part not in ("body", "query", "path"))
        return JSONResponse({"error": f"{where or 'request'}: {first.get('msg', 'malformed')}"[:300]}, 400)

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": {404: "there is no such address", 405: "this address is not asked like that"}.get(error.status_code,
                             str(error.detail))}, error.status_code)  # fmt: skip

    @app.exception_handler(MemoryError)
    async def exhausted(_: Request, error: MemoryError) -> JSONResponse:
        return JSONResponse({"error": "there is not enough memory for this: close something, or try a smaller file"}, 507)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        traceback.print_exception(error, file=sys.stderr)
        return JSONResponse({"error": "something went wrong that should not; the terminal of gmodiff serve says what"}, 500)
