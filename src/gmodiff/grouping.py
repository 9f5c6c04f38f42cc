"""Which photos of a card belong to one bracket: told from metadata, a fixed size, or file names; never from pixels, never by mistake.

A photo that is not certain to belong somewhere is left over, with the reason, for a person to decide.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations, pairwise
from os import PathLike
from pathlib import Path

from gmodiff.errors import InputError
from gmodiff.exif import MANUAL
from gmodiff.exposure import natural_key
from gmodiff.image import MAX_FRAMES, MIN_FRAMES
from gmodiff.photo import read_facts
from gmodiff.radiometry import exposure_from_settings

MAX_PAUSE_BRACKETING_S = 10.0
"""Longest pause inside a bracket that the camera itself steps: somebody may press the shutter for each photo."""

MAX_PAUSE_QUICK_S = 5.0
"""Pause up to which photos set by hand are one burst."""

MAX_PAUSE_MANUAL_S = 60.0
"""Longest pause inside a bracket set by hand, on a tripod, at night."""

MAX_PAUSE_COMPENSATED_S = 20.0
"""Longest pause inside a bracket made with exposure compensation by hand."""

SAME_STOPS = 0.2
"""Exposures closer than this are the same: a third of a stop is the finest step of a camera."""

LEAST_MANUAL_STOPS, LEAST_MANUAL_FRAMES = 1.5, 3
"""Below these, photos set by hand some seconds apart are not enough like a bracket to be called one."""

METERED_STOPS = 0.7
"""How far a compensated exposure may be from the compensation asked for, before the light, and so the scene, was another."""

DRIFT_STOPS = 0.9
"""Bracketed exposures whose stated places are the same, or not stated, are of two brackets when closer than this: metering drifts."""

USUAL_REST_S = 1.0
"""Rounding of times without fractions of a second."""

BY_OPTIONS = "brackets of such photos go by --frames or --pattern"
"""How to go on, for those who type; who shows reasons elsewhere says it in other words."""


@dataclass(frozen=True)
class Shot:
    """One photo, by its metadata. None, "" or 0 where the file does not say.

    time: when it was taken, by the camera's own clock.   exposure: relative, t*ISO/100/N^2 seconds.   bias_stops: compensation.
    bracketing: the camera says that it stepped the exposure itself.   bracket_stops: the place in that bracket, where makers write it.
    exposure_mode: 0 auto, 1 manual, 2 auto bracket.   camera: maker, model and serial number.   width, height: upright, pixels.
    bytes: size of the file.   raw: camera RAW.   notes: what was there but not usable.
    """

    name: str
    path: Path
    time: datetime | None = None
    exposure: float | None = None
    exposure_time_s: float | None = None
    iso: float | None = None
    f_number: float | None = None
    camera: str = ""
    focal_length_mm: float | None = None
    width: int = 0
    height: int = 0
    bracketing: bool = False
    bracket_stops: float | None = None
    bias_stops: float | None = None
    exposure_mode: int | None = None
    raw: bool = False
    bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ev(self) -> float | None:
        """log2 of the exposure: brighter = higher; None where unknown."""
        return None if self.exposure is None else math.log2(self.exposure)


@dataclass(frozen=True)
class Group:
    """A bracket: its photos in order of time, and why they belong together."""

    shots: tuple[Shot, ...]
    why: str


@dataclass(frozen=True)
class Plan:
    """Brackets in order of time, and what is left over: the photo, or the path of a file that is none, and the reason."""

    groups: tuple[Group, ...]
    leftovers: tuple[tuple[Shot | Path, str], ...] = ()


def read_shot(path: str | PathLike[str]) -> Shot:
    """A photo's metadata; no pixel is decoded and no RAW developed.

    Raises InputError where the file cannot be read, FileFormatError where it is no photo, each with one line.
    """
    path = Path(path)
    found = read_facts(path)
    facts = found.exif
    exposure = None
    if facts.exposure_time_s is not None:
        try:
            exposure = exposure_from_settings(facts.exposure_time_s, facts.iso or 100.0, facts.f_number)
        except InputError:
            exposure = None  # a combination that cannot be; the notes of the facts say what
    return Shot(
        name=path.name,
        path=path,
        time=_time(facts.datetime, facts.subsecond),
        exposure=exposure,
        exposure_time_s=facts.exposure_time_s,
        iso=facts.iso,
        f_number=facts.f_number,
        camera=" ".join(part for part in (facts.camera, facts.serial) if part),
        focal_length_mm=facts.focal_length_mm,
        width=found.width,
        height=found.height,
        bracketing=facts.bracketing,
        bracket_stops=facts.bracket_stops if facts.bracketing else None,
        bias_stops=facts.exposure_bias_stops,
        exposure_mode=facts.exposure_mode,
        raw=found.raw,
        bytes=path.stat().st_size,
        notes=facts.notes,
    )


def _time(text: str, subsecond: str) -> datetime | None:
    """2026:05:01 12:00:00 and the digits after its seconds; None for the zeros and blanks that cameras without a clock write."""
    try:
        whole = datetime.strptime(text[:19].replace("-", ":"), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    return whole + timedelta(seconds=float(f"0.{subsecond}") if subsecond else 0.0)


def group(shots: Iterable[Shot], *, frames: int | None = None, pattern: str | None = None) -> Plan:
    """The brackets among photos.

    frames: every bracket has this many photos, 2 to 16.   pattern: of file names; photos with the same text in it belong together: a
    glob with {set}, as in "{set}_*.jpg", or a regular expression with a group called set or one group, as in "(IMG_.*)_\\d".
    Neither: by camera, size, focal length, time, and exposures. Raises InputError for a value that cannot be used.
    """
    if frames is not None and pattern is not None:
        raise InputError("frames and pattern were both given: brackets go by size or by name, give one of them")
    if frames is not None and not MIN_FRAMES <= frames <= MAX_FRAMES:
        raise InputError(f"frames {frames}: expected {MIN_FRAMES} to {MAX_FRAMES} photos a bracket")
    ordered, leftovers = _without_copies(sorted(shots, key=_order))
    if pattern is not None:
        groups, left = _by_name(ordered, pattern)
    else:
        groups, left = [], []
        for family in _families(ordered):
            found, alone = _of_size(family, frames) if frames is not None else _by_metadata(family)
            groups += found
            left += alone
    return Plan(tuple(sorted(groups, key=lambda g: _order(g.shots[0]))), (*leftovers, *sorted(left, key=lambda pair: _order(pair[0]))))


Left = list[tuple[Shot, str]]
Found = tuple[list[Group], Left]


def _order(shot: Shot) -> tuple[datetime, list[tuple[int, str]], str]:
    # Without the suffix: an edited version, "IMG_1 edit.jpg", comes after its original.
    return shot.time or datetime.max, natural_key(Path(shot.name).stem), str(shot.path)


def _families(shots: Sequence[Shot]) -> list[list[Shot]]:
    """Photos that could be of one bracket at all: one camera, size, focal length and kind of file; without a time, one folder."""
    found: dict[object, list[Shot]] = {}
    for shot in shots:
        focal = None if shot.focal_length_mm is None else round(shot.focal_length_mm, 1)
        folder = None if shot.time else shot.path.parent
        found.setdefault((shot.camera, shot.width, shot.height, focal, shot.raw, folder), []).append(shot)
    return list(found.values())


def _without_copies(shots: Sequence[Shot]) -> tuple[list[Shot], list[tuple[Shot | Path, str]]]:
    """Photos once each: of two files with the same facts, time and length one is a copy; beside a RAW file its JPEG is the same photo."""
    raws = {(s.path.parent, s.path.stem.lower()): s for s in shots if s.raw}
    kept: list[Shot] = []
    left: list[tuple[Shot | Path, str]] = []
    shots = list({s.path: s for s in shots}.values())  # some may be named twice on the command line
    best = _best_copies(shots)
    for shot in shots:
        twin = None if shot.raw else raws.get((shot.path.parent, shot.path.stem.lower()))
        copied = best.get(_facts(shot), shot)
        version = _original(shot, kept)
        if twin is not None and twin.time == shot.time:
            left.append((shot, f"the camera's own picture of {twin.name}, which is used"))
        elif copied is not shot:
            left.append((shot, f"a copy of {copied.path}"))
        elif version is not None:
            left.append((shot, f"another version of {version.name}, which is used"))
        else:
            kept.append(shot)
    return kept, left


def _facts(shot: Shot) -> tuple[object, ...]:
    """What two copies of one photo share."""
    return (shot.time, shot.bytes, shot.camera, shot.exposure, shot.bias_stops, shot.bracket_stops, shot.width, shot.height)


def _best_copies(shots: Sequence[Shot]) -> dict[tuple[object, ...], Shot]:
    """Of photos, in order of time, that are there more than once, the copy to use: in the folder where the photos taken just before and
    after it are, named as these are ("IMG_1 (1).jpg" and "IMG_1 copy.jpg" are not), else the one with the shortest name.
    """
    facts = [_facts(s) for s in shots]
    folders = [(s.path.parent, s.camera) for s in shots]
    shapes = [re.sub(r"\d+", "#", Path(s.name).stem.lower()) for s in shots]  # names without their numbers
    copies: dict[tuple[object, ...], list[int]] = {}
    for at, shot in enumerate(shots):
        if shot.time is not None:
            copies.setdefault(facts[at], []).append(at)

    def rank(at: int) -> tuple[int, int, int, int]:
        near = [i for i in _around(shots, at) if folders[i] == folders[at] and facts[i] != facts[at]]
        alike = {facts[i] for i in near if shapes[i] == shapes[at]}
        return -len({facts[i] for i in near}), -len(alike), len(shots[at].name), at

    return {one: shots[min(places, key=rank)] for one, places in copies.items() if len(places) > 1}


def _around(shots: Sequence[Shot], at: int) -> list[int]:
    """Indices of photos that a bracket could hold together with one of them, by time; shots are in its order."""
    found = []
    time = shots[at].time
    far = 4 * MAX_FRAMES  # copies are among them, and of a long series these are enough
    for way in (range(at - 1, max(at - far, 0) - 1, -1), range(at + 1, min(at + far, len(shots)))):
        for i in way:
            other = shots[i].time
            if time is None or other is None or abs((other - time).total_seconds()) > MAX_PAUSE_MANUAL_S:
                break
            found.append(i)
    return found


def _original(shot: Shot, before: Sequence[Shot]) -> Shot | None:
    """The photo of the same moment and settings that this one, by its name, is an edited version of."""
    for other in reversed(before):
        if shot.time is None or other.time != shot.time:
            return None
        same = (other.camera, other.exposure, other.bias_stops) == (shot.camera, shot.exposure, shot.bias_stops)
        rest = shot.path.stem.removeprefix(other.path.stem)
        if same and rest not in ("", shot.path.stem) and not rest[0].isdigit():
            return other
    return None


# ---- by metadata ----------------------------------------------------------------------------------------------------------


def _by_metadata(family: Sequence[Shot]) -> Found:
    """Brackets of one family, in order of time: a photo joins the open bracket, or closes it and begins another."""
    left: Left = []
    runs: list[list[Shot]] = []
    for shot in family:
        if shot.time is None:
            left.append((shot, f"no time in its metadata: {BY_OPTIONS}"))
        elif shot.ev is None and shot.bias_stops is None:
            left.append((shot, f"no exposure in its metadata: {BY_OPTIONS}"))
        elif runs and _continues(runs[-1], shot):
            runs[-1].append(shot)
        else:
            runs.append([shot])
    runs = _out_and_back(runs)
    usual = Counter(len(run) for run in runs if len(run) > 1 and run[0].bracketing)
    most = usual.most_common(1)[0][0] if usual else 0
    groups: list[Group] = []
    for run in runs:
        why, doubt = _judged(run)
        if doubt:
            left += [(shot, doubt) for shot in run]
        else:
            short = run[0].bracketing and len(run) < most and usual[most] > 1
            groups.append(Group(tuple(run), f"{why}; most brackets of this camera have {most}: is one missing?" if short else why))
    return groups, left


def _continues(run: Sequence[Shot], shot: Shot) -> bool:
    """Whether a photo belongs to the bracket at hand."""
    last = run[-1]
    if last.bracketing != shot.bracketing:
        return False
    pause = _pause_s(last, shot)
    if shot.bracketing:
        return pause <= MAX_PAUSE_BRACKETING_S and _new_exposure(run, shot) and not _rested(run, pause)
    if MANUAL in (last.exposure_mode, shot.exposure_mode):
        if last.exposure_mode != shot.exposure_mode or not _only_time_or_iso(last, shot) or not _new_exposure(run, shot):
            return False
        quick = all(_pause_s(a, b) <= MAX_PAUSE_QUICK_S for a, b in zip(run, (*run[1:], shot), strict=True))
        return quick or (pause <= MAX_PAUSE_MANUAL_S and _widens(run, shot))
    if pause <= MAX_PAUSE_COMPENSATED_S and _compensated(run, shot):
        return True
    # No exposure mode at all: software left it out, or an old camera. Only a burst is close enough then.
    return shot.exposure_mode is None and last.exposure_mode is None and pause <= USUAL_REST_S and _new_exposure(run, shot)


def _pause_s(before: Shot, after: Shot) -> float:
    """Seconds between two photos beyond what exposing takes: cameras write the start or the end, and expose again to remove noise."""
    assert before.time is not None
    assert after.time is not None
    taken = 2 * (before.exposure_time_s or 0.0) + (after.exposure_time_s or 0.0)
    return max((after.time - before.time).total_seconds() - taken, 0.0)


def _rested(run: Sequence[Shot], pause: float) -> bool:
    """The camera was quick, and then somebody waited."""
    pauses = [_pause_s(a, b) for a, b in pairwise(run)]
    return bool(pauses) and pause > 3 * max(pauses) + 2 * USUAL_REST_S


def _steps(shots: Sequence[Shot]) -> list[float]:
    """Place of each photo in its bracket, in stops: what the maker says, else the compensation, else the exposure itself.

    The first two repeat exactly from bracket to bracket, while a metered exposure drifts.
    """
    choices: tuple[Callable[[Shot], float | None], ...] = (lambda s: s.bracket_stops, lambda s: s.bias_stops, lambda s: s.ev)
    for choice in choices:
        values = [choice(s) for s in shots]
        known = [v for v in values if v is not None]
        if len(known) == len(values) and (len(values) < 2 or max(known) - min(known) > SAME_STOPS):
            return known
    return [0.0] * len(shots)


def _new_exposure(run: Sequence[Shot], shot: Shot) -> bool:
    """It differs from all of the bracket: by its place where that is known, else by most of a step, since metering drifts."""
    shots = [*run, shot]
    values = _steps(shots)
    least = SAME_STOPS
    if shot.bracketing and len({s.bracket_stops for s in shots}) == 1 == len({s.bias_stops for s in shots}):
        steps = [abs(a - b) for a, b in combinations(values[:-1], 2)]
        least = min([DRIFT_STOPS, *(0.8 * step for step in steps)])
    return min(abs(values[-1] - v) for v in values[:-1]) > least


def _only_time_or_iso(a: Shot, b: Shot) -> bool:
    return a.f_number == b.f_number and (a.iso == b.iso or a.exposure_time_s == b.exposure_time_s)


def _widens(run: Sequence[Shot], shot: Shot) -> bool:
    """It is brighter or darker than all before: a photographer steps outwards, and a chance order seldom does."""
    values = [s.ev for s in run if s.ev is not None]
    return shot.ev is not None and not min(values) < shot.ev < max(values)


def _compensated(run: Sequence[Shot], shot: Shot) -> bool:
    """Its compensation is new, and the exposure followed: the camera metered the same light."""
    first = run[0]
    biases = [s.bias_stops for s in run]
    if shot.bias_stops is None or None in biases or min(abs(shot.bias_stops - (b or 0.0)) for b in biases) <= SAME_STOPS:
        return False
    if shot.ev is None or first.ev is None or first.bias_stops is None:
        return False
    return abs((shot.ev - first.ev) - (shot.bias_stops - first.bias_stops)) <= METERED_STOPS


def _out_and_back(runs: list[list[Shot]]) -> list[list[Shot]]:
    """Two brackets set by hand that begin at the same exposure and go opposite ways from it are one."""
    joined: list[list[Shot]] = []
    for run in runs:
        before = joined[-1] if joined else []
        if len(run) > 1 and len(before) > 1 and not run[0].bracketing and run[0].exposure_mode == MANUAL == before[0].exposure_mode:
            evs, back = [s.ev or 0.0 for s in before], [s.ev or 0.0 for s in run]
            same = abs(evs[0] - back[0]) <= SAME_STOPS and _only_time_or_iso(before[0], run[0])
            out = evs[0] in (min(evs), max(evs)) and back[0] in (min(back), max(back))
            opposite = (max(evs) - evs[0] > SAME_STOPS) != (max(back) - back[0] > SAME_STOPS)
            pauses = [_pause_s(a, b) for part in (before, run) for a, b in pairwise(part)]
            if same and out and opposite and _pause_s(before[-1], run[0]) <= 2 * max(pauses) + USUAL_REST_S:
                before += run
                continue
        joined.append(run)
    return joined


def _judged(run: Sequence[Shot]) -> tuple[str, str]:
    """(why these are a bracket, "") or ("", why not)."""
    if len(run) == 1:
        if run[0].bracketing:
            return "", "the camera was bracketing, but no other photo of that bracket is here"
        return "", "a single photo: none of the same camera, size and focal length belongs to it by time and exposure"
    if len(run) > MAX_FRAMES:
        return "", f"one of {len(run)} photos in a row with rising or falling exposures; a bracket has at most {MAX_FRAMES}"
    values = [s.ev if s.ev is not None else s.bias_stops or 0.0 for s in run]
    span = max(values) - min(values)
    pauses = [_pause_s(a, b) for a, b in pairwise(run)]
    if not run[0].bracketing and max(pauses) > MAX_PAUSE_QUICK_S:
        by_hand = run[0].exposure_mode == MANUAL
        if by_hand and (span < LEAST_MANUAL_STOPS or len(run) < LEAST_MANUAL_FRAMES):
            return "", f"set by hand {max(pauses):.0f} s apart: {len(run)} photos over {span:.1f} stops may be one bracket or not"
    how = (
        "the camera says it bracketed"
        if run[0].bracketing
        else "exposures set by hand, all else the same"
        if run[0].exposure_mode == MANUAL
        else "exposure compensation differs"
        if _compensated(run[:1], run[1])
        else "a burst whose exposures differ"
    )
    took = (run[-1].time - run[0].time).total_seconds() if run[0].time and run[-1].time else 0.0
    return f"{how}; {len(run)} photos over {span:.1f} stops in {took:.0f} s", ""


# ---- by size or name ------------------------------------------------------------------------------------------------------


def _of_size(family: Sequence[Shot], frames: int) -> Found:
    """Brackets of so many photos in a row, without a long pause inside and without an exposure twice."""
    groups: list[Group] = []
    left: Left = []
    timeless = all(s.time is None for s in family)
    if timeless and len(family) % frames and all(s.ev is None for s in family):
        # Nothing tells which photo is one too many: every bracket after it would be a mixture.
        return [], [(s, f"one of {len(family)} photos without times or exposures, which is no multiple of {frames}") for s in family]
    at = 0
    while at < len(family):
        taken = family[at : at + frames]
        reason = "" if len(taken) == frames else f"fewer than {frames} photos are left"
        if not reason and not timeless and max(_pause_s(a, b) for a, b in pairwise(taken)) > MAX_PAUSE_MANUAL_S:
            reason = f"no {frames} photos in a row from here: a pause of more than {MAX_PAUSE_MANUAL_S:.0f} s comes first"
        if not reason and any(not _new_exposure(taken[:i], s) for i, s in enumerate(taken) if i) and any(s.ev is not None for s in taken):
            reason = f"no {frames} different exposures in a row from here"
        if not reason and not timeless and len({s.bracketing for s in taken}) > 1:
            reason = f"no {frames} photos in a row from here that were all bracketed by the camera, or all not"
        if reason:
            left.append((taken[0], reason))
            at += 1
        else:
            groups.append(Group(tuple(taken), f"{frames} photos in a row"))
            at += frames
    return groups, left


def _by_name(shots: Sequence[Shot], pattern: str) -> Found:
    matcher = name_pattern(pattern)
    found: dict[tuple[Path, str], list[Shot]] = {}
    left: Left = []
    for shot in shots:
        match = matcher.fullmatch(shot.name) or matcher.fullmatch(shot.path.stem)
        if match is None:
            left.append((shot, f"its name does not match {pattern}"))
        else:
            key = match["set"] if "set" in matcher.groupindex else match[1]
            found.setdefault((shot.path.parent, key or ""), []).append(shot)
    groups: list[Group] = []
    for (_, key), members in found.items():
        sizes = {(s.width, s.height) for s in members}
        cameras = {s.camera for s in members}
        doubt = ""
        if len(members) < MIN_FRAMES:
            doubt = f"the only photo called {key!r}"
        elif len(members) > MAX_FRAMES:
            doubt = f"one of {len(members)} photos called {key!r}; a bracket has at most {MAX_FRAMES}"
        elif len(sizes) > 1:
            doubt = f"photos called {key!r} have {len(sizes)} sizes; those of a bracket have one"
        elif len(cameras) > 1:
            doubt = f"photos called {key!r} are of {len(cameras)} cameras"
        if doubt:
            left += [(s, doubt) for s in members]
        else:
            groups.append(Group(tuple(members), f"file names share {key!r}"))
    return groups, left


def name_pattern(pattern: str) -> re.Pattern[str]:
    """The pattern compiled, case ignored. Raises InputError where it is none, or names no part."""
    if "{set}" in pattern:
        glob = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern.replace("{set}", "\0"))
        return re.compile(glob.replace(re.escape("\0"), "(?P<set>.+?)"), re.IGNORECASE)
    try:
        compiled = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise InputError(f"pattern {pattern!r} is no regular expression ({error}); expected for example '{{set}}_*.jpg'") from None
    if "set" not in compiled.groupindex and compiled.groups != 1:
        raise InputError(f"pattern {pattern!r} does not say which part of a name its bracket shares: '{{set}}_*.jpg' or '(.*)_[0-9]'")
    return compiled
