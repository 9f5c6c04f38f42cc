"""The private folder of one server: photos as they were uploaded, work files, and their removal at exit and after a day.

Files here are named by us. What a photo was called is kept beside it, for people, and never becomes a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gmodiff.bracket import refuse_own_result
from gmodiff.errors import GMODiffError, InputError
from gmodiff.exposure import measure_brightness
from gmodiff.grouping import Shot, read_shot
from gmodiff.photo import MAX_PIXELS, Photo, read_photo

PREFIX = "gmodiff-page-"
KEPT_S = 24 * 3600.0
"""What nobody has touched for so long is removed."""
THUMBNAIL_PX = 320
MAX_NAME = 120
LOCK = "lock"
"""A file of the folder that its server holds locked: the system lets go of it whatever ends the server."""
WRITTEN_AT_ONCE = 1 << 20
CHECKED_EVERY = 32 << 20
"""Bytes of an upload after which the room is looked at again: nobody has to say beforehand how long it is."""


@dataclass(frozen=True)
class Upload:
    """A photo that was dropped on the page.

    name: what the user calls it.   shot: its metadata, under that name.   thumbnail: JPEG.   exposed: share of well-exposed pixels.
    """

    id: str
    name: str
    path: Path
    shot: Shot
    thumbnail: bytes = field(repr=False)
    exposed: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What is taken: bytes of one file, bytes of everything in the folder, pixels of a photo, photos at once."""

    file_bytes: int = 1_000_000_000
    total_bytes: int = 40_000_000_000
    pixels: int = MAX_PIXELS
    photos: int = 2000


