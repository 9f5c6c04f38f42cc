"""gmodiff train: goes on where it was killed, shares its work among processes, says what it cannot learn from."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import run
from gmodiff.errors import InputError, OutputError
from gmodiff.model.regressor import Regressor
from gmodiff.model.weights import write_weights
from gmodiff.train import loop, shipping
from gmodiff.train.scenes import SceneStore, find_sources
from gmodiff.train.shipping import ship
from small_regressor import RECIPE, SMALL, same, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


def command(data: Path, out: Path, cache: Path, *more: str) -> list[str]:
    settings = "--steps 12 --batch 2 --crop 64 --scenes 2 --save-every 2 --check-scenes 1 --threads 1 --workers 0".split()  # noqa: SIM905
    return ["-m", "gmodiff", "train", "regressor", "--data", str(data), "--out", str(out), "--cache", str(cache), *settings, *more]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rendered")


def test_killed_at_any_moment_a_run_goes_on(data, cache, tmp_path):
    """kill -9 three times, wherever it is; what is on disk is whole each time, and the end is that of a run never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *command(data, whole, cache)], check=True, capture_output=True, timeout=240)
    for n in range(3):
        process = subprocess.Popen([sys.executable, *command(data, killed, cache)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = _step(killed)
        deadline = time.monotonic() + 120
        while _step(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.05 * n)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _step(killed) > before or before == 12
    subprocess.run([sys.executable, *command(data, killed, cache)], check=True, capture_output=True, timeout=240)
    assert same(weights_of(whole / loop.WEIGHTS), weights_of(killed / loop.WEIGHTS))


def test_ctrl_c_says_how_to_go_on(data, cache, tmp_path, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    code, _, err = run(command(data, tmp_path, cache)[2:], capsys)
    assert code == 130
    assert err == f"gmodiff: stopped; the same command goes on from the last checkpoint in {tmp_path}, if there is one\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory for 2 crops of 64",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory for 2 crops of 64"),
        (MemoryError(), "give another --out and a smaller --batch or --crop"),
        (RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed."), "give fewer --workers than 1"),
    ],
)
def test_want_of_memory_is_one_line(data, cache, tmp_path, capsys, monkeypatch, error, said):
    def fails(*args, **more):
        raise error

    monkeypatch.setattr(loop, "train", fails)
    code, _, err = run(command(data, tmp_path, cache, "--workers", "1")[2:], capsys)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_other_errors_of_torch_are_not_hidden(data, cache, tmp_path, capsys, monkeypatch):
    def fails(*args, **more):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loop, "train", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        run(command(data, tmp_path, cache)[2:], capsys)


def _step(out: Path) -> int:
    path = out / loop.CHECKPOINT
    return int(torch.load(path, weights_only=True)["step"]) if path.is_file() else 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_make_the_steps_of_one(data, cache, tmp_path):
    settings = ("--steps", "4", "--save-every", "4")
    subprocess.run([sys.executable, *command(data, tmp_path / "one", cache, *settings)], check=True, capture_output=True, timeout=240)
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    together += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*together, *command(data, tmp_path / "two", cache, *settings)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(weights_of(tmp_path / "one" / loop.WEIGHTS), weights_of(tmp_path / "two" / loop.WEIGHTS), 1e-5)


def test_what_goes_wrong_in_a_worker_is_one_line(data, tmp_path):
    sources = find_sources(data)
    store = SceneStore(replace(sources, hdr=(), photos=(tmp_path / "gone.jpg",)), 1, None, size=64)
    with pytest.raises(InputError) as error:
        loop.train(RECIPE, store, tmp_path / "run", workers=1, say=lambda _: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--crop", "50"), "--crop 50: expected a multiple of 32"),
        (("--rate", "nan"), "--rate"),
        (("--from", "nowhere.safetensors"), "no weights there"),
        (("--curves", "nowhere.json"), "--curves nowhere.json: there is no such file"),
        (("--cache", __file__), "a file lies there, and scenes are kept in a folder"),
    ],
)
def test_bad_settings_are_one_line(data, cache, tmp_path, more, said):
    done = subprocess.run([sys.executable, *command(data, tmp_path, cache, *more)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("fails", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_export_that_ends_half_way_leaves_what_was_there(tmp_path, monkeypatch, fails):
    weights = tmp_path / "w.safetensors"
    write_weights(Regressor(SMALL), weights, {})
    card = tmp_path / "out" / "mine.json"
    ship(weights, card)
    before = {p.name: p.read_bytes() for p in card.parent.iterdir()}
    assert sorted(before) == ["mine.json", "mine.onnx", "mine.safetensors"]

    def interrupted(*_: object) -> None:
        raise fails

    monkeypatch.setattr(shipping, "export_onnx", interrupted)
    torch.manual_seed(1)
    write_weights(Regressor(SMALL), weights, {})
    with pytest.raises((KeyboardInterrupt, OutputError)):
        ship(weights, card)
    assert {p.name: p.read_bytes() for p in card.parent.iterdir()} == before
