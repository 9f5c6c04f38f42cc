"""Every method on every scene, one row each, appended as it comes; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import gmodiff
from gmodiff.datasets.scene import Dataset, Scene, SceneSource
from gmodiff.errors import GMODiffError, InputError, MissingDependencyError, OutputError
from gmodiff.evaluate import perceptual
from gmodiff.evaluate.cost import measured
from gmodiff.evaluate.methods import METHODS, Method, method
from gmodiff.evaluate.metrics import ExtraMetric, Scorer, fitted_scale
from gmodiff.evaluate.oracle import NotApplicable
from gmodiff.evaluate.rows import Row, append_row, read_rows
from gmodiff.evaluate.sheets import save_pictures
from gmodiff.radiometry import F32
from gmodiff.tiling import threads

DIGITS = 5
"""Decimals of metrics in rows: finer than any difference that means something."""


Watcher = Callable[[int, int, Row | None], None]
"""Told rows done, rows in all, and the row that just came (None at the start)."""


@dataclass(frozen=True)
class Job:
    """One scene and the methods still to run on it: what a worker gets."""

    dataset: str
    source: SceneSource
    fingerprint: str
    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    pictures: Path | None
    workers: int
    commit: str | None


@dataclass(frozen=True)
class Outcome:
    """Where the rows are, how many came now and how many were there, and sentences for the user."""

    rows: Path
    new: int
    kept: int
    failed: int
    notes: tuple[str, ...]


def evaluate(
    dataset: Dataset,
    out: Path,
    *,
    methods: Sequence[str] = tuple(METHODS),
    metrics: Sequence[str] | None = None,
    scenes: Sequence[str] = (),
    workers: int = 1,
    resume: bool = False,
    force: bool = False,
    pictures: bool = True,
    progress: Watcher | None = None,
) -> Outcome:
    """Run methods on a dataset, and append their rows to out/<dataset>.jsonl (see `rows`); pictures go to out/<dataset>/pictures.

    methods: see `methods.method`.   metrics: beyond PSNR, SSIM and PU21, see `perceptual.NAMES`; None for JOD where it can be had.
    scenes: names or patterns (*, ?); empty for all.   workers: scenes run beside each other, each with its share of the cores.
    resume: keep rows that are there and still hold (same scene, files, version and commit of this project, not failed); force: start anew.
    A scene or a method that fails makes a row that says so, and the run goes on.

    Raises InputError for unknown names, OutputError where rows are there and neither resume nor force is given, or cannot be written,
    MissingDependencyError where a metric asked for is not installed.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: expected 1 or more")
    names = {method(m).name: m for m in methods}
    if len(names) < len(set(methods)):
        raise InputError(f"two methods have one name: {', '.join(methods)}; say NAME=saved:FOLDER to tell outputs apart")
    wanted, notes = _available(metrics)
    chosen = _chosen(dataset, scenes)
    fingerprints = _fingerprints(chosen)
    path = out / f"{dataset.name}.jsonl"
    kept = _earlier(path, resume, force, notes)
    folder = out / dataset.name / "pictures" if pictures else None
    _make_folder(folder or out / dataset.name)
    workers = min(workers, len(chosen))
    commit = source_commit()
    jobs, unreadable, done, total = [], [], 0, 0
    for source in chosen:
        found = fingerprints[source.name]
        if isinstance(found, GMODiffError):
            job = Job(dataset.name, source, "", tuple(names.values()), wanted, None, workers, commit)
            unreadable += [_row(job, n, {"status": "failed", "error": str(found)}) for n in names]
            continue
        states = {n: method(m).state(source.name) for n, m in names.items()}
        missing = tuple(m for n, m in names.items() if not _holds(kept.get((source.name, n)), found, states[n], commit, wanted))
        total += len(missing)
        if missing:
            jobs.append(Job(dataset.name, source, found, missing, wanted, folder, workers, commit))
    total += len(unreadable)
    failed = 0
    if progress is not None:
        progress(0, total, None)

    def keep(row: Row) -> None:
        nonlocal done, failed
        _append(path, row)
        done += 1
        failed += row["status"] == "failed"
        if progress is not None:
            progress(done, total, row)

    for row in unreadable:
        keep(row)
    for row in _in_this_process(jobs) if workers == 1 else _in_workers(jobs, workers):
        keep(row)
    return Outcome(path, done, len(chosen) * len(names) - done, failed, tuple(notes))


# ---- before -----------------------------------------------------------------------------------------------------------------


def _available(metrics: Sequence[str] | None) -> tuple[tuple[str, ...], list[str]]:
    """Names of the extra metrics that can be had, and why the default one cannot."""
    if metrics is not None:
        for name in metrics:
            perceptual.load(name)
        return tuple(dict.fromkeys(metrics)), []
    try:
        perceptual.load("jod")
    except MissingDependencyError as error:
        return (), [f"no JOD column: {error}"]
    return ("jod",), []


