"""Batches that are stopped or killed, they or their workers: no picture is half there, and the next run goes on."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gmodiff
from batches import NONE, pictures
from cards import write_card
from command_line import run
from gmodiff import read
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.run import MANIFEST

SOURCE = Path(gmodiff.__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def start(card: Path, out: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gmodiff", "batch", str(card), "-o", str(out), "--workers", "2", *NONE, *options]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True)


def workers_of(pid: int) -> list[int]:
    """Worker processes of a batch, by /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == pid and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return found


def gone(pids: list[int], within_s: float = 30) -> bool:
    """Whether all of them end; zombies count as ended."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        alive = []
        for pid in pids:
            with contextlib.suppress(OSError):
                alive += [pid] * (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z")
        if not alive:
            return True
        time.sleep(0.05)
    return False


def until(condition, process: subprocess.Popen, within_s: float = 120):
    end = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def check_whole(out: Path) -> None:
    """Every picture that has a name can be read, and is what the manifest says where it says anything."""
    told = Manifest(out / MANIFEST).finished if (out / MANIFEST).exists() else {}
    for file in out.glob("*.jpg"):
        assert read(file).gain_map is not None
    for row in told.values():
        if row["status"] == "done" and Manifest(out / MANIFEST).last[row["output"]]["status"] == "done":
            assert hashlib.sha256((out / row["output"]).read_bytes()).hexdigest() == row["sha256"]


def test_ctrl_c_before_anything_was_begun_says_so(card, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gmodiff.batch.card.read_card", interrupted)
    code, _, err = run(["batch", str(card), "-o", str(tmp_path / "out")], capsys)
    assert code == 130
    assert err == "gmodiff: stopped while looking at photos; nothing was begun\n"
    assert not (tmp_path / "out").exists()


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_worker_and_no_half_picture(tmp_path, number, code):
    write_card(tmp_path / "card", 12)
    process = start(tmp_path / "card", tmp_path / "out")
    until(lambda: len(list((tmp_path / "out").glob("*.jpg"))) > 1, process)
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "sets are left, run again to go on" in err
    if number == signal.SIGINT:  # the sets at hand were finished
        assert "has been removed" not in err
    assert gone(workers)
    check_whole(tmp_path / "out")
    assert not (tmp_path / "out" / ".gmodiff-batch" / "unfinished").exists()


@linux
def test_kill_9_at_any_moment_leaves_whole_files_and_the_batch_goes_on(tmp_path):
    """As often as GMODIFF_KILLS says (8; benchmarks/batch_kills.py does it 50 times), then to the end."""
    write_card(tmp_path / "card", 10)
    rng = random.Random(5)
    killed = 0
    while killed < int(os.environ.get("GMODIFF_KILLS", "8")):
        process = start(tmp_path / "card", tmp_path / "out", "--again")  # so that there is always something to do, and to replace
        time.sleep(rng.uniform(0.2, 6))
        workers = workers_of(process.pid)
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL  # not if it was done before
        assert gone(workers)
        if (tmp_path / "out").exists():
            check_whole(tmp_path / "out")
    process = start(tmp_path / "card", tmp_path / "out")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_whole(tmp_path / "out")
    assert len(pictures(tmp_path / "out")) == 10
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")] == [".gmodiff-batch"]


@linux
def test_a_killed_worker_costs_its_set_a_second_try(tmp_path):
    write_card(tmp_path / "card", 8)
    process = start(tmp_path / "card", tmp_path / "out")
    until(lambda: len(list((tmp_path / "out").glob("*.jpg"))) > 1, process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(pictures(tmp_path / "out")) == 8
