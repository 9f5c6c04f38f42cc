"""Workers by cores and memory, and sets that never need more of it together than there is."""

import os
import signal
import threading
import time

import pytest

from gmodiff.batch import workers
from gmodiff.batch.capacity import core_shares, set_bytes, worker_count
from gmodiff.batch.one_set import Job, Settings
from gmodiff.machine import free_bytes

GB = 10**9


def test_memory_rises_with_pixels_photos_raw_and_the_network():
    plain = set_bytes(12_000_000, 3)
    assert plain < set_bytes(48_000_000, 3) < set_bytes(48_000_000, 5) < set_bytes(48_000_000, 5, raw=True)
    assert set_bytes(12_000_000, 3, network=False) < plain
    assert 1.3 * GB < plain < 4 * GB  # measured: 1.3 alone, 2 for long-lived workers of many sizes


@pytest.mark.parametrize(
    ("sizes", "memory", "asked", "expected"),
    [([GB] * 40, 100 * GB, 3, 3), ([GB] * 40, 2 * GB, 8, 2), ([GB], 100 * GB, 8, 1), ([5 * GB] * 9, GB, 4, 1), ([], GB, 4, 1)],
)
def test_workers(sizes, memory, asked, expected):
    assert worker_count(sizes, memory, asked) == expected


def test_free_memory_is_told():
    assert 10**8 < free_bytes() < 10**14


def test_cores_are_dealt_out(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert core_shares(2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(core for share in core_shares(3) for core in share) == list(range(8))
    assert core_shares(10)[8:] == [[0], [1]]


class Pipe:
    """Stands for a worker's end: says at once that a job is done."""

    def __init__(self, worker):
        self.worker = worker

    def send(self, job):
        pass

    def recv(self):
        if self.worker.dies:
            raise EOFError
        return {"status": "done"}

    def close(self):
        pass


class FakeWorker:
    """A worker without a process; those in `deadly` die of their job."""

    deadly: frozenset = frozenset()
    most = 0

    def __init__(self, cores):
        self.cores, self.connection, self.job = cores, Pipe(self), None
        self.process = self
        self.exitcode = -9

    def join(self, _):
        pass

    @property
    def dies(self):
        return self.job_name in self.deadly

    def __setattr__(self, name, value):
        if name == "job" and value is not None:
            object.__setattr__(self, "job_name", value.output)
        object.__setattr__(self, name, value)

    def end(self, *, at_once):
        pass


def ran(monkeypatch, jobs, *, count, memory, deadly=(), **options):
    """(outcomes by name, most bytes at once)."""
    at_hand, most, outcomes = {}, [0], {}
    monkeypatch.setattr(workers, "_Worker", FakeWorker)
    monkeypatch.setattr(workers, "wait", lambda connections, timeout: connections[:1])
    monkeypatch.setattr(FakeWorker, "deadly", frozenset(deadly))

    def starting(job):
        at_hand[job.output] = job.bytes
        most[0] = max(most[0], sum(at_hand.values()))

    def ended(job, outcome):
        at_hand.pop(job.output)
        outcomes[job.output] = outcome

    workers.run_here(jobs, count=count, memory=memory, starting=starting, ended=ended, **options)
    return outcomes, most[0]


def job(name: str, size: float) -> Job:
    return Job(name, name, ("a", "b"), Settings(), bytes=int(size * GB))


def test_sets_at_once_never_need_more_than_there_is(monkeypatch):
    jobs = [job("large", 7), *(job(f"small{n}", 2) for n in range(9))]
    outcomes, most = ran(monkeypatch, jobs, count=4, memory=8 * GB)
    assert len(outcomes) == 10
    assert most <= 8 * GB


def test_a_set_that_cannot_fit_is_failed_and_the_others_are_made(monkeypatch):
    outcomes, _ = ran(monkeypatch, [job("huge", 9), job("small", 2)], count=2, memory=8 * GB)
    assert outcomes["small"]["status"] == "done"
    assert "needs about 9.0 GB of memory and 8.0 GB are free" in outcomes["huge"]["error"]


def test_a_set_beyond_the_memory_that_was_asked_for_is_told_so(monkeypatch):
    outcomes, _ = ran(monkeypatch, [job("small", 2)], count=1, memory=10**6, memory_given=True)
    assert outcomes["small"]["error"] == (
        "needs about 2.0 GB of memory and 1 MB, which --memory gives, are too few: give more, or smaller copies"
    )


def test_a_worker_that_dies_while_the_batch_ends_leaves_its_set(monkeypatch):
    stop = workers.Stop()

    def interrupted(running):
        stop.finish = True

    outcomes, _ = ran(monkeypatch, [job("deadly", 2), job("b", 1)], count=1, memory=8 * GB, deadly=["deadly"], stop=stop, tick=interrupted)
    assert outcomes == {}


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
@pytest.mark.parametrize("after_s", [0, 0.02, 0.1])
def test_ctrl_c_while_a_worker_starts_does_not_end_it(after_s):
    worker = workers._Worker([])
    time.sleep(after_s)
    os.kill(worker.process.pid, signal.SIGINT)
    worker.end(at_once=False)
    assert worker.process.exitcode == 0


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_ctrl_c_while_a_worker_starts_is_not_lost_here():
    outlived = []

    def interrupted():
        with workers._without_interrupts():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # to this thread: libraries have others
            time.sleep(0.05)
            outlived.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell inherits it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
    assert outlived
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_set_that_kills_its_worker_twice_is_failed_and_the_others_are_made(monkeypatch):
    outcomes, _ = ran(monkeypatch, [job(n, 2) for n in ("a", "deadly", "c")], count=2, memory=8 * GB, deadly=["deadly"])
    assert outcomes["a"]["status"] == outcomes["c"]["status"] == "done"
    assert "its worker ended by signal SIGKILL, twice" in outcomes["deadly"]["error"]
