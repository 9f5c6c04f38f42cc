"""One job after another: each says how far it is and how long it will take, can be cancelled, and is kept for a page that comes back."""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gmodiff.errors import GMODiffError

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"

SHARES = {"read": 0.10, "calibrate": 0.08, "align": 0.27, "merge": 0.15, "estimate": 0.17, "noise": 0.06, "render": 0.12, "write": 0.05}
"""About what each stage takes of a merge (12 megapixels, three photos, two cores); a stage that is left out is passed over."""


class Cancelled(BaseException):
    """Raised inside a job that was cancelled; no handler of ordinary errors stops it on its way out."""


@dataclass
class Job:
    """What somebody waits for.

    kind: "merge" or "render".   title: for people.   about: plain facts the page needs of it (photos, settings).
    picture: of what came out.   summary: see `summary.summary`.
    """

    kind: str
    title: str
    about: dict[str, Any]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = WAITING
    stage: str = ""
    progress: float = 0.0
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    picture: str | None = None
    summary: dict[str, Any] | None = None
    _cancel: threading.Event = field(default_factory=threading.Event, repr=False)

    def check(self) -> None:
        """Raise Cancelled where somebody no longer waits for this."""
        if self._cancel.is_set():
            raise Cancelled

    def report(self, stage: str, fraction: float) -> None:
        """`image.Progress`: called as the work goes on; raises Cancelled where it shall not."""
        self.check()
        before = 0.0
        for name, share in SHARES.items():
            if name == stage:
                # Never backwards, whatever a stage says twice.
                self.progress = max(self.progress, before + share * min(max(fraction, 0.0), 1.0))
                break
            before += share
        self.stage = stage

    def as_dict(self, place: int | None = None, *, brief: bool = False) -> dict[str, Any]:
        """Plain facts for the page. place: in the queue, from 1.   brief: without the summary, which is long and never changes."""
        left = None
        now = self.ended or time.time()
        if self.state == RUNNING and self.started is not None and self.progress > 0.08:
            left = round((now - self.started) * (1 - self.progress) / self.progress, 1)
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "about": self.about,
            "created": self.created,
            "state": self.state,
            "stage": self.stage,
            "percent": round(100 * (1.0 if self.state == DONE else self.progress)),
            "seconds": None if self.started is None else round(now - self.started, 1),
            "seconds_left": left,
            "place": place,
            "error": self.error,
            "picture": self.picture,
            "reference": None if self.summary is None else self.summary["reference"],
            **({} if brief else {"summary": self.summary}),
        }


Work = Callable[[Job], None]

CLOSING_S = 10.0
"""How long jobs that run may take to hear that they are cancelled, all together, when a queue is closed."""


class Queue:
    """Jobs in the order they came, so many at a time.

    explain: turns an error on purpose into the line the user reads.
    """

    def __init__(self, *, at_once: int = 1, explain: Callable[[str], str] = str) -> None:
        self._jobs: dict[str, Job] = {}
        self._work: dict[str, Work] = {}
        self._after: dict[str, Callable[[], None]] = {}
        self._explain = explain
        self._ready = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"merge-{n}", daemon=True) for n in range(at_once)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job, work: Work, after: Callable[[], None] = lambda: None) -> Job:
        """Put a job at the end of the queue. after: called once when it is over, however that came, and even if it never began."""
        with self._ready:
            self._jobs[job.id], self._work[job.id], self._after[job.id] = job, work, after
            self._ready.notify()
        return job

    def get(self, key: str) -> Job | None:
        """A job by its id."""
        return self._jobs.get(key)

    def jobs(self) -> list[Job]:
        """All that are kept, oldest first."""
        with self._ready:
            return list(self._jobs.values())

    def snapshot(self, *, brief: bool = False) -> list[dict[str, Any]]:
        """All jobs as plain facts, with their places in the queue."""
        jobs = self.jobs()
        waiting = [j.id for j in jobs if j.state == WAITING]
        return [j.as_dict(waiting.index(j.id) + 1 if j.id in waiting else None, brief=brief) for j in jobs]

    def cancel(self, key: str) -> None:
        """Stop a job before it begins, or where it next says how far it is."""
        with self._ready:
            job = self._jobs.get(key)
            if job is None:
                return
            job._cancel.set()
            if job.state != WAITING:
                return
            job.state, job.ended = CANCELLED, time.time()
            self._work.pop(key, None)
        self._over(key)

    def forget(self, key: str) -> Job | None:
        """Cancel a job and drop it from the list."""
        self.cancel(key)
        with self._ready:
            return self._jobs.pop(key, None)

    def close(self) -> None:
        """Cancel everything and wait a little for what runs; a second time there is nothing to do."""
        deadline = time.monotonic() + CLOSING_S
        with self._ready:
            if self._closed:
                return
            self._closed = True
            for job in self._jobs.values():
                job._cancel.set()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))

    def _over(self, key: str) -> None:
        with self._ready:
            after = self._after.pop(key, None)
        if after is not None:
            try:
                after()
            except Exception:  # the thread has other jobs to do
                traceback.print_exc(file=sys.stderr)

    def _next(self) -> tuple[Job, Work] | None:
        with self._ready:
            while True:
                if self._closed:
                    return None
                for key, job in self._jobs.items():
                    if job.state == WAITING and key in self._work:
                        job.state, job.started = RUNNING, time.time()
                        return job, self._work.pop(key)
                self._ready.wait()

    def _run(self) -> None:
        while (found := self._next()) is not None:
            job, work = found
            state, error = DONE, None
            try:
                work(job)
            except Cancelled:
                state = CANCELLED
            except GMODiffError as refused:
                state, error = FAILED, self._explain(str(refused))
            except MemoryError:
                state, error = FAILED, "there is not enough memory for these photos: merge smaller copies, or fewer of them"
            except Exception:
                traceback.print_exc(file=sys.stderr)
                state, error = FAILED, "something went wrong that should not; the terminal of gmodiff serve says what"
            self._over(job.id)
            job.error, job.ended = error, time.time()
            job.state = state  # last: who sees a job that is over sees all of it
