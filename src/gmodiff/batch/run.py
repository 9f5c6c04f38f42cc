"""A batch: sets that are planned, made by workers here or on a cluster, and written down one by one in a manifest.

The output folder holds the pictures, `batch.jsonl` (the manifest), `batch.html` (the report), and a hidden folder with previews and
what is not finished. Whatever ends a batch, only whole pictures have names; the next run makes what is missing, failed or changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gmodiff import __version__
from gmodiff.batch.capacity import KEPT_FREE, set_bytes, worker_count
from gmodiff.batch.manifest import DONE, FAILED, STARTED, Manifest, Row
from gmodiff.batch.one_set import Job, Settings
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.storage import HIDDEN, absolute, is_url, join, name, size, stamp
from gmodiff.batch.watcher import Watcher
from gmodiff.batch.wording import counted, printable
from gmodiff.batch.workers import Outcome, Stop, run_here
from gmodiff.errors import InputError, OutputError
from gmodiff.machine import free_bytes, held_alone
from gmodiff.runtime import NO_MODEL

MANIFEST, REPORT = "batch.jsonl", "batch.html"
UNKNOWN_PIXELS = 24_000_000
"""Assumed of photos whose size a plan does not tell, when memory is reckoned."""

MARKED = (".jpg", ".jpeg", ".avif", ".png", ".jxl")
"""Results that name this program inside."""

CLOCKS_APART_S = 60.0
"""The clock of a network disk may be so much behind this machine's."""


@dataclass
class Outcomes:
    """What a batch did: names of the sets made, up to date, failed; those left, not begun or dropped; of these, those dropped.

    errors: reason of each that failed.   changed: how many were made before with other settings, exposures or reference.
    unplanned: pictures of earlier runs, still there, whose photos are looked through but whose set is no longer in the plan.
    """

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    seconds: float = 0.0
    workers: int = 0
    disk_full: str = ""
    errors: dict[str, str] = field(default_factory=dict)
    changed: int = 0


def run_batch(
    plan: PlanFile,
    output: str,
    settings: Settings,
    *,
    manifest: Path | None = None,
    workers: int | None = None,
    memory: int | None = None,
    cluster: str | None = None,
    again: bool = False,
    force: bool = False,
    watcher: Watcher | None = None,
    stop: Stop | None = None,
) -> Outcomes:
    """Make every set of a plan that is not done and up to date.

    output: folder or URL of the results.   manifest: its file; default: in the output folder, needed where that is a URL.
    workers: processes, default by cores and memory.   memory: bytes they may take together, default what is free.
    cluster: address of a dask scheduler.   again: make everything anew.   force: replace files that no manifest knows.
    Raises InputError, OutputError and their relatives for what concerns the whole batch; what concerns one set is its row.
    """
    started = time.monotonic()
    watcher, stop = watcher or Watcher(), stop or Stop()
    if not plan.sets:
        raise InputError("there is no set to make: see --dry-run for what was left over and why, or give --frames or --pattern")
    path, state = _places(output, manifest)
    with _alone(state):
        record = Manifest(path)
        for note in record.notes:
            watcher.note(note)
        scratch = None if is_url(output) else _fresh_scratch(output, path)
        outcomes = Outcomes()
        try:
            jobs = _jobs(plan, output, settings, record, outcomes, scratch=scratch, again=again)
            if not force:
                jobs = _checked_free(jobs, record)
            budget = memory if memory is not None else int(free_bytes() * (1 - KEPT_FREE))
            count = worker_count([j.bytes for j in jobs], budget, workers)
            outcomes.workers = 0 if cluster else min(count, max(len(jobs), 1))
            if outcomes.changed:
                watcher.note(f"{counted(outcomes.changed, 'set')} made with other settings, exposures or reference before: made anew")
            watcher.begins(len(jobs), len(outcomes.kept), outcomes.workers)

            begun: set[str] = set()
            doubts = {s.output: s.doubt for s in plan.sets}

            def starting(job: Job) -> None:
                begun.add(job.output)
                record.append({"output": job.output, "status": STARTED, "photos": [], "settings": {}, "finished": _now()})

            def ended(job: Job, outcome: Outcome) -> None:
                _finish(job, outcome, record, outcomes, doubts.get(job.output, ""), watcher, stop)

            if not jobs:
                pass
            elif cluster is not None:
                from gmodiff.batch.cluster import run_on_cluster

                run_on_cluster(jobs, cluster, starting=starting, ended=ended, tick=watcher.tick, note=watcher.note, stop=stop)
            else:
                run_here(
                    jobs,
                    count=count,
                    memory=budget,
                    memory_given=memory is not None,
                    starting=starting,
                    ended=ended,
                    tick=watcher.tick,
                    stop=stop,
                )
            over = {*outcomes.made, *outcomes.kept, *outcomes.failed}
            outcomes.left = [s.output for s in plan.sets if s.output not in over]
            outcomes.unplanned = [n for n in no_longer_planned(record, plan) if n in record.done and size(join(output, n)) is not None]
            outcomes.dropped = [name for name in outcomes.left if name in begun]
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
                with contextlib.suppress(OSError):  # where the manifest lies elsewhere, nothing else is in it
                    Path(scratch).parent.rmdir()
        outcomes.seconds = time.monotonic() - started
        return outcomes


