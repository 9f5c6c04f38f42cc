"""The command `gmodiff batch`: what it makes and tells, and what it refuses in one line."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import gmodiff
from batches import NONE, content, pictures
from command_line import run
from gmodiff import read
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.run import MANIFEST, REPORT


def test_a_card_becomes_pictures_a_manifest_and_a_report(card, tmp_path, capsys):
    """With real worker processes; the sources stay as they are."""
    before = content(card)
    code, out, err = run(["batch", str(card), "-o", str(tmp_path), "--workers", "2", *NONE], capsys)
    assert code == 0, err
    assert sorted(pictures(tmp_path)) == ["IMG_0000_3.jpg", "IMG_0003_3.jpg", "IMG_0006_3.jpg"]
    assert read(tmp_path / "IMG_0000_3.jpg").gain_map is not None
    assert "3 sets made" in out
    assert "3/3 " in err
    assert "sets/min" in err
    assert "1 file left over" in err
    rows = [json.loads(line) for line in (tmp_path / MANIFEST).read_text().splitlines()]
    done = {r["output"]: r for r in rows if r.get("status") == "done"}
    assert len(done) == 3
    row = done["IMG_0000_3.jpg"]
    photo = card / "IMG_0000.jpg"
    assert row["photos"][0]["place"] == str(photo)
    assert row["photos"][0]["sha256"] == hashlib.sha256(photo.read_bytes()).hexdigest()
    assert row["sha256"] == hashlib.sha256((tmp_path / "IMG_0000_3.jpg").read_bytes()).hexdigest()
    assert (row["version"], row["settings"]["model"]) == (gmodiff.__version__, "none")
    assert row["result"]["provenance"]["inferred_percent"] >= 0
    assert row["seconds"] > 0
    assert row["cpu_seconds"] > 0
    assert row["peak_mb"] > 50
    assert "data:image/jpeg;base64," in (tmp_path / REPORT).read_text()
    assert content(card) == before
    assert not (tmp_path / ".gmodiff-batch" / "unfinished").exists()


def test_dry_run_is_a_table_and_a_plan_that_can_be_edited_and_run(card, tmp_path, capsys, inline):
    code, out, _ = run(["batch", str(card), "--dry-run"], capsys)
    assert code == 0
    assert "IMG_0000_3.jpg" in out
    assert "3 sets of 9 photos; 1 file left over" in out
    assert "IMG_0099.jpg: the camera was bracketing, but no other photo of that bracket is here" in out
    code, out, _ = run(["batch", str(card), "--dry-run", "--json"], capsys)
    plan = json.loads(out)
    plan["sets"] = plan["sets"][:1]
    plan["sets"][0] |= {"output": "mine/hill.jpg", "reference": "IMG_0001.jpg"}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = run(["batch", str(tmp_path / "plan.json"), "-o", str(tmp_path / "out"), *NONE], capsys)
    assert code == 0, err
    assert (tmp_path / "out" / "mine" / "hill.jpg").is_file()
    row = Manifest(tmp_path / "out" / MANIFEST).finished["mine/hill.jpg"]
    assert row["result"]["reference"] == "IMG_0001.jpg"


def test_json_of_what_was_done(card, tmp_path, capsys, inline):
    code, out, err = run(["batch", str(card), "-o", str(tmp_path), "--json", *NONE], capsys)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (len(told["made"]), told["failed"], len(told["leftovers"])) == (3, [], 1)


def test_lists_files_and_folders_together_each_photo_once(card, tmp_path, capsys):
    (tmp_path / "list.txt").write_text(f"# a comment\n{card}/IMG_0003.jpg\n{card}/IMG_0004.jpg\n\n{card}/IMG_0005.jpg\n")
    os.symlink(card / "IMG_0003.jpg", tmp_path / "again.jpg")
    code, out, err = run(["batch", str(card), str(tmp_path / "again.jpg"), "--list", str(tmp_path / "list.txt"), "-n"], capsys)
    assert code == 0, err
    assert "3 sets of 9 photos; 1 file left over" in out


def test_one_bad_set_stops_no_other_and_the_next_run_makes_it(card, tmp_path, capsys, inline):
    mine, out = tmp_path / "card", tmp_path / "out"
    shutil.copytree(card, mine)
    good = (mine / "IMG_0004.jpg").read_bytes()
    (mine / "IMG_0004.jpg").write_bytes(good[: len(good) // 2])  # its header is whole, so it is planned
    code, _, err = run(["batch", str(mine), "-o", str(out), *NONE], capsys)
    assert code == 1
    assert "failed: IMG_0003_3.jpg: IMG_0004.jpg is truncated" in err
    assert sorted(pictures(out)) == ["IMG_0000_3.jpg", "IMG_0006_3.jpg"]
    assert 'class="failed"' in (out / REPORT).read_text()
    (mine / "IMG_0004.jpg").write_bytes(good)
    code, told, err = run(["batch", str(mine), "-o", str(out), *NONE], capsys)
    assert code == 0
    assert "1 set made, 2 up to date already" in told


def test_failures_are_told_however_quiet_and_in_json(card, tmp_path, capsys, inline):
    shutil.copytree(card, tmp_path / "card")
    photo = tmp_path / "card" / "IMG_0001.jpg"
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size * 2 // 3])
    options = ["batch", str(tmp_path / "card"), "-o", str(tmp_path / "out"), *NONE]
    code, out, err = run([*options, "-q"], capsys)
    assert (code, out) == (1, "")
    assert "failed: IMG_0000_3.jpg: " in err
    assert len(err.splitlines()) == 1
    told = json.loads(run([*options, "--json"], capsys)[1])
    assert list(told["errors"]) == told["failed"] == ["IMG_0000_3.jpg"]
    assert "IMG_0001.jpg" in told["errors"]["IMG_0000_3.jpg"]


# ---- refused ----


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "-o FOLDER: say where the pictures go"),
        (["-o", "out", "--name", "{what}.jpg"], "--name '{what}.jpg': expected a template"),
        (["-o", "out", "--name", "{stem}.txt"], "must end in one of .jpg"),
        (["-o", "out", "--name", "../{stem}.jpg"], "expected a name inside the output folder"),
        (["-o", "out", "--name", "same.jpg"], "two sets would be called same.jpg"),
        (["-o", "out", "--frames", "1"], "--frames 1: expected 2 to 16"),
        (["-o", "out", "--pattern", "("], "--pattern '(' is no regular expression"),
        (["-o", "out", "--memory", "lots"], "--memory 'lots': expected a size"),
        (["-o", "out", "--model", "huge"], "model 'huge': expected compact"),
        (["--dry-run", "--refine", "nan"], "--refine nan: expected 0 to 1"),
        (["--dry-run", "--model", "none", "--refine", "1"], "--refine: of the network, and --model is none"),
        (["-o", "out", "--tile", "20"], "tile 20: expected 512 pixels a side or more"),
        (["--dry-run", "--tile", "0"], "tile 0: expected 512 pixels a side or more"),
        (["-o", "out", "--list", "gone.txt"], "--list gone.txt: cannot be read"),
        (["-o", "out", "gone/"], "gone/ cannot be read"),
        (["-o", "out", "gone.json"], "gone.json is a plan, which says everything"),
        (["-o", "s3://bucket/out", "--pattern", "{set}.jpg"], "give --manifest FILE"),
    ],
)
def test_what_cannot_be_done_is_one_line(card, tmp_path, capsys, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    if "s3://bucket/out" in options:
        options = ["-o", "s3://bucket/out"]
    code, _, err = run(["batch", str(card), *options, "-q"], capsys)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_told_once_and_not_for_every_set(card, tmp_path, capsys):
    for path in (Path(gmodiff.__file__).parent / "weights").glob("compact*"):
        shutil.copy(path, tmp_path)
    words = ["batch", str(card), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "compact.json"), "--refine", "1", "-q"]
    for name, but in (("compact-refiner.onnx", ["--refine", "0"]), ("compact-noise.onnx", ["--keep-noise"]), ("compact.onnx", [])):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-1] + b"x")
        code, _, err = run(words, capsys)
        assert code == 2
        assert f"{name}: not the weights that the card" in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()
        if but:
            code, _, err = run([*words, *but, "--dry-run"], capsys)
            assert code == 0, err
        (tmp_path / name).write_bytes(whole)


def test_an_empty_card_is_one_line(tmp_path, capsys):
    code, _, err = run(["batch", str(tmp_path), "-o", str(tmp_path / "out"), "-q"], capsys)
    assert code == 2
    assert "there is no set to make" in err


def test_a_manifest_is_a_file_of_this_machine(card, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["batch", str(card), "-o", "out", "--manifest", "file:///results/m.jsonl", *NONE], capsys)
    assert code == 2
    assert "--manifest file:///results/m.jsonl: expected a file of this machine" in err
    assert list(tmp_path.iterdir()) == []
