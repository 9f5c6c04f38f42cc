"""The runner: rows as they come, resumed after anything, and never one scene's result beside another's truth."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import gmodiff
from gmodiff.cli import command
from gmodiff.datasets.scene import Dataset
from gmodiff.errors import InputError, MissingDependencyError, OutputError
from gmodiff.evaluate import methods, perceptual
from gmodiff.evaluate.cost import measured
from gmodiff.evaluate.methods import Method
from gmodiff.evaluate.rows import append_row, latest, read_rows
from gmodiff.evaluate.run import evaluate
from scenes import SmallSource, small_scene

FAST = ("reference", "debevec")


def dataset(*names, **given):
    return Dataset("hills", "", tuple(SmallSource(n, i, **given) for i, n in enumerate(names)))


def go(tmp_path, data, **given):
    outcome = evaluate(data, tmp_path, **{"methods": FAST, "metrics": (), "pictures": False} | given)
    rows, notes = read_rows(outcome.rows)
    assert not notes
    return outcome, rows


def test_every_scene_and_method_has_a_row_that_says_what_it_rests_on(tmp_path):
    outcome, rows = go(tmp_path, dataset("a", "b"))
    assert (outcome.new, outcome.kept, outcome.failed) == (4, 0, 0)
    assert {(r["scene"], r["method"]) for r in rows} == {(s, m) for s in "ab" for m in FAST}
    for row in rows:
        assert row["status"] == "ok"
        assert row["metrics"]["psnr_mu"] > 10
        assert set(row["settings"]) == {"psnr_mu", "psnr_l", "ssim_mu", "pu21_psnr", "pu21_ssim", "gain_psnr", "grid_db"}
        assert row["facts"]["stops"] == [-2.0, 0.0, 2.0]
        assert row["version"] == gmodiff.__version__
        assert row["seconds"] >= 0
        assert len(row["scene_hash"]) == len(row["source_hash"]) == 16
    assert len({r["scene_hash"] for r in rows}) == 2


def test_the_same_run_gives_the_same_numbers(tmp_path):
    once, again = (go(tmp_path / n, dataset("a"))[1] for n in "xy")
    assert [(r["metrics"], r["scene_hash"]) for r in once] == [(r["metrics"], r["scene_hash"]) for r in again]


def test_rows_are_kept_unless_told_otherwise(tmp_path):
    go(tmp_path, dataset("a"))
    with pytest.raises(OutputError, match="--resume continues it, --force starts it anew"):
        go(tmp_path, dataset("a"))
    outcome, rows = go(tmp_path, dataset("a", "b"), resume=True)
    assert (outcome.new, outcome.kept) == (2, 2)
    assert len(rows) == 4
    outcome, rows = go(tmp_path, dataset("a"), force=True)
    assert outcome.new == len(rows) == 2


@pytest.mark.parametrize(
    "change",
    [{"status": "failed", "error": "x"}, {"commit": "0000000"}, {"source_hash": "f" * 16}, {"version": "0.0.1"}],
    ids=lambda c: next(iter(c)),
)
def test_rows_that_no_longer_hold_are_made_again(tmp_path, change):
    outcome, rows = go(tmp_path, dataset("a"))
    outcome.rows.write_text("".join(json.dumps(r | change if r["method"] == "debevec" else r) + "\n" for r in rows))
    outcome, rows = go(tmp_path, dataset("a"), resume=True)
    assert (outcome.new, outcome.kept) == (1, 1)
    assert len(rows) == 3
    assert [r["status"] for r in latest(rows)] == ["ok", "ok"]


def test_a_metric_asked_for_later_is_run_later(tmp_path):
    go(tmp_path, dataset("a"))
    pytest.importorskip("torch")
    outcome, rows = go(tmp_path, dataset("a"), resume=True, metrics=("jod",))
    assert outcome.new == 2
    assert latest(rows)[0]["metrics"]["jod"] > 0


def test_damaged_rows_are_named_and_run_again(tmp_path):
    outcome, rows = go(tmp_path, dataset("a", "b"))
    text = outcome.rows.read_text().splitlines()
    outcome.rows.write_text("\n".join(["not json", json.dumps({"scene": "a"}), *text[:3], text[3][: len(text[3]) // 2]]))
    again = evaluate(dataset("a", "b"), tmp_path, methods=FAST, metrics=(), pictures=False, resume=True)
    assert again.new == 1
    assert [n.split(", ")[1].split(":")[0] for n in again.notes] == ["line 1", "line 2", "line 6"]
    rows, notes = read_rows(again.rows)
    assert len(rows) == 4
    assert len(notes) == 3


def test_a_scene_that_cannot_be_read_is_a_row_and_the_others_go_on(tmp_path):
    scenes = Dataset("hills", "", (SmallSource("a", broken="load"), SmallSource("b", broken="fingerprint"), SmallSource("c")))
    outcome, rows = go(tmp_path, scenes)
    assert outcome.failed == 4
    said = {r["scene"]: r["error"] for r in rows if r["status"] == "failed"}
    assert said == {"a": "a: cannot be read", "b": "b: its photos are gone"}
    assert sum(r["status"] == "ok" for r in rows) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda s: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda s: np.zeros((5, 5, 3)), "its radiance has shape (5, 5, 3)"),
        (lambda s: np.full(s.truth.shape, np.nan), "not finite"),
        (lambda s: (_ for _ in ()).throw(InputError("no such thing")), "no such thing"),
    ],
)
def test_a_method_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, answer, said):
    monkeypatch.setitem(methods.METHODS, "broken", Method("broken", "", answer, sees_truth=True))
    outcome, rows = go(tmp_path, dataset("a"), methods=("broken", "reference"))
    assert outcome.failed == 1
    by_name = {r["method"]: r for r in rows}
    assert said in by_name["broken"]["error"]
    assert by_name["broken"]["metrics"] == {}
    assert by_name["reference"]["status"] == "ok"


def test_a_scene_without_truth_gets_time_and_no_scores(tmp_path):
    _, rows = go(tmp_path, dataset("a", truthless=True), methods=("reference", "oracle"))
    assert rows[0]["status"] == "ok"
    assert rows[0]["metrics"] == {}
    assert rows[1]["status"] == "skipped"
    assert "no ground truth" in rows[1]["error"]
    again = evaluate(dataset("a", truthless=True), tmp_path, methods=("reference", "oracle"), metrics=(), pictures=False, resume=True)
    assert (again.new, again.failed) == (0, 0)


def test_a_folder_in_which_no_scene_can_be_read_is_refused_before_anything_is_dropped(tmp_path):
    outcome, _ = go(tmp_path, dataset("a", "b"))
    with pytest.raises(InputError, match="a: its photos are gone"):
        go(tmp_path, dataset("a", "b", broken="fingerprint"), force=True)
    assert len(read_rows(outcome.rows)[0]) == 4


def test_results_of_files_have_a_name_of_their_own_and_no_time(tmp_path):
    np.save(tmp_path / "a.npy", small_scene("a").truth)
    spec = f"ours=saved:{tmp_path}/@reference"
    _, rows = go(tmp_path / "out", dataset("a"), methods=(spec, "reference"))
    ours, reference = latest(rows)
    assert ours["method"] == "ours"
    assert ours["metrics"]["psnr_mu"] == 120
    assert ours["seconds"] is ours["peak_mb"] is None
    assert reference["seconds"] is not None
    outcome, _ = go(tmp_path / "out", dataset("a"), methods=(spec, "reference"), resume=True)
    assert outcome.new == 0
    np.save(tmp_path / "a.npy", small_scene("a").truth * 0.5)
    outcome, rows = go(tmp_path / "out", dataset("a"), methods=(spec, "reference"), resume=True)
    assert outcome.new == 1
    assert rows[-1]["metrics"]["psnr_mu"] < 50
    with pytest.raises(InputError, match="two methods have one name"):
        go(tmp_path / "x", dataset("a"), methods=(spec, f"ours=saved:{tmp_path}@fit"))


def test_a_disk_that_refuses_pictures_stops_the_run(tmp_path, monkeypatch):
    def refuse(*_):
        raise OutputError("no space left on the disk")

    monkeypatch.setattr("gmodiff.evaluate.run.save_pictures", refuse)
    with pytest.raises(OutputError, match="no space"):
        go(tmp_path, dataset("a"), pictures=True)


def test_methods_are_given_the_bracket_and_nothing_true(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(methods.METHODS, "spy", Method("spy", "", lambda s: seen.append(s) or np.ones((*s.bracket.shape, 3), np.float32)))
    go(tmp_path, dataset("a"), methods=("spy",))
    assert (seen[0].truth, seen[0].known, seen[0].perfect, dict(seen[0].masks), dict(seen[0].facts)) == (None, None, None, {}, {})


def test_methods_that_guess_the_response_get_one_factor_and_keep_their_own_score(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "half", Method("half", "", lambda s: s.truth / 2, fitted=True, sees_truth=True))
    _, rows = go(tmp_path, dataset("a"), methods=("half",))
    assert rows[0]["scale"] == pytest.approx(2)
    assert rows[0]["metrics"]["psnr_mu"] > 100
    assert rows[0]["metrics"]["psnr_mu_unscaled"] < 30


def test_outputs_are_scored_against_their_own_truth_whatever_their_order(tmp_path):
    """Other people's results pair with truth by name: in a folder written in another order, and in whatever order scenes are run."""
    names = ["dune", "birch", "arch", "cliff"]
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    seeds = {n: i for i, n in enumerate(names)}
    for name in random.Random(4).sample(names, 4):
        np.save(outputs / f"{name}.npy", small_scene(name, seeds[name]).truth)
    shuffled = Dataset("hills", "", tuple(SmallSource(n, seeds[n]) for n in random.Random(9).sample(names, 4)))
    method = f"saved:{outputs}@reference"
    _, rows = go(tmp_path / "right", shuffled, methods=(method,), workers=2)
    assert {r["scene"]: round(r["metrics"]["psnr_mu"]) for r in rows} == dict.fromkeys(names, 120)
    # And it would be seen: the same files under each other's names are far from perfect.
    (outputs / "dune.npy").rename(outputs / "swap.npy")
    (outputs / "arch.npy").rename(outputs / "dune.npy")
    (outputs / "swap.npy").rename(outputs / "arch.npy")
    _, rows = go(tmp_path / "wrong", shuffled, methods=(method,))
    found = {r["scene"]: r["metrics"]["psnr_mu"] for r in rows}
    assert found["dune"] < 40 > found["arch"]
    assert found["birch"] == found["cliff"] == 120


