"""Files with a photo's name that cannot be read, and the brackets that seem to miss them: told from names, since nothing else is left."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gmodiff.batch.storage import is_url, name, stem
from gmodiff.exposure import natural_key

PHOTO_SUFFIX = re.compile(
    r"\.(jpe?g|jpe|png|webp|tiff?|hei[cf]|hif|avif|dng|3fr|arw|cr[23w]|dcr|erf|fff|gpr|iiq|kdc|mef|mos|mrw|nef|nrw|orf|pef|ra[fw]|rw[2l]|"
    r"sr[2fw]|x3f)",
    re.IGNORECASE,
)


def named_like_a_photo(place: str) -> bool:
    """By its suffix."""
    return PHOTO_SUFFIX.fullmatch(Path(name(place)).suffix) is not None


def missed_by(sets: Sequence[Sequence[str]], unreadable: Iterable[str]) -> dict[int, list[str]]:
    """Unreadable files that may be of a set, by the set's index: in natural order of the names of one folder and kind of file they stand
    between its photos, or next to them by number. Where they stand next to two sets, the one with fewer photos misses them, or both.
    """
    rows: dict[tuple[str, str], list[tuple[list[tuple[int, str]], str, int | None]]] = {}
    for index, place in [*((i, p) for i, photos in enumerate(sets) for p in photos), *((None, p) for p in unreadable)]:
        rows.setdefault(_row(place), []).append((natural_key(stem(place)), place, index))
    found: dict[int, list[str]] = {}
    for row in rows.values():
        row.sort(key=lambda entry: (entry[0], entry[1]))
        members = [(place, index) for _, place, index in row]
        for at, (place, index) in enumerate(members):
            if index is None:
                for one in _beside(members, at, sets):
                    found.setdefault(one, []).append(place)
    return found


def _row(place: str) -> tuple[str, str]:
    """What the names are compared within: folder, suffix."""
    folder = place[: -len(name(place))] if is_url(place) else os.path.dirname(os.path.abspath(place))
    return folder, Path(name(place)).suffix.lower()


def _beside(members: Sequence[tuple[str, int | None]], at: int, sets: Sequence[Sequence[str]]) -> list[int]:
    place = members[at][0]
    neighbours = []
    for way in (range(at - 1, -1, -1), range(at + 1, len(members))):
        other = next(((members[i][1], members[i][0], abs(i - at)) for i in way if members[i][1] is not None), None)
        if other is not None and other[0] is not None:
            neighbours.append((other[0], _follow(place, other[1], other[2])))
    if len(neighbours) == 2 and neighbours[0][0] == neighbours[1][0]:
        return [neighbours[0][0]]
    near = [index for index, follows in neighbours if follows]
    fewest = min((len(sets[i]) for i in near), default=0)
    return [i for i in near if len(sets[i]) == fewest]


def _follow(one: str, other: str, places: int) -> bool:
    """The numbers in their names are no further apart than their places; False where there are no numbers to compare."""
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", stem(place)) for place in (one, other)]
    if found[0] is None or found[1] is None:
        return False
    same = (found[0][1], found[0][3]) == (found[1][1], found[1][3])
    return same and abs(int(found[0][2]) - int(found[1][2])) <= places