def no_longer_planned(record: Manifest, plan: PlanFile) -> list[str]:
    """Results of earlier runs that a plan could hold, and does not: of its photos or files, or of what was below what it looked through.

    Results of other cards, and of folders that this plan is not about, are none of them.
    """
    now = {s.output for s in plan.sets}
    known = {absolute(p) for s in plan.sets for p in s.photos} | {absolute(p) for p, _ in plan.leftovers}
    below = tuple(absolute(s).rstrip("/") + ("/" if is_url(s) else os.sep) for s in plan.sources)

    def within(place: str) -> bool:
        return place in known or place.startswith(below)

    return [n for n, row in record.finished.items() if n not in now and any(within(absolute(str(p.get("place")))) for p in row["photos"])]


def manifest_of(output: str, manifest: Path | None = None) -> Path:
    """Where the manifest of an output folder is. Raises InputError for a URL without one."""
    return _places(output, manifest)[0]


def report_of(output: str, manifest: Path | None = None) -> Path:
    """Where the report is written: beside the manifest."""
    path = manifest_of(output, manifest)
    return path.with_name(REPORT) if path.name == MANIFEST else path.with_suffix(".html")


def preview_of(manifest: Path, output: str) -> Path:
    """Where the small picture of a result is kept for the report."""
    previews = "previews" if manifest.name == MANIFEST else f"previews of {manifest.name}"  # several manifests may lie in one folder
    return manifest.parent / HIDDEN / previews / f"{output}.jpg"


# ---- before ---------------------------------------------------------------------------------------------------------------


def _places(output: str, manifest: Path | None) -> tuple[Path, Path]:
    """(manifest file, hidden folder beside it)."""
    if manifest is None:
        if is_url(output):
            raise InputError(f"{output}: stores do not let a file grow; give --manifest FILE, where the manifest is kept here")
        manifest = Path(output) / MANIFEST
    return manifest, manifest.parent / HIDDEN


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """The hidden folder, held by this process alone; the system lets go of it whatever ends the process."""
    made = [folder for folder in (state, *state.parents) if not folder.exists()]
    try:
        state.mkdir(parents=True, exist_ok=True)
        lock: IO[bytes] = (state / "lock").open("ab")
    except OSError as error:
        raise OutputError(
            f"{state.parent}: cannot be written ({(error.strerror or str(error)).lower()}); give another output folder"
        ) from None
    with lock:
        if not held_alone(lock.fileno()):
            raise InputError(f"{state.parent}: another gmodiff batch is writing there; wait for it, or give another output folder")
        try:
            yield
        except BaseException:
            _unmake(made, state)
            raise