def test_workers_give_the_rows_that_one_process_gives(tmp_path):
    alone, beside = (go(tmp_path / str(w), dataset(*"abcde"), workers=w)[1] for w in (1, 2))

    def facts(rows):
        return [(r["scene"], r["method"], r["metrics"], r["scene_hash"]) for r in latest(rows)]

    assert facts(alone) == facts(beside)
    assert {r["workers"] for r in beside} == {2}


def test_scenes_are_chosen_by_pattern(tmp_path):
    _, rows = go(tmp_path, dataset("hill-1", "hill-2", "vale"), scenes=("hill-*",), methods=("reference",))
    assert [r["scene"] for r in rows] == ["hill-1", "hill-2"]
    with pytest.raises(InputError, match=r"no scene of hills is called 'sea\*'; it has 1: vale"):
        go(tmp_path / "x", dataset("vale"), scenes=("sea*",))


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"methods": ("magic",)}, InputError, "'magic': expected reference"),
        ({"metrics": ("vmaf",)}, InputError, "'vmaf': expected one of jod"),
        ({"workers": 0}, InputError, "0 workers"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_written(tmp_path, given, kind, said):
    with pytest.raises(kind, match=said):
        go(tmp_path / "out", dataset("a"), **given)
    assert not (tmp_path / "out").exists()


def test_without_colorvideovdp_the_default_run_goes_on_and_says_so(tmp_path, monkeypatch):
    def missing(name):
        raise MissingDependencyError("JOD needs ColorVideoVDP")

    monkeypatch.setattr(perceptual, "load", missing)
    outcome = evaluate(dataset("a"), tmp_path, methods=("reference",), pictures=False)
    assert outcome.notes == ("no JOD column: JOD needs ColorVideoVDP",)
    assert outcome.new == 1


def test_an_output_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        go(tmp_path / "file" / "out", dataset("a"))


def test_progress_counts_rows(tmp_path):
    seen = []
    evaluate(
        dataset("a"), tmp_path, methods=FAST, metrics=(), pictures=False, progress=lambda d, t, r: seen.append((d, t, r and r["method"]))
    )
    assert seen == [(0, 2, None), (1, 2, "reference"), (2, 2, "debevec")]


def test_two_scenes_of_one_name_are_refused():
    with pytest.raises(InputError, match="two scenes are called 'a'"):
        dataset("a", "a")


# ---- rows and cost -------------------------------------------------------------------------------------------------------


def test_a_row_is_never_appended_to_half_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"dataset": "x", "sce')
    row = {k: {} for k in ("metrics", "settings", "facts")} | {"dataset": "x", "scene": "a", "method": "m", "status": "ok"}
    append_row(path, row)
    append_row(path, row)
    rows, notes = read_rows(path)
    assert len(rows) == 2
    assert len(notes) == 1


def test_memory_is_of_the_call_alone():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc here: memory is not measured")
    big = measured(lambda: np.ones(25_000_000, np.float64).sum())[2]  # 200 MB, gone when it returns
    small = measured(lambda: 1 + 1)[2]
    assert 150 < big < 300
    assert small < 50


# ---- the command ---------------------------------------------------------------------------------------------------------

RECIPE = """
kind = "synthetic"
data = "."
size = [128, 96]
response = "srgb"
stops = [-2, 0, 2]
[[scene]]
name = "one"
picture = "panorama.exr"
seed = 1
[[scene]]
name = "two"
picture = "panorama.exr"
seed = 2
"""


@pytest.fixture
def set_file(tmp_path):
    from gmodiff.image import HDRImage
    from gmodiff.writer import write

    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((16, 32, 3)) ** 3, np.ones((8, 8, 1))).astype(np.float32) + np.float32(0.02)
    write(HDRImage(blocks), tmp_path / "panorama.exr")
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_the_command_measures_and_reports(set_file, tmp_path):
    words = ["evaluate", str(set_file), "-m", "reference", "-m", "classical", "-m", "oracle", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(command, [*words, "--metric", "none"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "oracle" in done.stdout
    assert "6 rows new, 0 kept, 0 failed" in done.stdout
    report = tmp_path / "out" / "small" / "report.md"
    assert "PSNR-mu" in report.read_text()
    assert (tmp_path / "out" / "small" / "sheets" / "one.jpg").stat().st_size > 10_000
    again = CliRunner().invoke(command, [*words, "--metric", "none", "--resume", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)[0]["kept"] == 6
    made = CliRunner().invoke(command, ["report", str(tmp_path / "out" / "small.jsonl"), "-o", str(tmp_path / "r")], catch_exceptions=False)
    assert (tmp_path / "r" / "small" / "report.md").is_file()
    assert made.exit_code == 0


def test_the_command_refuses_contradictions_and_twins(set_file, tmp_path):
    for words, said in (
        ([str(set_file), "--resume", "--force"], "exclude each other"),
        ([str(set_file), str(set_file)], "two datasets are called 'small'"),
        ([str(tmp_path / "nothing")], "is not there"),
    ):
        with pytest.raises(InputError, match=said):
            CliRunner().invoke(command, ["evaluate", *words, "-o", str(tmp_path / "out")], catch_exceptions=False, standalone_mode=False)


def test_methods_are_listed():
    done = CliRunner().invoke(command, ["evaluate", "--list-methods"])
    assert done.exit_code == 0
    assert all(name in done.stdout for name in methods.METHODS)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_whole_rows_and_the_run_goes_on(set_file, tmp_path, workers):
    text = set_file.read_text() + "".join(f'[[scene]]\nname = "more{i}"\npicture = "panorama.exr"\nseed = {i}\n' for i in range(3, 30))
    set_file.write_text(text)
    words = [sys.executable, "-m", "gmodiff", "evaluate", str(set_file), "-o", str(tmp_path / "out"), "--metric", "none", "--no-pictures"]
    words += ["-m", "reference", "-m", "classical", "--workers", workers]
    env = {"PYTHONPATH": str(Path(gmodiff.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        words,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job would ignore it
    )
    rows = tmp_path / "out" / "small.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (rows.exists() and rows.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept, notes = read_rows(rows)
    assert 3 <= len(kept) < 58
    assert not notes
    done = subprocess.run([*words, "--resume", "-q"], env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == ""
    assert len(latest(read_rows(rows)[0])) == 58
