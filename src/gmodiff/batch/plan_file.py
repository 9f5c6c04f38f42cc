"""The plan of a batch: which photos become which picture, and what is left over; as JSON that a person can edit, and run.

{"format": "gmodiff-plan-1",
 "sets": [{"output": "IMG_1_3.jpg", "photos": ["CARD/IMG_1.JPG", ...], "why": "...", "megapixels": 12.0,
           "reference": "IMG_2.JPG", "ev": [-2, 0, 2]}],          the last two where wanted
 "leftovers": [{"photo": "CARD/IMG_9.JPG", "why": "..."}]}         for the reader; ignored when run
A set that may miss a photo has "doubt": which, and why. "hidden": files passed over since their names begin with a point.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gmodiff.batch.card import Card
from gmodiff.batch.missing import missed_by
from gmodiff.batch.storage import folder_name, is_url, name, stem
from gmodiff.batch.wording import MOST_ALIKE, by_reason, counted, printable, some_of
from gmodiff.errors import FileFormatError, InputError
from gmodiff.grouping import Group, Plan
from gmodiff.image import MAX_FRAMES, MIN_FRAMES

FORMAT = "gmodiff-plan-1"
TEMPLATE = "{stem}_{count}.jpg"
FIELDS = ("stem", "count", "number", "folder", "date")
"""Of a template: name of the first photo without suffix, number of photos, place in the plan from 1, first photo's folder, YYYY-MM-DD."""

FILE_KEYS = ("format", "sets", "leftovers", "hidden")
SET_KEYS = ("output", "photos", "reference", "ev", "why", "doubt", "megapixels", "raw")


@dataclass(frozen=True)
class PlannedSet:
    """One picture to make.

    output: its name below the output folder. photos: paths or URLs. pixels: of one photo, None if unknown. doubt: what may be missing.
    """

    output: str
    photos: tuple[str, ...]
    why: str = ""
    pixels: int | None = None
    raw: bool = False
    ev: tuple[float, ...] | None = None
    reference: str | None = None
    doubt: str = ""


@dataclass(frozen=True)
class PlanFile:
    """Sets in order, and (photo or file, why it is left over).

    unreadable: those of the leftovers that are named like photos, and may be damaged ones.   hidden: files passed over.
    sources: the folders, files and URLs that were looked through; none of a plan that was read from a file.
    """

    sets: tuple[PlannedSet, ...]
    leftovers: tuple[tuple[str, str], ...] = field(default=())
    unreadable: tuple[str, ...] = ()
    hidden: int = 0
    sources: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sets = []
        for s in self.sets:
            one: dict[str, Any] = {"output": s.output, "photos": list(s.photos), "why": s.why}
            one |= {"doubt": s.doubt} if s.doubt else {}
            one |= {} if s.pixels is None else {"megapixels": round(s.pixels / 1e6, 2)}
            one |= {"raw": True} if s.raw else {}
            one |= {} if s.ev is None else {"ev": list(s.ev)}
            one |= {} if s.reference is None else {"reference": s.reference}
            sets.append(one)
        made = {"format": FORMAT, "sets": sets, "leftovers": [{"photo": p, "why": w} for p, w in self.leftovers]}
        return made | ({"hidden": self.hidden} if self.hidden else {})

    def as_text(self) -> str:
        """A table for a terminal: sets, then what is left over; files that are no photos, and many of one reason, are summed up."""
        rows = [("output", "photos", "", "why")]
        for s in self.sets:
            ends = f"{name(s.photos[0])} ... {name(s.photos[-1])}"
            rows.append((printable(s.output), str(len(s.photos)), printable(ends), printable("; ".join(filter(None, (s.why, s.doubt))))))
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(r[:3], widths, strict=True)), r[3]]).rstrip() for r in rows]
        photos = counted(sum(len(s.photos) for s in self.sets), "photo")
        hidden = f"; {counted(self.hidden, 'hidden file')} passed over" if self.hidden else ""
        lines.append(f"{counted(len(self.sets), 'set')} of {photos}; {counted(len(self.leftovers), 'file')} left over{hidden}")
        named, others = self._left_over()
        for alike in by_reason(named):
            lines += [f"  {printable(place)}: {printable(why)}" for place, why in alike[:MOST_ALIKE]]
            more = len(alike) - MOST_ALIKE
            lines += [f"  and {counted(more, 'file')} more for the same reason; --json names all"] if more > 0 else []
        lines += [f"  {counted(others, 'file')} that {'is no photo' if others == 1 else 'are no photos'}"] if others else []
        return "\n".join(lines)

    def _left_over(self) -> tuple[list[tuple[str, str]], int]:
        """(what to name, number of files that neither are photos nor are called so)."""
        unreadable = set(self.unreadable)
        named = [(place, why) for place, why in self.leftovers if place in unreadable or "is not a photo" not in why]
        return named, len(self.leftovers) - len(named)