def _unmake(made: Sequence[Path], state: Path) -> None:
    """Remove folders that were made for a batch that could not begin; one with anything in it stays."""
    with contextlib.suppress(OSError):
        if made and [p.name for p in state.iterdir()] == ["lock"]:
            (state / "lock").unlink()
        for folder in made:
            folder.rmdir()


def _fresh_scratch(output: str, manifest: Path) -> str:
    """An empty folder for unfinished files, below the results, where workers on other machines reach it too.

    What a killed batch of the same manifest left there goes; batches of others may be at work.
    """
    own = manifest.parent.resolve() == Path(output).resolve() and manifest.name == MANIFEST
    folder = "unfinished" if own else f"unfinished-{hashlib.sha256(os.fsencode(manifest.resolve())).hexdigest()[:12]}"
    scratch = Path(output) / HIDDEN / folder
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise OutputError(f"{scratch}: cannot be made ({(error.strerror or str(error)).lower()})") from None
    return str(scratch.resolve())


def _jobs(
    plan: PlanFile,
    output: str,
    settings: Settings,
    record: Manifest,
    outcomes: Outcomes,
    *,
    scratch: str | None,
    again: bool,
) -> list[Job]:
    """What has to be made, or looked at; the rest goes to outcomes.kept."""
    jobs = []
    sources = {_one_file(p) for s in plan.sets for p in s.photos}
    others = {_one_file(p) for p, _ in plan.leftovers}  # earlier results among them, where they lie on the card
    for one in plan.sets:
        target = join(output, one.output)
        here = _one_file(target)
        if here in sources or (here in others and not _is_own(target) and not _is_result(size(target), record.done.get(one.output))):
            what = "one of the photos" if here in sources else "on the card"
            raise InputError(f"{printable(target)} is {what}: give another output folder or --name; photos are never replaced")
        row = None if again else record.finished.get(one.output)
        known = None
        if row is not None and row["status"] == DONE and size(target) is not None and not _is_asked(row, one, settings):
            outcomes.changed += 1
        if row is not None and _is_whole(row, one, settings, target) and record.last[one.output]["status"] == DONE:
            if all(stamp(p["place"]) == p["stamp"] for p in row["photos"]):
                outcomes.kept.append(one.output)
                continue
            known = tuple(p["sha256"] for p in row["photos"])  # touched or copied, and perhaps still the same
        need = set_bytes(one.pixels or UNKNOWN_PIXELS, len(one.photos), raw=one.raw, network=settings.model != NO_MODEL)
        jobs.append(Job(one.output, target, one.photos, settings, scratch, one.ev, one.reference, known, bytes=need))
    return jobs


def _one_file(place: str) -> str:
    """The same for every way to write a place."""
    whole = absolute(place)
    return whole if is_url(whole) else os.path.realpath(whole)


def _is_whole(row: Row, one: PlannedSet, settings: Settings, target: str) -> bool:
    """The picture of a row is there, of these photos and with these settings."""
    same = row["status"] == DONE and [p.get("place") for p in row["photos"]] == list(one.photos)
    return same and _is_asked(row, one, settings) and size(target) == row.get("bytes")


def _is_asked(row: Row, one: PlannedSet, settings: Settings) -> bool:
    asked = {"ev": None if one.ev is None else list(one.ev), "reference": one.reference}
    return bool(row["settings"] == settings.as_dict() and row.get("asked") == asked)


