"""Worker processes on this machine: each makes one set at a time, with its own cores and its own network, loaded once.

Processes are spawned, never forked: OpenVINO and OpenCV have threads, and a fork of a process with threads may wait for ever. A worker
that dies (killed for memory, a crash in a decoder) costs its set a second try, alone, and no other set anything. A worker ends itself
when its parent is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from gmodiff.batch.capacity import core_shares, shown_bytes
from gmodiff.batch.one_set import Job, make_set

Outcome = dict[str, Any]

TICK_S = 0.5
"""How often progress is told while nothing ends."""

FAREWELL_S = 5.0
"""How long a worker that was told to end may take before it is killed."""


@dataclass
class Stop:
    """How a batch is asked to end, from a signal handler: `finish` starts no more sets, `drop` also leaves those at hand.

    terminated: a system asked, not a person.
    """

    finish: bool = False
    drop: bool = False
    terminated: bool = False


class _Worker:
    """A process at work, and what it is doing."""

    def __init__(self, cores: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.cores = cores
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, cores), daemon=True, name="gmodiff-worker")
        with _without_interrupts():
            self.process.start()
        theirs.close()
        self.job: Job | None = None

    def end(self, *, at_once: bool) -> None:
        with contextlib.suppress(OSError):
            if at_once:
                self.process.terminate()
            else:
                self.connection.send(None)
        self.process.join(FAREWELL_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that start meanwhile are deaf to Ctrl-C from birth, until they say themselves what it means; here it comes afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield  # Windows: children are deaf once they have begun
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # started inside, it would take the mask off again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_here(
    jobs: Sequence[Job],
    *,
    count: int,
    memory: int,
    memory_given: bool = False,
    starting: Callable[[Job], None],
    ended: Callable[[Job, Outcome], None],
    tick: Callable[[int], None] = lambda running: None,
    stop: Stop | None = None,
) -> None:
    """Make sets in `count` processes, those that need most memory first, never more at once than `memory` bytes hold.

    memory_given: the user said how much, so that closing other programs would not help.
    starting(job) is called before a set is begun, ended(job, outcome) when it is done or failed; both may raise, which drops the rest.
    tick(running) is called at least every TICK_S. Returns when all are ended, or as `stop` asks. No process outlives this call.
    """
    stop = stop or Stop()
    waiting = sorted(jobs, key=lambda j: -j.bytes)
    for large in waiting:
        if large.bytes > memory:
            need, there = shown_bytes(large.bytes), shown_bytes(memory)
            given = f"{there}, which --memory gives, are too few: give more, or smaller copies"
            free = f"{there} are free: close other programs, give --memory, or smaller copies"
            starting(large)
            ended(large, large.failed(f"needs about {need} of memory and {given if memory_given else free}"))
    waiting = [j for j in waiting if j.bytes <= memory]
    shares = core_shares(count)
    workers: list[_Worker] = []
    tried: set[str] = set()
    in_order = False
    try:
        while True:
            running = [w for w in workers if w.job is not None]
            if stop.drop or ((stop.finish or not waiting) and not running):
                in_order = not stop.drop
                return
            if not stop.finish:
                _begin(waiting, workers, shares, memory, starting)
            tick(len([w for w in workers if w.job is not None]))
            for ready in wait([w.connection for w in workers if w.job is not None], TICK_S):
                worker = next(w for w in workers if w.connection is ready)
                job = worker.job
                assert job is not None
                worker.job = None
                try:
                    outcome = worker.connection.recv()
                except (EOFError, OSError):
                    code = _ending(worker)
                    workers.remove(worker)
                    shares.append(worker.cores)
                    if stop.finish:
                        continue  # left for the next run: who ends a batch may well have ended its workers
                    if job.output not in tried:
                        tried.add(job.output)
                        # Alone: memory is what most often kills a worker, and its neighbours may have had a part in it.
                        waiting.append(_alone(job, memory))
                        continue
                    outcome = job.failed(f"its worker ended {code}, twice: out of memory, or a fault in a decoder")
                ended(job, outcome)
    finally:
        for worker in workers:
            worker.end(at_once=not in_order)


def _begin(waiting: list[Job], workers: list[_Worker], shares: list[list[int]], memory: int, starting: Callable[[Job], None]) -> None:
    """Give idle workers, or new ones, the next sets that fit beside those at hand."""
    while waiting:
        used = sum(w.job.bytes for w in workers if w.job is not None)
        fitting = next((j for j in waiting if used + j.bytes <= memory), None)
        idle = next((w for w in workers if w.job is None), None)
        if fitting is None or (idle is None and not shares):
            return
        waiting.remove(fitting)
        starting(fitting)
        if idle is None:
            idle = _Worker(shares.pop(0))
            workers.append(idle)
        idle.job = fitting
        with contextlib.suppress(OSError):  # it died meanwhile: its closed pipe tells when it is asked for the outcome
            idle.connection.send(fitting)


def _alone(job: Job, memory: int) -> Job:
    # The worker may have died when its picture was in place already.
    return replace(job, bytes=memory, fresh=False)


def _ending(worker: _Worker) -> str:
    worker.process.join(FAREWELL_S)
    code = worker.process.exitcode
    worker.connection.close()
    if code is not None and code < 0:
        return f"by signal {signal.Signals(-code).name}"
    return f"with code {code}"


# ---- in the worker --------------------------------------------------------------------------------------------------------


def _serve(connection: Connection, cores: list[int]) -> None:
    """Make the sets that come through the pipe until it closes, on these cores."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # see _without_interrupts; what came meanwhile is ignored
    _end_with_parent()
    if cores:
        os.sched_setaffinity(0, cores)  # before any library counts cores for its threads
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        outcome = make_set(job)
        try:
            connection.send(outcome)
        except OSError:
            return


def _end_with_parent() -> None:
    """End this process when its parent has ended, even by kill -9 and even in the middle of a set."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="gmodiff-parent").start()
