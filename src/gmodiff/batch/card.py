"""What is on a card: the photos below folders, in lists and at URLs, each once, with their metadata; and what is there besides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gmodiff.batch.storage import fetched, is_url, list_url, name, read_head
from gmodiff.bracket import refuse_own_result
from gmodiff.errors import GMODiffError, InputError
from gmodiff.grouping import Shot, read_shot

HEAD_BYTES = 1 << 20
"""Of a photo behind a URL: its metadata stand there, except in some TIFF and RAW files, which are then fetched whole."""


@dataclass
class Card:
    """places: the photos' files, by the path of their Shot.   others: (file or folder, why it is no photo that can be used)."""

    shots: list[Shot] = field(default_factory=list)
    places: dict[Path, str] = field(default_factory=dict)
    others: list[tuple[Path, str]] = field(default_factory=list)


def read_card(sources: Sequence[str], *, skip: Iterable[str] = (), progress: Callable[[int, int], None] | None = None) -> Card:
    """Everything below folders, files and URLs; skip: folders of results. progress: files read, files found.

    Raises InputError where a source itself is not there or cannot be read; what is wrong below it is told in `others`.
    """
    card = Card()
    skipped = {os.path.realpath(s) for s in skip if not is_url(s)}
    files: dict[object, str] = {}
    seen: set[str] = set()
    for source in sources:
        for place, identity in _files_below(source, skipped, seen, card.others):
            files.setdefault(identity, place)
    places = list(files.values())

    def read(place: str) -> Shot | GMODiffError:
        try:
            return read_place(place)
        except GMODiffError as error:
            return error

    with ThreadPoolExecutor(8) as pool:  # waits for disks and networks, not for processors
        for done, (place, found) in enumerate(zip(places, pool.map(read, places), strict=True), start=1):
            if isinstance(found, Shot):
                card.shots.append(found)
                card.places[found.path] = place
            else:
                card.others.append((Path(place), str(found)))
            if progress is not None:
                progress(done, len(places))
    return card


def read_place(place: str) -> Shot:
    """The metadata of one photo at a path or URL. Raises InputError and its children."""
    if not is_url(place):
        refuse_own_result(Path(place))
        return read_shot(place)
    with TemporaryDirectory(prefix="gmodiff-") as folder:
        head = Path(folder) / name(place)
        head.write_bytes(read_head(place, HEAD_BYTES))
        whole = head.stat().st_size < HEAD_BYTES
        refuse_own_result(head)
        try:
            found = read_shot(head)
            whole = whole or (found.time is not None and found.width > 0)
        except InputError:
            if whole:
                raise
        if not whole:
            with fetched([place]) as (local,):
                refuse_own_result(local)
                found = read_shot(local)
        return replace(found, path=Path(place))


def read_list(file: str) -> list[str]:
    """Paths and URLs of a text file, one a line; empty lines and lines that begin with # mean nothing. Raises InputError."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"--list {file}: cannot be read ({reason}); expected one path or URL a line") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _files_below(source: str, skipped: set[str], seen: set[str], others: list[tuple[Path, str]]) -> Iterable[tuple[str, object]]:
    """(path or URL, what makes it the same file) of each."""
    if is_url(source):
        for url, _ in list_url(source):
            if not any(part.startswith(".") for part in url.split("://", 1)[1].split("/")):
                yield url, url
        return
    try:
        is_folder = os.path.isdir(source)
        if not is_folder:
            status = os.stat(source)
            yield source, (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(source)
            return
        os.scandir(source).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{source} cannot be read: {reason}; expected a folder, a photo, a URL, or a plan (.json)") from None
    waiting = [source]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen or real in skipped:
            continue  # a link back to where we come from, or a second way to the same folder
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            others.append((Path(folder), f"cannot be read: {error.strerror or error}"))
            continue
        for entry in found:
            if entry.name.startswith("."):
                continue  # what systems and this program keep for themselves
            try:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield entry.path, (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(entry.path)
                else:
                    others.append((Path(entry.path), "a broken link, or no file"))
            except OSError as error:  # a link that leads to itself
                others.append((Path(entry.path), f"cannot be read: {error.strerror or error}"))
