"""The routes of the page. Answers are JSON, raw tiles, or files; what goes wrong is one line in "error", never a stack trace.

Only photos, jobs and pictures by their ids: nothing that a client says is ever used as a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from gmodiff import __version__
from gmodiff.errors import GMODiffError, InputError
from gmodiff.grouping import BY_OPTIONS, Shot, group
from gmodiff.web.merging import likely_reference, stops_of
from gmodiff.web.page import MergeWanted, Page, Settings, Strict
from gmodiff.web.workspace import Upload, Workspace

STATIC = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
}
TAKEN_AS = (".jpg", ".exr", ".avif", ".png", ".tif", ".hdr", ".jxl")
EVENT_S = 0.2


class GroupsWanted(Strict):
    """photos: ids; all that are here if left out.   frames: photos of every bracket, or None to go by metadata."""

    photos: list[str] | None = None
    frames: int | None = None


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
        return {"version": __version__, "model": page.models.name, "refines": page.models.refines, "writes": TAKEN_AS}

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

    @app.delete("/api/pictures/{key}")
    def remove_check(key: str) -> dict[str, Any]:
        """Of a checked file; what a merge made goes with the merge."""
        page.forget_check(key)
        return {}

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
    ) -> StreamingResponse:
        if suffix not in TAKEN_AS:
            raise InputError(f"suffix {suffix[:10]!r}: expected {', '.join(TAKEN_AS)}")
        name = f"{page.picture(key).name}{suffix}"
        opened = page.written(key, suffix, quality=quality, compact=compact, strip=strip)
        kind = {".jpg": "image/jpeg", ".avif": "image/avif", ".png": "image/png"}.get(suffix, "application/octet-stream")
        headers = {
            "content-length": str(os.fstat(opened.fileno()).st_size),
            # For old readers, and with every letter (RFC 6266, section 5).
            "content-disposition": f'{"attachment" if download else "inline"}; filename="{_ascii(name)}"; '
            f"filename*=utf-8''{quote(name, '')}",
        }
        return StreamingResponse(_pieces(opened), media_type=kind, headers=headers)

    return app


def _pieces(opened: BinaryIO) -> Iterator[bytes]:
    with opened:
        while piece := opened.read(1 << 18):
            yield piece


def _for_the_page(reason: str) -> str:
    """Why a photo was left over, with what can be done here instead of the command's options."""
    return reason.replace(BY_OPTIONS, "choose the photos of a bracket here")


def _as_bracket(uploads: list[Upload], why: str) -> dict[str, Any]:
    """Photos in order of exposure, with the one a merge would choose as the reference."""
    if not uploads:
        raise InputError("no photos were chosen")
    ordered = sorted(uploads, key=lambda u: (u.shot.exposure is None, u.shot.exposure or 0.0))
    reference = likely_reference(ordered)
    stops = stops_of(ordered, reference)
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

    @app.exception_handler(ClientDisconnect)
    async def went_away(_: Request, error: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"error": "the upload broke off"}, 400)  # nobody is there to read it

    @app.exception_handler(MemoryError)
    async def exhausted(_: Request, error: MemoryError) -> JSONResponse:
        return JSONResponse({"error": "there is not enough memory for this: close something, or try a smaller file"}, 507)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        traceback.print_exception(error, file=sys.stderr)
        return JSONResponse({"error": "something went wrong that should not; the terminal of gmodiff serve says what"}, 500)