class Workspace:
    """A folder that only this user can read, and what lies in it."""

    def __init__(self, limits: Limits | None = None, place: Path | None = None) -> None:
        self.limits = limits or Limits()
        remove_left_behind(place)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
        self._held = _locked(self.folder)
        self._uploads: dict[str, Upload] = {}
        self._touched: dict[str, float] = {}
        self._users: Counter[Path] = Counter()
        self._rooms: dict[object, tuple[int, Path | None, int]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove everything."""
        if os.name == "nt":
            self._held.close()  # an open file cannot be removed there
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()

    def new_folder(self, kind: str) -> Path:
        """An empty folder for one picture or bracket."""
        path = self.folder / f"{kind}-{secrets.token_hex(8)}"
        path.mkdir()
        return path

    def used_bytes(self) -> int:
        """Of all files in the folder."""
        return _bytes_below(self.folder)

    def check_room(self, wanted: int) -> None:
        """Raises InputError where so many bytes more would pass the limit, or the disk has no room for them."""
        set_aside = self._set_aside()
        used = self.used_bytes() + set_aside
        if used + wanted > self.limits.total_bytes:
            raise InputError(
                f"the page holds {used / 1e9:.1f} GB and at most {self.limits.total_bytes / 1e9:g} GB (--max-total), and this needs about "
                f"{wanted / 1e9:.1f} GB: remove results or photos you are done with, or start it with a larger --max-total"
            )
        if shutil.disk_usage(self.folder).free < set_aside + wanted + 100_000_000:
            raise InputError("the disk of the temporary folder is full: free some space, or set TMPDIR to a larger one")

    @contextmanager
    def room(self, wanted: int, folder: Path | None = None) -> Iterator[None]:
        """So many bytes set aside while something is made that needs them. Raises what `check_room` raises.

        folder: where it is made: what is there already does not count twice.
        """
        key = object()
        before = 0 if folder is None else _bytes_below(folder)
        with self._lock:
            self.check_room(wanted)
            self._rooms[key] = wanted, folder, before
        try:
            yield
        finally:
            with self._lock:
                del self._rooms[key]

    def _set_aside(self) -> int:
        """Bytes that are promised and not written yet."""
        total = 0
        for wanted, folder, before in list(self._rooms.values()):
            total += max(wanted - (0 if folder is None else _bytes_below(folder) - before), 0)
        return total

    async def receive(self, chunks: AsyncIterator[bytes], name: str) -> tuple[Path, str]:
        """Store an upload; returns its file and the name to show. Raises InputError where it is too large or empty."""
        shown = shown_name(name)
        path = self.folder / f"upload-{secrets.token_hex(8)}{_suffix(shown)}"
        size, looked_at, gathered = 0, 0, bytearray()
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > self.limits.file_bytes:
                        raise InputError(f"{shown} is larger than {self.limits.file_bytes / 1e6:g} MB (--max-upload)")
                    gathered += chunk
                    if len(gathered) >= WRITTEN_AT_ONCE:  # in a thread: a slow disk must not hold up everybody's answers
                        if size - looked_at >= CHECKED_EVERY:
                            await asyncio.to_thread(self.check_room, CHECKED_EVERY)
                            looked_at = size
                        await asyncio.to_thread(file.write, bytes(gathered))
                        gathered.clear()
                file.write(gathered)
            if size == 0:
                raise InputError(f"{shown} is empty (0 bytes)")
            return path, shown
        except OSError as error:
            path.unlink(missing_ok=True)
            raise InputError(f"{shown} cannot be kept: {error.strerror or error}") from error
        except BaseException:  # a client that went away included
            path.unlink(missing_ok=True)
            raise

    def add(self, path: Path, name: str) -> Upload:
        """Look at a stored photo: metadata, thumbnail. It is removed where it is no photo; raises one line that names it."""
        try:
            if len(self._uploads) >= self.limits.photos:
                raise InputError(
                    f"{name}: {self.limits.photos} photos are here already; remove some, or use gmodiff batch for a whole card"
                )
            refuse_own_result(path)
            shot = replace(read_shot(path), name=name)
            if shot.width * shot.height > self.limits.pixels:
                size = f"{shot.width}x{shot.height}, {shot.width * shot.height} pixels"
                raise InputError(f"{name} is {size}, above the limit of {self.limits.pixels} (--max-pixels)")
            small = _small(path, shot, self.limits.pixels)
            done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
            if not done:
                raise InputError(f"{name} cannot be shown")
            exposed = measure_brightness(Photo(path, small)).exposed
        except GMODiffError as error:
            path.unlink(missing_ok=True)
            raise type(error)(told_as(str(error), path, name)) from None
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        upload = Upload(secrets.token_hex(8), name, path, shot, jpeg.tobytes(), exposed, shot.notes)
        with self._lock:
            self._uploads[upload.id] = upload
            self._touched[upload.id] = time.time()
        return upload

    def get(self, key: str) -> Upload:
        """An upload by its id. Raises InputError where it is not there (any more)."""
        with self._lock:
            if key not in self._uploads:
                raise InputError(_NOT_HERE)
            self._touched[key] = time.time()
            return self._uploads[key]

    def uploads(self) -> list[Upload]:
        """All that are here, in the order they came."""
        with self._lock:
            return list(self._uploads.values())

    def remove(self, key: str) -> None:
        """Forget an upload, and its file unless somebody still holds it; nothing happens where it is gone already."""
        with self._lock:
            upload = self._uploads.pop(key, None)
            self._touched.pop(key, None)
            held = upload is not None and self._users[upload.path] > 0
        if upload is not None and not held:
            _unlink(upload.path)

    def hold(self, keys: Sequence[str]) -> tuple[Upload, ...]:
        """These photos, whose files stay until `release`, whoever removes them meanwhile: a merge that waits will read them.

        Raises InputError where one is not there (any more).
        """
        with self._lock:
            missing = sum(k not in self._uploads for k in keys)
            if missing:
                raise InputError(_NOT_HERE if missing == 1 else f"{missing} of these photos are not here any more: drop them again")
            found = tuple(self._uploads[k] for k in keys)
            self._users.update(u.path for u in found)
            self._touched |= {u.id: time.time() for u in found}
            return found

    def release(self, uploads: Iterable[Upload]) -> None:
        """The end of a `hold`: what was removed meanwhile goes now."""
        uploads = list(uploads)
        with self._lock:
            self._users.subtract(u.path for u in uploads)
            gone = [u.path for u in uploads if u.id not in self._uploads and self._users[u.path] <= 0]
            self._users = +self._users
        for path in gone:
            _unlink(path)

    def remove_old(self, now: float | None = None) -> None:
        """Forget uploads that nobody has touched for a day."""
        limit = (time.time() if now is None else now) - KEPT_S
        with self._lock:
            old = [key for key, at in self._touched.items() if at < limit]
        for key in old:
            self.remove(key)

    def in_users_words(self, text: str) -> str:
        """A message with our file names replaced by the user's, and without our folder."""
        for upload in self.uploads():
            text = told_as(text, upload.path, upload.name)
        return text.replace(f"{self.folder}{os.sep}", "").replace(str(self.folder), "the page's folder")


_NOT_HERE = "this photo is not here any more: drop it again"


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # somebody reads it, where that keeps a file from going; it goes with the folder
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """A folder with all that is in it, also what is written into it just then."""
    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def told_as(text: str, path: Path, name: str) -> str:
    """A message about one of our files, with what the user calls it."""
    return text.replace(str(path), name).replace(path.name, name)


def shown_name(name: str) -> str:
    """What to call a file: the last part of the name a browser gave, printable, not too long."""
    last = re.split(r"[/\\]", name)[-1]
    clean = "".join(c for c in last if c.isprintable()).strip()
    return clean[-MAX_NAME:] or "photo"


def _suffix(name: str) -> str:
    """The suffix, for readers that want one, where it is a plain one."""
    found = re.search(r"\.[A-Za-z0-9]{1,5}$", name)
    return found[0].lower() if found else ""


def _small(path: Path, shot: Shot, max_pixels: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 sRGB or nearly, upright, at most THUMBNAIL_PX a side."""
    if shot.raw:
        embedded = _raw_preview(path)
        if embedded is not None:
            with contextlib.suppress(Exception):  # developing the photo says what is wrong, if anything is
                return _by_pillow(io.BytesIO(embedded))
    else:
        with contextlib.suppress(Exception):  # sixteen bits, unusual colours: the careful reader knows them, or says what is wrong
            return _by_pillow(path)
    photo = read_photo(path, max_pixels=max_pixels)
    encoded = photo.encoded if photo.encoded.dtype == np.uint8 else (photo.encoded >> 8).astype(np.uint8)
    scale = THUMBNAIL_PX / max(encoded.shape[:2])
    size = (max(1, round(encoded.shape[1] * scale)), max(1, round(encoded.shape[0] * scale)))
    return np.asarray(cv2.resize(encoded, size, interpolation=cv2.INTER_AREA), np.uint8)


def _by_pillow(source: Path | io.BytesIO) -> NDArray[np.uint8]:
    with Image.open(source) as image:
        if image.mode not in ("RGB", "L", "P"):
            raise InputError(image.mode)
        image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))  # a JPEG is decoded at an eighth of its size
        upright = ImageOps.exif_transpose(image).convert("RGB")
        upright.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return np.array(upright, np.uint8)


def _raw_preview(path: Path) -> bytes | None:
    """The JPEG a camera puts into its RAW file; None where there is none."""
    try:
        import rawpy

        with rawpy.imread(str(path)) as raw:
            preview = raw.extract_thumb()
            return bytes(preview.data) if preview.format == rawpy.ThumbFormat.JPEG else None
    except Exception:
        return None  # developing it says what is wrong


def remove_left_behind(place: Path | None = None) -> None:
    """Remove folders of this user whose server has ended, however it did: nobody holds their lock any more."""
    for folder in Path(place or tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            ours = not folder.is_symlink() and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid())
            if ours and _is_left_behind(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> IO[bytes]:
    """A file of the folder, held by this process."""
    new = folder / f"{LOCK}.new"
    held = new.open("xb")
    with contextlib.suppress(ImportError, OSError):  # Windows, where an open file is lock enough; a network disk without locks
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.name == "nt":
        held.close()
        os.rename(new, folder / LOCK)
        return (folder / LOCK).open("ab")
    os.rename(new, folder / LOCK)  # it has its name when it is locked: nobody sees it unlocked while we live
    return held


def _is_left_behind(folder: Path) -> bool:
    """Whether no process holds a folder. Raises OSError where that cannot be told."""
    lock = folder / LOCK
    if not lock.exists():
        return time.time() - folder.stat().st_mtime > 3600  # killed before it was locked; or about to be
    try:
        import fcntl
    except ImportError:
        lock.unlink()  # refused while it is open
        return True
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