def _chosen(dataset: Dataset, patterns: Sequence[str]) -> tuple[SceneSource, ...]:
    for pattern in patterns:
        if not any(fnmatchcase(s.name, pattern) for s in dataset.scenes):
            some = ", ".join(s.name for s in dataset.scenes[:4]) + (" ..." if len(dataset.scenes) > 4 else "")
            raise InputError(f"no scene of {dataset.name} is called {pattern!r}; it has {len(dataset.scenes)}: {some}")
    chosen = tuple(s for s in dataset.scenes if not patterns or any(fnmatchcase(s.name, p) for p in patterns))
    if not chosen:
        raise InputError(f"{dataset.name} holds no scenes")
    return chosen


def _fingerprints(sources: Sequence[SceneSource]) -> dict[str, str | GMODiffError]:
    """By name, what each scene is made from, or what keeps it from being read. Raises where not one can be: a wrong folder, most likely."""
    found: dict[str, str | GMODiffError] = {}
    for source in sources:
        try:
            found[source.name] = source.fingerprint
        except GMODiffError as error:
            found[source.name] = error
    errors = [e for e in found.values() if isinstance(e, GMODiffError)]
    if len(errors) == len(found):
        raise errors[0]
    return found


def _earlier(path: Path, resume: bool, force: bool, notes: list[str]) -> dict[tuple[str, str], Row]:
    """Rows there already, the last of each scene and method."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists() and path.stat().st_size > 0
        if there and not resume and not force:
            raise OutputError(f"{path} is there already: --resume continues it, --force starts it anew")
        if force and not resume:
            path.unlink(missing_ok=True)
            return {}
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None
    if not there:
        return {}
    rows, damaged = read_rows(path)
    notes += damaged
    return {(r["scene"], r["method"]): r for r in rows}


def _holds(row: Row | None, fingerprint: str, state: str, commit: str | None, metrics: Sequence[str]) -> bool:
    """Whether a row needs no second run: same scene, same method, same code."""
    return (
        row is not None
        and row["status"] in ("ok", "skipped")
        and row.get("source_hash") == fingerprint
        and row.get("method_hash", "") == state
        and (row.get("version"), row.get("commit")) == (gmodiff.__version__, commit)
        and (row["status"] == "skipped" or set(metrics) <= set(row["settings"]))
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None


def source_commit() -> str | None:
    """`git describe` of the checkout this package runs from; None where it is installed otherwise."""
    package = Path(gmodiff.__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        ours = Path(git("rev-parse", "--show-toplevel")) / "src" / "gmodiff" == package
        return git("describe", "--always", "--dirty") if ours else None
    except (OSError, subprocess.SubprocessError):
        return None


def _append(path: Path, row: Row) -> None:
    try:
        append_row(path, row)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); rows written so far are whole, --resume continues") from None


# ---- during -----------------------------------------------------------------------------------------------------------------


def run_job(job: Job) -> Iterator[Row]:
    """Rows of one scene, one method after the other."""
    extra = _loaded(job.metrics)
    ways = [method(m) for m in job.methods]
    try:
        scene = job.source.load()
        scorer = Scorer(scene, extra) if scene.truth is not None else None
        shared = {"facts": dict(scene.facts), "scene_hash": scene.hash}
    except Exception as error:  # whatever is wrong with a scene, the others still count
        for how in ways:
            yield _row(job, how.name, {"status": "failed", "error": one_line(error)})
        return
    for how in ways:
        try:
            result, estimate = _measured(how, scene, scorer, extra)
        except NotApplicable as error:
            result, estimate = {"status": "skipped", "error": str(error)}, None
        except Exception as error:  # a row says so, and the run goes on
            result, estimate = {"status": "failed", "error": one_line(error)}, None
        yield _row(job, how.name, {**shared, **result, "method_hash": how.state(job.source.name)})
        if job.pictures is not None and estimate is not None:
            try:
                save_pictures(job.pictures, scene, how.name, estimate)
            except OSError as error:  # a disk that refuses is no fault of the method
                raise OutputError(f"{job.pictures}: a picture cannot be written ({error.strerror})") from None


def _measured(how: Method, scene: Scene, scorer: Scorer | None, extra: Sequence[ExtraMetric]) -> tuple[dict[str, Any], F32]:
    """What the row says of a method, and its radiance as it was scored."""
    how.prepare()
    seen = scene if how.sees_truth else scene.blind()
    estimate, seconds, peak = measured(lambda: _checked(how, seen))
    values, scale = _scored(estimate, scene, scorer, how, extra)
    settings = scorer.settings if scorer is not None else {}
    settings |= {m.name: "not measured: there is no truth" if scorer is None and m.needs_truth else m.settings for m in extra}
    return {
        "status": "ok",
        "metrics": {k: None if v is None else round(v, DIGITS) for k, v in values.items()},
        "settings": settings,
        "scale": round(scale, 6),
        "seconds": round(seconds, 3) if how.timed else None,
        "peak_mb": None if peak is None or not how.timed else round(peak, 1),
    }, estimate * np.float32(scale)


def _checked(how: Method, scene: Scene) -> F32:
    estimate = np.asarray(how.run(scene), np.float32)
    if estimate.shape != (*scene.bracket.shape, 3):
        raise InputError(f"its radiance has shape {estimate.shape}, expected {(*scene.bracket.shape, 3)}")
    return estimate


def _scored(
    estimate: F32, scene: Scene, scorer: Scorer | None, how: Method, extra: Sequence[ExtraMetric]
) -> tuple[dict[str, float | None], float]:
    if scorer is None:
        white = np.float32(scene.short_white)
        relative = np.clip(np.nan_to_num(estimate) / white, 0, 1)
        found: dict[str, float | None] = {}
        for metric in extra:
            if not metric.needs_truth:
                found |= metric(relative, relative, {}, scene.short_white)
        return found, 1.0
    if not how.fitted:
        return scorer(estimate), 1.0
    scale = fitted_scale(estimate, scene)
    return {**scorer(estimate * np.float32(scale)), **scorer.unscaled(estimate)}, scale


_metrics: dict[str, ExtraMetric] = {}


def _loaded(names: Sequence[str]) -> tuple[ExtraMetric, ...]:
    """Metrics are loaded once in a process: ColorVideoVDP takes seconds."""
    for name in names:
        if name not in _metrics:
            _metrics[name] = perceptual.load(name)
    return tuple(_metrics[n] for n in names)


def _row(job: Job, name: str, result: dict[str, Any]) -> Row:
    row: dict[str, Any] = {"dataset": job.dataset, "scene": job.source.name, "method": name}
    row |= {"status": "failed", "metrics": {}, "settings": {}, "facts": {}, **result}
    row |= {"threads": threads(), "workers": job.workers, "source_hash": job.fingerprint}
    return row | {"version": gmodiff.__version__, "commit": job.commit, "finished": datetime.now(UTC).isoformat(timespec="seconds")}


def one_line(error: BaseException) -> str:
    """An error for a row: our own as they are, others with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, GMODiffError) else f"{type(error).__name__}: {text}"[:300]


