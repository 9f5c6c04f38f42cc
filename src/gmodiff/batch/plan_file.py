"""The plan of a batch: which photos become which picture, and what is left over; as JSON that a person can edit, and run.

{"format": "gmodiff-plan-1",
 "sets": [{"output": "IMG_1_3.jpg", "photos": ["CARD/IMG_1.JPG", ...], "why": "...", "megapixels": 12.0,
           "reference": "IMG_2.JPG", "ev": [-2, 0, 2]}],          the last two where wanted
 "leftovers": [{"photo": "CARD/IMG_9.JPG", "why": "..."}]}         for the reader; ignored when run
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gmodiff.batch.card import Card
from gmodiff.batch.storage import folder_name, stem
from gmodiff.errors import FileFormatError, InputError
from gmodiff.grouping import Group, Plan
from gmodiff.image import MAX_FRAMES, MIN_FRAMES

FORMAT = "gmodiff-plan-1"
TEMPLATE = "{stem}_{count}.jpg"
FIELDS = ("stem", "count", "number", "folder", "date")
"""Of a template: name of the first photo without suffix, number of photos, place in the plan from 1, first photo's folder, YYYY-MM-DD."""


@dataclass(frozen=True)
class PlannedSet:
    """One picture to make. output: its name below the output folder. photos: paths or URLs. pixels: of one photo, None if unknown."""

    output: str
    photos: tuple[str, ...]
    why: str = ""
    pixels: int | None = None
    raw: bool = False
    ev: tuple[float, ...] | None = None
    reference: str | None = None


@dataclass(frozen=True)
class PlanFile:
    """Sets in order, and (photo or file, why it is left over)."""

    sets: tuple[PlannedSet, ...]
    leftovers: tuple[tuple[str, str], ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sets = []
        for s in self.sets:
            one: dict[str, Any] = {"output": s.output, "photos": list(s.photos), "why": s.why}
            one |= {} if s.pixels is None else {"megapixels": round(s.pixels / 1e6, 2)}
            one |= {"raw": True} if s.raw else {}
            one |= {} if s.ev is None else {"ev": list(s.ev)}
            one |= {} if s.reference is None else {"reference": s.reference}
            sets.append(one)
        return {"format": FORMAT, "sets": sets, "leftovers": [{"photo": p, "why": w} for p, w in self.leftovers]}

    def as_text(self) -> str:
        """A table for a terminal: sets, then what is left over, files that are no photos summed up."""
        rows = [("output", "photos", "", "why")]
        for s in self.sets:
            first, last = Path(s.photos[0]).name, Path(s.photos[-1]).name
            rows.append((s.output, str(len(s.photos)), f"{first} ... {last}", s.why))
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(r[:3], widths, strict=True)), r[3]]).rstrip() for r in rows]
        lines.append(f"{len(self.sets)} sets of {sum(len(s.photos) for s in self.sets)} photos; {len(self.leftovers)} files left over")
        strangers = [w for _, w in self.leftovers if "is not a photo" in w]
        lines += [f"  {place}: {why}" for place, why in self.leftovers if "is not a photo" not in why]
        lines += [f"  {len(strangers)} files that are no photos"] if strangers else []
        return "\n".join(lines)


def plan_of(plan: Plan, card: Card, template: str = TEMPLATE) -> PlanFile:
    """Names for the groups of a card. Raises InputError for a template that cannot be used, or under which two sets have one name."""
    check_template(template)
    sets = []
    for number, group in enumerate(plan.groups, start=1):
        places = tuple(card.places[s.path] for s in group.shots)
        first = group.shots[0]
        pixels = max(s.width * s.height for s in group.shots)
        sets.append(PlannedSet(_named(template, group, places, number), places, group.why, pixels or None, first.raw))
    leftovers = [(str(item) if isinstance(item, Path) else card.places[item.path], why) for item, why in plan.leftovers]
    leftovers += [(str(path), why) for path, why in card.others]
    made = PlanFile(tuple(sets), tuple(leftovers))
    check_names(made.sets)
    return made


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
            raise InputError(
                f"two sets would be called {one.output}: of {other.photos[0]} and of {one.photos[0]}; "
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
    entries = stored.get("sets")
    if not isinstance(entries, list):
        raise FileFormatError(f"{path}: its sets are {type(entries).__name__}, expected a list")
    sets = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, set {number}"
        sets.append(_read_set(entry, where))
        if Path(sets[-1].output).suffix.lower() not in SUFFIXES:
            raise FileFormatError(f"{where}: output {sets[-1].output!r} must end in one of {' '.join(SUFFIXES)}")
        _check_inside(sets[-1].output, f"{where}: output {sets[-1].output!r}")
    check_names(sets)
    return PlanFile(tuple(sets))


def _read_set(entry: Any, where: str) -> PlannedSet:
    if not isinstance(entry, Mapping):
        raise FileFormatError(f"{where}: expected an object with output and photos")
    output, photos = entry.get("output"), entry.get("photos")
    if not isinstance(output, str) or not isinstance(photos, list) or not all(isinstance(p, str) and p for p in photos):
        raise FileFormatError(f"{where}: expected output, a name, and photos, a list of paths")
    if not MIN_FRAMES <= len(photos) <= MAX_FRAMES:
        raise FileFormatError(f"{where}: {len(photos)} photos, expected {MIN_FRAMES} to {MAX_FRAMES}")
    if len(set(photos)) < len(photos):
        raise FileFormatError(f"{where}: a photo is named twice")
    ev, reference, megapixels = entry.get("ev"), entry.get("reference"), entry.get("megapixels")
    if ev is not None and not (isinstance(ev, list) and len(ev) == len(photos) and all(type(v) in (int, float) for v in ev)):
        raise FileFormatError(f"{where}: ev must be {len(photos)} numbers, one a photo")
    if reference is not None and not isinstance(reference, str):
        raise FileFormatError(f"{where}: reference must be the name of one of its photos")
    sized = isinstance(megapixels, (int, float)) and 0 < megapixels < 1e5
    pixels = round(float(megapixels or 0) * 1e6) if sized else None
    why = entry.get("why")
    return PlannedSet(
        output,
        tuple(photos),
        why if isinstance(why, str) else "",
        pixels,
        entry.get("raw") is True,
        None if ev is None else tuple(float(v) for v in ev),
        reference,
    )
