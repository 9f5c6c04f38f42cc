"""What is on a card: the photos below folders, in lists and at URLs, each once, with their metadata; and what is there besides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from gmodiff.batch.missing import named_like_a_photo
from gmodiff.batch.storage import HIDDEN, fetched, is_url, list_url, name, read_head
from gmodiff.bracket import refuse_own_result
from gmodiff.errors import GMODiffError, InputError
from gmodiff.grouping import Shot, read_shot

HEAD_BYTES = 1 << 20
"""Of a photo behind a URL: its metadata stand there, except in some TIFF and RAW files, which are then fetched whole."""


@dataclass
class Card:
    """places: the photos' files, by the path of their Shot.   others: (file or folder, why it is no photo that can be used).

    unreadable: those of the others that are named like photos, and may be damaged ones.   hidden: files and folders passed over, since
    their names begin with a point.   sources: what was looked through.
    """

    shots: list[Shot] = field(default_factory=list)
    places: dict[Path, str] = field(default_factory=dict)
    others: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    hidden: int = 0
    sources: tuple[str, ...] = ()

    def add_other(self, place: str, why: str, *, own: bool = False) -> None:
        """A file that cannot be used; own: this program made it."""
        self.others.append((place, why))
        if named_like_a_photo(place) and not own:
            self.unreadable.append(place)


class OwnResult(InputError):
    """A picture that this program made, not a photo."""


def read_card(sources: Sequence[str], *, skip: Iterable[str] = (), progress: Callable[[int, int], None] | None = None) -> Card:
    """Everything below folders, files and URLs; skip: folders of results. progress: files read, files found.

    Raises InputError where a source itself is not there or cannot be read; what is wrong below it is told in `others`.
    """
    card = Card(sources=tuple(sources))
    skipped = {os.path.realpath(s) for s in skip if not is_url(s)}
    files: dict[object, str] = {}
    seen: set[str] = set()
    for source in sources:
        for place, identity in _files_below(source, skipped, seen, card):
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
                card.add_other(place, str(found), own=isinstance(found, OwnResult))
            if progress is not None:
                progress(done, len(places))
    return card


def read_place(place: str) -> Shot:
    """The metadata of one photo at a path or URL. Raises InputError and its children."""
    if not is_url(place):
        _refuse_own_result(Path(place))
        return read_shot(place)
    with TemporaryDirectory(prefix="gmodiff-") as folder:
        head = Path(folder) / name(place)
        head.write_bytes(read_head(place, HEAD_BYTES))
        whole = head.stat().st_size < HEAD_BYTES
        _refuse_own_result(head)
        try:
            found = read_shot(head)
            whole = whole or (found.time is not None and found.width > 0)
        except InputError:
            if whole:
                raise
        if not whole:
            with fetched([place]) as (local,):
                _refuse_own_result(local)
                found = read_shot(local)
        return replace(found, path=Path(place))


def _refuse_own_result(path: Path) -> None:
    try:
        refuse_own_result(path)
    except InputError as error:
        raise OwnResult(str(error)) from None


def read_list(file: str) -> list[str]:
    """Paths and URLs of a text file, one a line; empty lines and lines that begin with # mean nothing. Raises InputError."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"--list {file}: cannot be read ({reason}); expected one path or URL a line") from None
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _files_below(source: str, skipped: set[str], seen: set[str], card: Card) -> Iterable[tuple[str, object]]:
    """(path or URL, what makes it the same file) of each."""
    if is_url(source):
        for url, _ in list_url(source):
            if any(part.startswith(".") for part in url.removeprefix(source).split("/")):
                card.hidden += 1
            else:
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
            card.others.append((folder, f"cannot be read: {error.strerror or error}"))
            continue
        for entry in found:
            if entry.name.startswith("."):
                card.hidden += entry.name != HIDDEN  # systems keep things for themselves there, and so does this program
                continue
            try:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif entry.is_file():
                    status = entry.stat()
                    yield entry.path, (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(entry.path)
                else:
                    card.add_other(entry.path, "a broken link, or no file")
            except OSError as error:  # a link that leads to itself
                card.add_other(entry.path, f"cannot be read: {error.strerror or error}")