def plan_of(plan: Plan, card: Card, template: str = TEMPLATE) -> PlanFile:
    """Names for the groups of a card; `check_names` says whether they can be used. Raises InputError for a template that cannot."""
    check_template(template)
    sets = []
    for number, group in enumerate(plan.groups, start=1):
        places = tuple(card.places[s.path] for s in group.shots)
        first = group.shots[0]
        pixels = max(s.width * s.height for s in group.shots)
        sets.append(PlannedSet(_named(template, group, places, number), places, group.why, pixels or None, first.raw))
    for index, places_missed in missed_by([s.photos for s in sets], card.unreadable).items():
        sets[index] = replace(sets[index], doubt=_doubt(places_missed))
    leftovers = [(str(item) if isinstance(item, Path) else card.places[item.path], why) for item, why in plan.leftovers]
    return PlanFile(tuple(sets), (*leftovers, *card.others), tuple(card.unreadable), card.hidden, card.sources)


def _doubt(missed: Sequence[str]) -> str:
    names = some_of([name(place) for place in missed])
    return f"{names}, beside its photos, cannot be read: {'is it' if len(missed) == 1 else 'are they'} of this bracket?"


def _named(template: str, group: Group, places: Sequence[str], number: int) -> str:
    taken = group.shots[0].time
    values = {
        "stem": stem(places[0]),
        "count": len(places),
        "number": number,
        "folder": folder_name(places[0]),
        "date": taken.strftime("%Y-%m-%d") if taken else "undated",
    }
    return template.format(**values)


def check_template(template: str) -> None:
    """Raise InputError unless the template makes file names this program can write, inside the output folder."""
    from gmodiff.writer import SUFFIXES

    example = dict(zip(FIELDS, ("a", 3, 1, "b", "2026-05-01"), strict=True))
    try:
        made = template.format(**example)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise InputError(f"name {template!r}: expected a template of {', '.join('{' + f + '}' for f in FIELDS)}, as {TEMPLATE!r}") from None
    if Path(made).suffix.lower() not in SUFFIXES:
        raise InputError(f"name {template!r}: must end in one of {' '.join(SUFFIXES)}, as {TEMPLATE!r}")
    _check_inside(made, f"name {template!r}")


def _check_inside(output: str, what: str) -> None:
    parts = re.split(r"[/\\]", output)
    if not output or output.startswith(("/", "\\")) or ":" in parts[0] or any(p in ("", ".", "..") or p.startswith(".") for p in parts):
        raise InputError(f"{what}: expected a name inside the output folder, with no part that is empty or begins with a point")


def check_names(sets: Sequence[PlannedSet]) -> None:
    """Raise InputError where two sets would be written to one file, on systems that ignore case too."""
    seen: dict[str, PlannedSet] = {}
    for one in sets:
        other = seen.setdefault(one.output.lower(), one)
        if other is not one:
            firsts = f"of {printable(other.photos[0])} and of {printable(one.photos[0])}"
            raise InputError(
                f"two sets would be called {printable(one.output)}: {firsts}; "
                "give --name with {number}, {date} or {folder}, or edit the plan"
            )