def _checked_free(jobs: Sequence[Job], record: Manifest) -> list[Job]:
    """The jobs, with whether their places are free. Raises InputError where a file would be replaced that this batch did not make."""
    strangers, checked = [], []
    for job in jobs:
        row, there = record.done.get(job.output), size(job.target)  # asked once: a store may be far away
        checked.append(replace(job, fresh=there is None))
        if there is None or _left_by_a_kill(job, record):
            continue
        if row is None:
            strangers.append(job)
        elif not _is_result(there, row):
            raise InputError(
                f"{printable(job.target)} was changed since it was made: move it away, give another output folder or --name, or --force "
                "to make it anew"
            )
        elif not _shares_a_photo(job, row):
            raise InputError(
                f"{printable(job.target)} is the picture of other photos ({printable(str(row['photos'][0]['place']))} ...): give "
                "another output folder or --name, or --force to replace it"
            )
    if not strangers:
        return checked
    target = strangers[0].target
    first = printable(target)
    more = f" (and {len(strangers) - 1} more)" if len(strangers) > 1 else ""
    # Without a manifest, previews tell too: some formats have no place for this program's mark.
    if _is_own(target) or (not record.last and preview_of(record.path, strangers[0].output).exists()):
        raise InputError(
            f"{first} exists and {record.path.name} does not tell of it{more}; gmodiff made it, perhaps this batch before its manifest was "
            "lost or cut: put the manifest back, or --force to make it anew, or give another output folder or --name"
        )
    raise InputError(f"{first} exists and is not of this batch{more}: give another output folder or --name, or --force to replace it")


def _is_result(there: int | None, row: Row | None) -> bool:
    """A file of so many bytes is what a finished row tells of, as far as its length says."""
    return row is not None and there == row.get("bytes")


def _shares_a_photo(job: Job, row: Row) -> bool:
    """Whether a job is of a bracket that a picture was made of: by place, or, for a card that lies elsewhere now, by name and stamp."""
    places = {absolute(str(p.get("place"))) for p in row["photos"]}
    known = {(name(str(p.get("place"))), p.get("stamp")) for p in row["photos"]}
    return any(absolute(p) in places or (name(p), stamp(p)) in known for p in job.photos)


def _left_by_a_kill(job: Job, record: Manifest) -> bool:
    """A picture that was begun and has no further line may be there already: a kill came between the picture and its line."""
    row = record.begun.get(job.output)
    if row is None:
        return False
    if is_url(job.target):
        return True
    try:
        begun = datetime.fromisoformat(str(row["finished"])).timestamp()
        if os.stat(job.target).st_mtime < begun - CLOCKS_APART_S:
            return False
    except (KeyError, ValueError, OSError):
        return False
    return Path(job.target).suffix.lower() not in MARKED or _is_own(job.target)


def _is_own(target: str) -> bool:
    """Whether a file says that this program made it; False for formats that do not say."""
    from gmodiff.bracket import refuse_own_result

    try:
        if not is_url(target):
            refuse_own_result(Path(target))
    except InputError:
        return True
    return False


# ---- after each set -------------------------------------------------------------------------------------------------------


def _finish(job: Job, outcome: Outcome, record: Manifest, outcomes: Outcomes, doubt: str, watcher: Watcher, stop: Stop) -> None:
    """Write down what became of a set: picture first, then preview, then the row."""
    preview = outcome.pop("preview", b"")
    full = outcome.pop("full", False)
    if outcome.pop("kept", False):
        before = record.finished[job.output]
        told = {k: v for k, v in before.items() if k != "doubt"} | ({"doubt": doubt} if doubt else {})
        record.append({**told, "photos": outcome["photos"], "finished": _now()})
        outcomes.kept.append(job.output)
        watcher.ended(job.output, record.finished[job.output])
        return
    if preview:
        place = preview_of(record.path, job.output)
        with contextlib.suppress(OSError):  # a report without one picture is better than a batch without a row
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(preview)
    asked = {"ev": None if job.ev is None else list(job.ev), "reference": job.reference}
    row = {
        "output": job.output,
        "status": outcome.pop("status"),
        "photos": outcome.pop("photos"),
        "settings": job.settings.as_dict(),
        "asked": asked,
        "version": __version__,
        **({"doubt": doubt} if doubt else {}),
        **outcome,
        "finished": _now(),
    }
    record.append(row)
    (outcomes.failed if row["status"] == FAILED else outcomes.made).append(job.output)
    if row["status"] == FAILED:
        outcomes.errors[job.output] = str(row.get("error", ""))
    watcher.ended(job.output, row)
    if full and not stop.finish:
        outcomes.disk_full = str(row.get("error", ""))
        stop.finish = True  # every further set would find the same


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
