"""Jobs one after another: order, progress, cancelling, errors."""

import threading
import time

import pytest

from gmodiff.errors import InputError
from gmodiff.web.queue import SHARES, Cancelled, Job, Queue


@pytest.fixture
def queue():
    made = Queue(explain=lambda text: text.replace("ours", "yours"))
    yield made
    made.close()


def ended(job: Job) -> Job:
    for _ in range(1000):
        if job.state not in ("waiting", "running"):
            return job
        time.sleep(0.01)
    raise AssertionError(job.state)


def submit(queue: Queue, work, name: str = "job") -> Job:
    return queue.submit(Job("merge", name, {}), work)


def test_jobs_run_in_the_order_they_came_one_at_a_time(queue):
    running, seen, most = [], [], []

    def work(job):
        running.append(job.id)
        most.append(len(running))
        seen.append(job.title)
        time.sleep(0.02)
        running.remove(job.id)

    jobs = [submit(queue, work, str(n)) for n in range(5)]
    for job in jobs:
        assert ended(job).state == "done"
    assert seen == ["0", "1", "2", "3", "4"]
    assert max(most) == 1


def test_so_many_at_once_as_are_allowed():
    queue, both = Queue(at_once=2), threading.Barrier(2, timeout=10)
    jobs = [submit(queue, lambda job: both.wait()) for _ in range(2)]
    assert [ended(j).state for j in jobs] == ["done", "done"]
    queue.close()


def test_places_in_the_queue_are_told(queue):
    hold = threading.Event()
    jobs = [submit(queue, lambda job: hold.wait(10), str(n)) for n in range(3)]
    while jobs[0].state == "waiting":
        time.sleep(0.01)
    assert [j["place"] for j in queue.snapshot()] == [None, 1, 2]
    queue.cancel(jobs[1].id)
    assert [j["place"] for j in queue.snapshot()] == [None, None, 1]
    hold.set()
    assert ended(jobs[2]).state == "done"
    assert jobs[1].state == "cancelled"


def test_a_running_job_is_cancelled_where_it_next_reports(queue):
    began, steps = threading.Event(), []

    def work(job):
        for n in range(10_000):
            job.report("align", n / 10_000)
            steps.append(n)
            began.set()
            time.sleep(0.001)

    job = submit(queue, work)
    assert began.wait(10)
    queue.cancel(job.id)
    assert ended(job).state == "cancelled"
    assert len(steps) < 10_000


def test_no_handler_of_ordinary_errors_swallows_a_cancel():
    assert not issubclass(Cancelled, Exception)


def test_progress_only_rises_and_stages_add_up(queue):
    job, seen = Job("merge", "job", {}), []
    for stage, fraction in (("read", 0.5), ("read", 1.0), ("align", 0.2), ("align", 0.1), ("write", 1.0), ("unheard of", 0.5)):
        job.report(stage, fraction)
        seen.append(job.progress)
    assert seen == sorted(seen)
    assert seen[0] == pytest.approx(SHARES["read"] / 2)
    assert seen[-1] == pytest.approx(sum(SHARES.values())) == pytest.approx(1.0)


def test_time_left_follows_from_what_is_done():
    job = Job("merge", "job", {}, state="running", started=time.time() - 10, progress=0.25)
    assert job.as_dict()["seconds_left"] == pytest.approx(30, abs=1)
    job.progress = 0.01
    assert job.as_dict()["seconds_left"] is None  # too early to tell


def test_what_goes_wrong_is_one_line_and_the_next_job_runs(queue, capsys):
    def refused(job):
        raise InputError("ours is wrong")

    def broken(job):
        raise ZeroDivisionError("secret detail")

    def full(job):
        raise MemoryError

    lines = [ended(submit(queue, work)).error for work in (refused, broken, full)]
    assert lines[0] == "yours is wrong"
    assert "secret" not in lines[1]
    assert "memory" in lines[2]
    assert "secret detail" in capsys.readouterr().err  # for the terminal
    assert ended(submit(queue, lambda job: None)).state == "done"


def test_an_error_in_what_follows_stops_no_other_job(queue, capfd):
    first = queue.submit(Job("merge", "first", {}), lambda job: None, after=lambda: 1 / 0)
    second = queue.submit(Job("merge", "second", {}), lambda job: None)
    assert (ended(first).state, ended(second).state) == ("done", "done")
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_what_follows_a_job_is_done_once_however_it_ended(queue):
    told = []

    def wrong(job):
        raise InputError("no")

    done = queue.submit(Job("merge", "done", {}), lambda job: None, after=lambda: told.append("done"))
    failed = queue.submit(Job("merge", "failed", {}), wrong, after=lambda: told.append("failed"))
    go_on = threading.Event()
    queue.submit(Job("merge", "long", {}), lambda job: go_on.wait(10) and None)
    waiting = queue.submit(Job("merge", "waiting", {}), lambda job: None, after=lambda: told.append("waiting"))
    ended(done), ended(failed)
    queue.cancel(waiting.id)
    queue.cancel(waiting.id)
    go_on.set()
    assert told == ["done", "failed", "waiting"]