def read_plan(path: Path) -> PlanFile:
    """A plan from its file. Raises FileFormatError with the place of what is wrong."""
    from gmodiff.writer import SUFFIXES

    try:
        stored = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not JSON ({error}); expected a plan of gmodiff batch --dry-run --json") from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = stored.get("format") if isinstance(stored, dict) else None
        raise FileFormatError(f"{path}: not a plan of this version (format {found!r}, expected {FORMAT!r}); make it with --dry-run --json")
    _check_keys(stored, FILE_KEYS, str(path))
    entries = stored.get("sets")
    if not isinstance(entries, list):
        raise FileFormatError(f"{path}: its sets are {type(entries).__name__}, expected a list")
    if not entries:
        raise FileFormatError(f"{path}: it holds no set, so there is nothing to make; make it anew with --dry-run --json")
    sets: dict[str, PlannedSet] = {}
    for number, entry in enumerate(entries, start=1):
        output = entry.get("output") if isinstance(entry, Mapping) else None
        where = f"{path}, set {number}" + (f" ({printable(output)})" if isinstance(output, str) and output else "")
        one = sets[where] = _read_set(entry, where)
        if Path(one.output).suffix.lower() not in SUFFIXES:
            raise FileFormatError(f"{where}: output {one.output!r} must end in one of {' '.join(SUFFIXES)}")
        _check_inside(one.output, f"{where}: output {one.output!r}")
    check_names(list(sets.values()))
    _check_photos(sets)
    return PlanFile(tuple(sets.values()))


def _check_keys(stored: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in stored:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise FileFormatError(f"{where}: unknown key {key!r}; {meant}expected {', '.join(known)}")


def _check_photos(sets: Mapping[str, PlannedSet]) -> None:
    """Every photo is there, as far as that can be told here, and in one set only."""
    users: dict[str, str] = {}
    for where, one in sets.items():
        for photo in one.photos:
            other = users.setdefault(photo if is_url(photo) else os.path.realpath(photo), where)
            if other is not where:
                raise FileFormatError(f"{where}: photo {photo!r} is in set {other.rpartition(', set ')[2]} too; leave it in one of them")
    gone = [(where, p) for where, one in sets.items() for p in one.photos if not is_url(p) and not os.path.isfile(p)]
    if gone:
        where, photo = gone[0]
        more = f" (and {len(gone) - 1} more of this plan)" if len(gone) > 1 else ""
        start = "" if os.path.isabs(photo) else f", looked for from {os.getcwd()}"
        raise FileFormatError(f"{where}: photo {photo!r} is not there{more}{start}; correct its path, or make the plan anew with --dry-run")


def _read_set(entry: Any, where: str) -> PlannedSet:
    if not isinstance(entry, Mapping):
        raise FileFormatError(f"{where}: expected an object with output and photos")
    _check_keys(entry, SET_KEYS, where)
    output, photos = entry.get("output"), entry.get("photos")
    if not isinstance(output, str) or not isinstance(photos, list) or not all(isinstance(p, str) and p for p in photos):
        raise FileFormatError(f"{where}: expected output, a name, and photos, a list of paths")
    if not MIN_FRAMES <= len(photos) <= MAX_FRAMES:
        raise FileFormatError(f"{where}: {counted(len(photos), 'photo')}, expected {MIN_FRAMES} to {MAX_FRAMES}")
    if len({p if is_url(p) else os.path.realpath(p) for p in photos}) < len(photos):
        raise FileFormatError(f"{where}: a photo is named twice")
    ev, reference, megapixels = entry.get("ev"), entry.get("reference"), entry.get("megapixels")
    numbers = isinstance(ev, list) and all(type(v) in (int, float) and math.isfinite(v) for v in ev)
    if ev is not None and not (numbers and len(ev) == len(photos)):
        raise FileFormatError(f"{where}: ev must be {len(photos)} numbers, one a photo")
    if reference is not None:
        _check_reference(reference, photos, where)
    sized = isinstance(megapixels, (int, float)) and 0 < megapixels < 1e5
    pixels = round(float(megapixels or 0) * 1e6) if sized else None
    why, doubt = (text if isinstance(text, str) else "" for text in (entry.get("why"), entry.get("doubt")))
    return PlannedSet(
        output,
        tuple(photos),
        why,
        pixels,
        entry.get("raw") is True,
        None if ev is None else tuple(float(v) for v in ev),
        reference,
        doubt,
    )


def _check_reference(reference: Any, photos: Sequence[str], where: str) -> None:
    """It is one photo's path or name, or its place from 1."""
    names = [name(p) for p in photos]
    if reference in photos or names.count(reference) == 1:
        return
    if names.count(reference) > 1:
        raise FileFormatError(f"{where}: reference {reference!r} is the name of several of its photos; expected one of {', '.join(photos)}")
    if not (isinstance(reference, str) and reference.isascii() and reference.isdigit() and 1 <= int(reference) <= len(photos)):
        raise FileFormatError(f"{where}: reference {reference!r} is none of its photos; expected one of {', '.join(names)}")