# ---- processes --------------------------------------------------------------------------------------------------------------


def _in_this_process(jobs: Sequence[Job]) -> Iterator[Row]:
    for job in jobs:
        yield from run_job(job)


def _in_workers(jobs: Sequence[Job], workers: int) -> Iterator[Row]:
    """Rows as they come from processes that share the cores."""
    context = multiprocessing.get_context("spawn")
    rows: Any = context.Queue()
    cores: Any = context.Queue()
    for share in _shares(workers):
        cores.put(share)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(rows, cores))
    try:
        futures = [pool.submit(_work, job) for job in jobs]
        yield from _until_done(rows, futures)
    except BrokenProcessPool:
        raise OutputError(
            "a worker ended without a word, perhaps for want of memory: rows so far are kept; go on with --resume and fewer --workers"
        ) from None
    finally:
        # Also after Ctrl-C: nothing is waited for that nobody wants any more.
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            if any(not f.done() for f in futures):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _until_done(rows: Any, futures: Sequence[Future[int]]) -> Iterator[Row]:
    received = 0
    while True:
        finished = all(f.done() for f in futures)
        with suppress(queue.Empty):
            while True:
                yield rows.get(timeout=0.2)
                received += 1
        if finished:
            # A queue delivers a moment after the worker that filled it is done.
            if received >= sum(f.result() for f in futures):
                return
        else:
            for future in futures:
                if future.done():
                    future.result()


def _shares(workers: int) -> list[list[int]]:
    """Cores for each worker: equal parts, at least one core, every core in use."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    return [[c for i, c in enumerate(cores) if i % workers == w % len(cores)] or [cores[w % len(cores)]] for w in range(workers)]


_rows_out: Any = None


def _start_worker(rows: Any, cores: Any) -> None:
    global _rows_out
    _rows_out = rows
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    share = cores.get()
    if share:
        os.sched_setaffinity(0, share)
    cv2.setNumThreads(max(1, len(share)))


def _work(job: Job) -> int:
    count = 0
    for row in run_job(job):
        _rows_out.put(row)
        count += 1
    return count
