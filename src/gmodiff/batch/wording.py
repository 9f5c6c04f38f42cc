"""Words of a batch: counts with their nouns, names that a terminal can show, long lists by their reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gmodiff.batch.storage import name

MOST_ALIKE = 20
"""Files named of one reason; further ones are counted."""


def counted(count: int, noun: str) -> str:
    """1 set, 2 sets."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def printable(text: str) -> str:
    """On one line of a terminal: control characters as \\n and \\x1b, and what is no text replaced."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def by_reason(leftovers: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """(place, why) of files, those of one reason together, whatever names and numbers it holds; in the order of their first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for place, why in leftovers:
        kind = re.sub(r"(?<= of ).*\.\w+|\S+\.\w+|\d+", "#", why.replace(name(place), "#"))
        found.setdefault(kind, []).append((place, why))
    return list(found.values())


def some_of(names: list[str], most: int = 3) -> str:
    """a, b, c and 4 more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
