"""Sets on many machines: a dask.distributed cluster that is there already does them; the manifest stays here.

A worker of the cluster needs this package and reach of the photos and the output folder, by one path or by URL. Give each worker one
thread (`--nthreads 1`): a set uses several cores by itself, and memory is reckoned for one set a process.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gmodiff import __version__
from gmodiff.batch.one_set import Job, make_set
from gmodiff.batch.storage import absolute, is_url
from gmodiff.batch.workers import TICK_S, Outcome, Stop
from gmodiff.errors import InputError, MissingDependencyError

ANSWER_S = 10.0
"""How long a scheduler may take to answer, and then its first worker to be there."""

TRIES = 3
"""Begun again on another worker, where the one that had it is lost."""

AHEAD = 2
"""Sets handed out a thread of the cluster: one at hand, one waiting, so that no worker waits for us."""


def run_on_cluster(
    jobs: Sequence[Job],
    address: str,
    *,
    starting: Callable[[Job], None],
    ended: Callable[[Job, Outcome], None],
    tick: Callable[[int], None] = lambda running: None,
    note: Callable[[str], None] = lambda text: None,
    stop: Stop | None = None,
) -> None:
    """Make sets on the cluster whose scheduler answers at address (tcp://host:8786); the rest as `workers.run_here`.

    A set whose worker is lost goes to another, TRIES times in all. Raises InputError where no scheduler or no worker is there, where
    workers have another version of this package, or where the scheduler goes away; the next run goes on from there.
    """
    try:
        import distributed
    except ImportError:
        raise MissingDependencyError("--cluster needs dask.distributed: pip install 'gmodiff[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its news of lost workers are told by us, a line each
    client = _connected(distributed, address)
    stop = stop or Stop()
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    tries: dict[str, int] = {}
    alone = 0.0
    try:
        while waiting or running:
            if stop.drop or (stop.finish and not running):
                return
            threads = sum(client.nthreads().values()) if client.status == "running" else 0
            while waiting and not stop.finish and len(running) < max(AHEAD * threads, 1):
                job = waiting.pop(0)
                if job.output not in tries:
                    starting(job)
                tries[job.output] = tries.get(job.output, 0) + 1
                running[client.submit(make_set, _from_anywhere(job), pure=False, retries=0)] = job
            tick(min(len(running), threads))
            alone = _check_there(client, address, threads, alone, note)
            for future in _ready(distributed, list(running)):
                job = running.pop(future)
                outcome = _outcome(future, job)
                future.release()
                if outcome is None and stop.finish:
                    continue  # left for the next run
                if outcome is None and tries[job.output] < TRIES:
                    note(f"{job.output}: its worker was lost; begun again on another")
                    waiting.insert(0, replace(job, fresh=False))  # its picture may be there already
                    continue
                lost = f"its worker was lost {tries[job.output]} times: out of memory, or a machine that went away"
                ended(job, _as_given(outcome, job) if outcome else job.failed(lost))
    except OSError as error:  # a closed connection of dask's is one
        raise InputError(f"--cluster {address}: the connection was lost ({_line(error)}); run again to go on") from None
    finally:
        if running:
            client.cancel(list(running), force=True)
        client.close(timeout=2)


def _connected(distributed: Any, address: str) -> Any:
    refused = None
    try:
        client = distributed.Client(address, timeout=ANSWER_S)
    except ValueError as error:
        refused = InputError(f"--cluster {address}: not an address ({_line(error)}); expected tcp://HOST:PORT")
    except (OSError, TimeoutError):
        refused = InputError(f"--cluster {address}: no scheduler answers there; start one with `dask scheduler`, then workers")
    if refused is not None:
        # The half-made client closes itself when it is collected, and takes dask's lock of loops for that. Here nobody holds it; by chance,
        # in a loop that is starting, dask would wait for itself for ten seconds and give up.
        gc.collect()
        raise refused
    try:
        try:
            client.wait_for_workers(1, timeout=ANSWER_S)
        except TimeoutError:
            raise InputError(f"--cluster {address}: the scheduler has no workers; start some: dask worker {address} --nthreads 1") from None
        try:
            versions = client.run(_version)
        except Exception as error:
            raise InputError(f"--cluster {address}: a worker cannot load this package ({_line(error)}); install gmodiff there") from None
        others = {v for v in versions.values() if v != __version__}
        if others:
            raise InputError(
                f"--cluster {address}: workers have gmodiff {', '.join(sorted(others))}, here is {__version__}: install one version"
            )
    except BaseException:
        client.close(timeout=2)
        raise
    return client


def _from_anywhere(job: Job) -> Job:
    """The job with its local places absolute: workers have folders of their own to start from."""
    reference = None if job.reference is None else _whole(job.reference) if job.reference in job.photos else job.reference
    settings = replace(job.settings, model=_if_file(job.settings.model), response=_if_file(job.settings.response))
    return replace(job, target=_whole(job.target), photos=tuple(map(_whole, job.photos)), reference=reference, settings=settings)


def _whole(place: str) -> str:
    return place if is_url(place) else absolute(place)


def _if_file(setting: str) -> str:
    """Of a setting that is a name (compact, auto) or a file: a file has a suffix or a folder, whatever else lies here."""
    is_file = os.path.isfile(setting) and (os.path.dirname(setting) or os.path.splitext(setting)[1])
    return absolute(setting) if is_file else setting


def _as_given(outcome: Outcome, job: Job) -> Outcome:
    """Its photos by the places that the manifest knows, here as on the next run."""
    photos = [{**told, "place": place} for told, place in zip(outcome["photos"], job.photos, strict=True)]
    return outcome | {"photos": photos}


def _version() -> str:
    return __version__


def _check_there(client: Any, address: str, threads: int, alone: float, note: Callable[[str], None]) -> float:
    """Raise InputError where the scheduler has gone; say once that all workers have. Returns since when there has been none."""
    if client.status not in ("running", "connecting"):
        raise InputError(f"--cluster {address}: the scheduler went away; run again to go on")
    if threads:
        return 0.0
    if not alone:
        note(f"--cluster {address}: no worker is left; waiting for one (Ctrl-C ends)")
    return alone or time.monotonic()


def _ready(distributed: Any, futures: list[Any]) -> list[Any]:
    """Futures that are done, after TICK_S at most."""
    try:
        return list(distributed.wait(futures, timeout=TICK_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []
    except distributed.CancelledError:  # the scheduler lost them
        return [f for f in futures if f.status in ("cancelled", "lost")]


def _outcome(future: Any, job: Job) -> Outcome | None:
    """What a worker said; None where it was lost."""
    import distributed

    try:
        return dict(future.result(timeout=ANSWER_S))
    except (distributed.KilledWorker, distributed.CancelledError, OSError):
        return None
    except Exception as error:  # it could not even begin: a package that is missing there
        reason = f"a worker of the cluster could not run it ({type(error).__name__}: {_line(error)})"
        return job.failed(reason)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
