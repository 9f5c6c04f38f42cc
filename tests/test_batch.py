"""Batches: what is planned, made, written down, resumed, and refused."""

import contextlib
import errno
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import gmodiff
from cards import run_inline, write_card, write_set
from command_line import run
from gmodiff import read
from gmodiff.batch import run as batch_module
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings, make_set
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import MANIFEST, REPORT, run_batch
from gmodiff.batch.storage import size
from gmodiff.errors import InputError, OutputError

SOURCE = Path(gmodiff.__file__).parents[1]
NONE = ["--model", "none"]


@pytest.fixture(scope="module")
def card(tmp_path_factory) -> Path:
    """Three brackets and a single photo."""
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, 3)
    shutil.copy(write_set(folder / "spare", 90, seed=9, minute=30)[0], folder / "IMG_0099.jpg")
    shutil.rmtree(folder / "spare")
    return folder


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(batch_module, "run_here", run_inline)


def plan_of(card: Path, sets: int = 3) -> PlanFile:
    return PlanFile(tuple(PlannedSet(f"{n}.jpg", tuple(str(card / f"IMG_{3 * n + i:04d}.jpg") for i in range(3))) for n in range(sets)))


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.jpg")}


def content(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in sorted(folder.rglob("*.jpg")))).hexdigest()


# ---- the command ----------------------------------------------------------------------------------------------------------


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


def test_an_empty_card_is_one_line(tmp_path, capsys):
    code, _, err = run(["batch", str(tmp_path), "-o", str(tmp_path / "out"), "-q"], capsys)
    assert code == 2
    assert "there is no set to make" in err


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("{", "not JSON"),
        ("[]", "not a plan of this version"),
        ({"format": "gmodiff-plan-9"}, "not a plan of this version"),
        ({"sets": 3}, "its sets are int, expected a list"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg"]}]}, "set 1 (a.jpg): 1 photo, expected 2 to 16"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "a.jpg"]}]}, "a photo is named twice"),
        ({"sets": [{"output": "a.txt", "photos": ["a.jpg", "b.jpg"]}]}, "output 'a.txt' must end in"),
        ({"sets": [{"output": "../a.jpg", "photos": ["a.jpg", "b.jpg"]}]}, "inside the output folder"),
        ({"sets": [{"output": "/a.jpg", "photos": ["a.jpg", "b.jpg"]}]}, "inside the output folder"),
        ({"sets": [{"output": ".gmodiff-batch/a.jpg", "photos": ["a.jpg", "b.jpg"]}]}, "inside the output folder"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"], "ev": [1]}]}, "ev must be 2 numbers"),
        ({"sets": [{"output": o, "photos": ["a.jpg", "b.jpg"]} for o in ("a.jpg", "A.jpg")]}, "two sets would be called A.jpg"),
        ({"sets": []}, "it holds no set"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"], "ev": [0, math.nan]}]}, "ev must be 2 numbers"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "./a.jpg"]}]}, "a photo is named twice"),
        (
            {"sets": [{"output": "a.jpg", "photos": ["x/a.jpg", "x/b.jpg"], "reference": "c.jpg"}]},
            "set 1 (a.jpg): reference 'c.jpg' is none of its photos; expected one of a.jpg, b.jpg",
        ),
        (
            {"sets": [{"output": "a.jpg", "photos": ["x/a.jpg", "y/a.jpg"], "reference": "a.jpg"}]},
            "set 1 (a.jpg): reference 'a.jpg' is the name of several of its photos; expected one of x/a.jpg, y/a.jpg",
        ),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"], "reference": "3"}]}, "reference '3' is none of its photos"),
        ({"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"], "reference": 1}]}, "reference 1 is none of its photos"),
        (
            {"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"], "refrence": "a.jpg"}]},
            "set 1 (a.jpg): unknown key 'refrence'; did you mean 'reference'? expected output, photos, reference, ev",
        ),
        ({"set": []}, "unknown key 'set'; did you mean 'sets'?"),
        ({"sets": [{"outptu": "a.jpg", "photos": ["a.jpg", "b.jpg"]}]}, "set 1: unknown key 'outptu'; did you mean 'output'?"),
        (
            {"sets": [{"output": "a.jpg", "photos": ["a.jpg", "b.jpg"]}, {"output": "b.jpg", "photos": ["c.jpg", "./a.jpg"]}]},
            "set 2 (b.jpg): photo './a.jpg' is in set 1 (a.jpg) too",
        ),
        (
            {"sets": [{"output": f"{n}.jpg", "photos": [f"s3://b/{n}.jpg", f"gone{n}.jpg"]} for n in range(3)]},
            "set 1 (0.jpg): photo 'gone0.jpg' is not there (and 2 more of this plan), looked for from",
        ),
    ],
)
def test_a_plan_that_cannot_be_run_says_where(tmp_path, capsys, plan, expected):
    text = plan if isinstance(plan, str) else json.dumps({"format": "gmodiff-plan-1", **plan})
    (tmp_path / "plan.json").write_text(text)
    for options in (["-o", str(tmp_path / "out"), "-q"], ["--dry-run"]):
        code, out, err = run(["batch", str(tmp_path / "plan.json"), *options], capsys)
        assert code == 2
        assert expected in err
        assert err.count("\n") == 1
        assert not out
    assert not (tmp_path / "out").exists()


@pytest.fixture
def torn(card, tmp_path) -> Path:
    """A card whose second bracket has junk for its middle photo."""
    shutil.copytree(card, tmp_path / "torn")
    (tmp_path / "torn" / "IMG_0004.jpg").write_bytes(b"junk" * 999)
    return tmp_path / "torn"


DOUBT = "IMG_0004.jpg, beside its photos, cannot be read: is it of this bracket?"


def test_a_photo_that_cannot_be_read_is_named_and_its_bracket_is_doubted_in_the_plan(torn, tmp_path, capsys):
    (torn / "notes.txt").write_text("x")
    code, out, _ = run(["batch", str(torn), "--dry-run"], capsys)
    assert code == 0
    assert f"{torn}/IMG_0004.jpg: IMG_0004.jpg is not a photo this program reads" in out
    assert next(line for line in out.splitlines() if line.startswith("IMG_0003_2.jpg")).endswith(DOUBT)
    assert out.count(DOUBT) == 1
    assert "1 file that is no photo" in out
    plan = run(["batch", str(torn), "--dry-run", "--json"], capsys)[1]
    assert {s["output"]: s.get("doubt") for s in json.loads(plan)["sets"]} == {
        "IMG_0000_3.jpg": None, "IMG_0003_2.jpg": DOUBT, "IMG_0006_3.jpg": None}  # fmt: skip
    (tmp_path / "plan.json").write_text(plan)
    assert DOUBT in run(["batch", str(tmp_path / "plan.json"), "--dry-run"], capsys)[1]


def test_a_photo_that_cannot_be_read_is_named_by_the_run_in_the_report_and_in_the_manifest(torn, tmp_path, capsys, inline):
    options = ["batch", str(torn), "-o", str(tmp_path / "out"), *NONE]
    code, out, err = run(options, capsys)
    assert code == 0
    assert f"cannot be read: {torn}/IMG_0004.jpg: IMG_0004.jpg is not a photo" in err
    assert f"IMG_0003_2.jpg may lack a photo: {DOUBT}" in err
    assert "3 sets made (1 may lack a photo) in" in out
    assert Manifest(tmp_path / "out" / MANIFEST).finished["IMG_0003_2.jpg"]["doubt"] == DOUBT
    page = (tmp_path / "out" / REPORT).read_text()
    assert f"<li>{DOUBT}</li>" in page
    assert f"{torn}/IMG_0004.jpg: IMG_0004.jpg is not a photo" in page
    assert json.loads(run([*options, "--json"], capsys)[1])["doubtful"] == {"IMG_0003_2.jpg": DOUBT}


def test_results_whose_bracket_changed_are_marked_and_kept(torn, card, tmp_path, capsys, inline):
    """A photo came back; and another card has been merged into the same folder, which this is not about."""
    out = tmp_path / "out"
    write_set(tmp_path / "other", 500)
    options = ["-o", str(out), *NONE]
    assert run(["batch", str(tmp_path / "other"), *options], capsys)[0] == 0
    assert run(["batch", str(torn), *options], capsys)[0] == 0
    shutil.copy(card / "IMG_0004.jpg", torn / "IMG_0004.jpg")
    code, told, _ = run(["batch", str(torn), *options], capsys)
    assert code == 0
    assert "1 earlier picture is no longer in the plan, kept and marked so there: IMG_0003_2.jpg" in told
    assert (out / "IMG_0003_2.jpg").exists()
    page = (out / REPORT).read_text()
    assert page.count('class="gone"') == 1
    assert "4 sets: 0 failed" in page
    assert "; 1 no longer in the plan" in page
    assert json.loads(run(["batch", str(torn), *options, "--json"], capsys)[1])["no_longer_planned"] == ["IMG_0003_2.jpg"]
    assert "no longer" not in run(["batch", str(tmp_path / "other"), *options], capsys)[1]
    (out / "IMG_0003_2.jpg").unlink()
    assert "no longer" not in run(["batch", str(torn), *options], capsys)[1]


def test_a_set_whose_photos_are_gone_from_the_card_is_no_longer_planned(torn, tmp_path, capsys, inline):
    out = tmp_path / "out"
    assert run(["batch", str(torn), "-o", str(out), *NONE], capsys)[0] == 0
    for n in range(3):
        (torn / f"IMG_000{n}.jpg").unlink()
    assert "no longer in the plan, kept and marked so there: IMG_0000_3.jpg" in run(["batch", str(torn), "-o", str(out), *NONE], capsys)[1]


def test_names_that_collide_end_a_dry_run_after_the_table(card, capsys):
    code, out, err = run(["batch", str(card), "--dry-run", "--name", "same.jpg"], capsys)
    assert code == 2
    assert "3 sets of 9 photos" in out
    assert err.startswith("gmodiff: ")
    assert "two sets would be called same.jpg" in err
    assert err.count("\n") == 1


def test_hidden_files_are_counted(card, tmp_path, capsys, inline):
    shutil.copytree(card, tmp_path / "card")
    (tmp_path / "card" / "._IMG_0001.jpg").write_bytes(b"\0\5\x16\7")
    (tmp_path / "card" / ".IMG_0050.jpg").write_bytes(b"x")
    assert "1 file left over; 2 hidden files passed over" in run(["batch", str(tmp_path / "card"), "-n"], capsys)[1]
    plan = run(["batch", str(tmp_path / "card"), "-n", "--json"], capsys)[1]
    (tmp_path / "plan.json").write_text(plan)
    assert json.loads(plan)["hidden"] == 2
    assert run(["batch", str(tmp_path / "plan.json"), "-n"], capsys)[0] == 0
    assert "2 hidden files passed over" in run(["batch", str(tmp_path / "card"), "-o", str(tmp_path / "out"), *NONE], capsys)[2]


def test_line_breaks_in_names_break_no_table(card, tmp_path, capsys):
    shutil.copytree(card, tmp_path / "card")
    for n in (0, 99):
        os.rename(tmp_path / "card" / f"IMG_{n:04d}.jpg", tmp_path / "card" / f"a\nb\x1b[31m{n}.jpg")
    lines = len(run(["batch", str(card), "-n"], capsys)[1].splitlines())
    code, out, _ = run(["batch", str(tmp_path / "card"), "-n"], capsys)
    assert code == 0
    assert len(out.splitlines()) == lines
    assert "a\\nb\\x1b[31m0" in out
    assert "\x1b" not in out


def test_line_breaks_in_names_break_no_error(card, tmp_path, inline):
    (tmp_path / "a\nb.jpg").write_bytes(b"somebody's")
    plan = PlanFile((PlannedSet("a\nb.jpg", plan_of(card).sets[0].photos),))
    with pytest.raises(InputError, match=r"a\\nb\.jpg exists and is not of this batch"):
        run_batch(plan, str(tmp_path), Settings(model="none"))


def test_ctrl_c_before_anything_was_begun_says_so(card, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gmodiff.batch.card.read_card", interrupted)
    code, _, err = run(["batch", str(card), "-o", str(tmp_path / "out")], capsys)
    assert code == 130
    assert err == "gmodiff: stopped while looking at photos; nothing was begun\n"
    assert not (tmp_path / "out").exists()


def test_thousands_left_over_for_one_reason_are_summed_up(capsys):
    left = [(f"card/IMG_{n}.jpg", f"a copy of best/{'My ' * (n % 2)}IMG_{n} (1).jpg") for n in range(3000)]
    odd = [(f"card/{n} {word}.jpg", f"{n} {word}.jpg is empty") for n in range(20) for word in ("a", "b")]
    plan = PlanFile((), (("card/x.jpg", "a single photo"), *left, *odd, ("card/y.jpg", "a single photo")))
    lines = plan.as_text().splitlines()
    assert len(lines) < 50
    assert "  and 20 files more for the same reason; --json names all" in lines
    assert "  and 2980 files more for the same reason; --json names all" in lines
    assert lines.index("  card/y.jpg: a single photo") == lines.index("  card/x.jpg: a single photo") + 1
    assert len(plan.as_dict()["leftovers"]) == 3042


def test_file_names_that_are_no_text(card, tmp_path, capsys, inline):
    mine = tmp_path / "card"
    mine.mkdir()
    for n in range(3):
        odd = os.fsencode(mine) + b"/\xff\xfe" + str(n).encode() + b".jpg"
        try:
            Path(os.fsdecode(odd)).write_bytes((card / f"IMG_000{n}.jpg").read_bytes())
        except OSError:
            pytest.skip("this disk has no such names")
    assert run(["batch", str(mine), "-n"], capsys)[0] == 0
    for expected in ("1 set made", "0 sets made, 1 up to date"):
        code, out, err = run(["batch", str(mine), "-o", str(tmp_path / "out"), *NONE], capsys)
        assert code == 0, err
        assert expected in out


# ---- again ----------------------------------------------------------------------------------------------------------------


def made(card: Path, out: Path, settings: Settings | None = None, **options) -> tuple[list[str], list[str]]:
    done = run_batch(plan_of(card), str(out), settings or Settings(model="none"), **options)
    assert not done.failed
    return sorted(done.made), sorted(done.kept)


@pytest.fixture
def mine(card, tmp_path, inline) -> tuple[Path, Path]:
    """A copy of the card, and a folder where it has been merged."""
    shutil.copytree(card, tmp_path / "card")
    assert made(tmp_path / "card", tmp_path / "out") == (["0.jpg", "1.jpg", "2.jpg"], [])
    return tmp_path / "card", tmp_path / "out"


def test_nothing_is_made_twice(mine):
    assert made(*mine) == ([], ["0.jpg", "1.jpg", "2.jpg"])


def test_a_changed_photo_makes_its_set_anew(mine):
    card, out = mine
    shutil.copy(card / "IMG_0006.jpg", card / "IMG_0099.jpg")
    write_set(card, 3, seed=77, minute=1)
    assert made(card, out)[0] == ["1.jpg"]


def test_a_touched_photo_makes_nothing_anew(mine):
    card, out = mine
    os.utime(card / "IMG_0004.jpg", (1, 1))
    assert made(card, out) == ([], ["0.jpg", "1.jpg", "2.jpg"])
    entry = Manifest(out / MANIFEST).finished["1.jpg"]["photos"][1]
    assert entry["stamp"].endswith("-1000000000")  # so that it is not read again next time


@pytest.mark.parametrize("changed", [{"quality": 60}, {"headroom": 2.0}, {"weights": "of another network"}])
def test_changed_settings_make_everything_anew(mine, changed):
    assert made(*mine, Settings(model="none", **changed))[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_result_that_is_gone_is_made_anew_and_one_that_was_changed_only_by_force(mine):
    card, out = mine
    (out / "0.jpg").unlink()
    (out / "2.jpg").write_bytes(b"edited")
    with pytest.raises(InputError, match="was changed since it was made"):
        made(card, out)
    assert (out / "2.jpg").read_bytes() == b"edited"
    assert run_batch(plan_of(card), str(out), Settings(model="none"), force=True).made == ["0.jpg", "2.jpg"]


def test_another_card_with_the_same_names_replaces_nothing(mine, tmp_path_factory):
    card, out = mine
    other = tmp_path_factory.mktemp("other")
    for path in card.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
        os.utime(other / path.name, (1, 1))
    before = (out / "0.jpg").read_bytes()
    with pytest.raises(InputError, match="the picture of other photos"):
        made(other, out)
    assert (out / "0.jpg").read_bytes() == before


def test_a_card_that_lies_elsewhere_now_goes_on(mine, tmp_path_factory):
    card, out = mine
    moved = tmp_path_factory.mktemp("moved")
    for path in card.iterdir():
        shutil.copy2(path, moved / path.name)
    assert made(moved, out)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_no_photo_of_the_card_is_replaced_however_it_is_written(mine):
    card, out = mine
    first = sorted(card.iterdir())[0]
    before = first.read_bytes()
    sets = plan_of(card).sets
    for target, name in ((f"file://{card}", first.name), (str(card), "left.jpg")):
        (card / "left.jpg").write_bytes(b"somebody's")
        plan = PlanFile((replace(sets[0], output=name),), ((str(card / "left.jpg"), "a single photo"),))
        with pytest.raises(InputError, match="photos are never replaced"):
            run_batch(plan, target, Settings(model="none"), manifest=out / "m.jsonl", force=True)
    assert first.read_bytes() == before
    assert (card / "left.jpg").read_bytes() == b"somebody's"
    (card / "left.jpg").unlink()


def test_a_file_that_appears_meanwhile_is_not_replaced(mine, monkeypatch):
    card, out = mine
    (out / "1.jpg").unlink()

    def late(jobs, **options):
        for job in jobs:
            options["starting"](job)
            (out / "1.jpg").write_bytes(b"somebody's")
            options["ended"](job, make_set(job))

    monkeypatch.setattr("gmodiff.batch.run.run_here", late)
    done = run_batch(plan_of(card), str(out), Settings(model="none"))
    assert done.failed == ["1.jpg"]
    assert (out / "1.jpg").read_bytes() == b"somebody's"
    assert "appeared meanwhile" in str(Manifest(out / MANIFEST).last["1.jpg"]["error"])


def test_a_store_that_does_not_answer_is_no_empty_one(tmp_path, monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "info", lambda *a, **k: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(InputError, match="cannot be looked at"):
        size("memory://out/a.jpg")


def test_everything_anew_when_asked(mine):
    assert made(*mine, again=True)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_manifest_cut_at_any_byte_loses_nothing_but_what_it_no_longer_tells(mine):
    card, out = mine
    whole = (out / MANIFEST).read_bytes()
    rng = random.Random(0)
    for cut in [0, 1, 20, *rng.sample(range(len(whole)), 12), len(whole) - 1]:
        (out / MANIFEST).write_bytes(whole[:cut])
        done = run_batch(plan_of(card), str(out), Settings(model="none"), force=True)
        assert not done.failed
        assert sorted([*done.made, *done.kept]) == ["0.jpg", "1.jpg", "2.jpg"]
        assert made(card, out)[0] == [], cut


def test_a_cut_line_does_not_swallow_the_next(mine):
    manifest = mine[1] / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-20])
    Manifest(manifest).append({"output": "next.jpg", "status": "started", "photos": [], "settings": {}})
    again = Manifest(manifest)
    assert "next.jpg" in again.last
    assert again.notes == ["batch.jsonl: 1 cut or damaged line left out; what is not told is done again"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ('{"format": "gmodiff-batch-9", "version": "9.0"}\n', "a manifest of another version (gmodiff-batch-9)"),
        ("my diary\nof this week\n", "not a manifest of gmodiff batch"),
        ("[1]\n", "not a manifest of gmodiff batch"),
    ],
)
def test_another_manifest_is_refused_and_left_alone(card, tmp_path, inline, head, expected):
    (tmp_path / MANIFEST).write_text(head)
    with pytest.raises(InputError, match=expected.replace("(", r"\(").replace(")", r"\)")):
        made(card, tmp_path)
    assert (tmp_path / MANIFEST).read_text() == head
    assert not pictures(tmp_path)


def test_a_file_that_is_not_of_this_batch_is_not_replaced(card, tmp_path, inline):
    (tmp_path / "1.jpg").write_bytes(b"somebody's")
    with pytest.raises(InputError, match=r"1\.jpg exists and is not of this batch"):
        made(card, tmp_path)
    assert (tmp_path / "1.jpg").read_bytes() == b"somebody's"
    assert made(card, tmp_path, force=True)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_file_that_came_after_a_failed_set_is_not_replaced(card, tmp_path, inline):
    """A person made the picture by hand, where the batch could not."""
    shutil.copytree(card, tmp_path / "card")
    good = (tmp_path / "card" / "IMG_0004.jpg").read_bytes()
    (tmp_path / "card" / "IMG_0004.jpg").write_bytes(good[: len(good) // 2])
    plan, out = plan_of(tmp_path / "card"), tmp_path / "out"
    assert run_batch(plan, str(out), Settings(model="none")).failed == ["1.jpg"]
    (out / "1.jpg").write_bytes((out / "0.jpg").read_bytes())
    (tmp_path / "card" / "IMG_0004.jpg").write_bytes(good)
    with pytest.raises(InputError, match=r"1\.jpg exists and batch\.jsonl does not tell of it"):
        run_batch(plan, str(out), Settings(model="none"))
    (out / "1.jpg").write_bytes(b"somebody's")
    with pytest.raises(InputError, match=r"1\.jpg exists and is not of this batch"):
        run_batch(plan, str(out), Settings(model="none"))
    assert (out / "1.jpg").read_bytes() == b"somebody's"


def test_a_picture_that_stayed_when_its_set_failed_later_is_made_anew(mine):
    card, out = mine
    good = (card / "IMG_0004.jpg").read_bytes()
    (card / "IMG_0004.jpg").write_bytes(good[: len(good) // 2])
    assert run_batch(plan_of(card), str(out), Settings(model="none")).failed == ["1.jpg"]
    (card / "IMG_0004.jpg").write_bytes(good)
    assert made(card, out)[0] == ["1.jpg"]


def cut_after_the_start(manifest: Path, output: str) -> None:
    """As if a kill had come before the set's second line."""
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if json.loads(line).get("output") != output or '"started"' in line))


def test_after_a_kill_between_a_picture_and_its_line_the_batch_goes_on(mine):
    card, out = mine
    cut_after_the_start(out / MANIFEST, "1.jpg")
    record = Manifest(out / MANIFEST)
    record.append({**record.last["1.jpg"], "finished": "2100-01-01T00:00:00+00:00"})  # a later start that was killed too
    assert made(card, out) == (["1.jpg"], ["0.jpg", "2.jpg"])


@pytest.mark.parametrize("own", [False, True])
def test_after_a_kill_a_file_that_cannot_be_the_batch_s_is_not_replaced(mine, own):
    """It does not say that this program made it, or is older than the start."""
    card, out = mine
    cut_after_the_start(out / MANIFEST, "1.jpg")
    if not own:
        (out / "1.jpg").write_bytes(b"somebody's")
    os.utime(out / "1.jpg", None if not own else (1e9, 1e9))
    with pytest.raises(InputError, match=r"1\.jpg exists"):
        made(card, out)


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_pictures_whose_manifest_was_lost_are_called_what_they_may_be(mine, lost):
    card, out = mine
    (out / MANIFEST).unlink()
    if lost == "empty":
        (out / MANIFEST).touch()
    with pytest.raises(
        InputError, match=r"0\.jpg exists and batch\.jsonl does not tell of it \(and 2 more\); .* put the manifest back, or --force"
    ):
        made(card, out)
    assert made(card, out, force=True)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_two_manifests_in_one_folder_keep_their_previews_apart(card, tmp_path, inline):
    for name in ("a.jsonl", "b.jsonl"):
        run_batch(plan_of(card, 1), str(tmp_path / name[0]), Settings(model="none"), manifest=tmp_path / name)
        batch_module.preview_of(tmp_path / name, "0.jpg").write_bytes(name.encode())
    assert batch_module.preview_of(tmp_path / "a.jsonl", "0.jpg").read_bytes() == b"a.jsonl"
    assert batch_module.preview_of(tmp_path / MANIFEST, "0.jpg") == tmp_path / ".gmodiff-batch" / "previews" / "0.jpg.jpg"


def test_a_photo_is_never_replaced_not_even_by_force(card, tmp_path, inline):
    shutil.copytree(card, tmp_path / "card")
    before = content(tmp_path / "card")
    plan = PlanFile((PlannedSet("IMG_0000.jpg", plan_of(tmp_path / "card").sets[0].photos),))
    with pytest.raises(InputError, match="is one of the photos"):
        run_batch(plan, str(tmp_path / "card"), Settings(model="none"), force=True)
    assert content(tmp_path / "card") == before
    assert not (tmp_path / "card" / ".gmodiff-batch").exists()


def test_results_in_the_card_s_own_folder_are_no_photos_the_second_time(card, tmp_path, capsys, inline):
    shutil.copytree(card, tmp_path / "card")
    for expected in ("3 sets made", "0 sets made, 3 up to date"):
        code, out, err = run(["batch", str(tmp_path / "card"), "-o", str(tmp_path / "card"), *NONE], capsys)
        assert code == 0, err
        assert expected in out


def test_two_batches_do_not_write_into_one_folder(card, tmp_path, inline):
    with batch_module._alone(tmp_path / ".gmodiff-batch"), pytest.raises(InputError, match="another gmodiff batch is writing there"):
        made(card, tmp_path)


# ---- what goes wrong in the middle ----------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_batch_and_the_next_run_goes_on(card, tmp_path, capsys, inline, monkeypatch):
    import gmodiff.batch.one_set as one_set

    deliver, calls = one_set.deliver, []

    def full(made, place, **options):
        calls.append(place)
        if len(calls) == 2:
            raise OutputError(f"{place}: no space left on the disk") from OSError(errno.ENOSPC, "No space left on device")
        deliver(made, place, **options)

    monkeypatch.setattr(one_set, "deliver", full)
    code, _, err = run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)
    assert code == 2
    assert "no space left on the disk; 2 sets are not made, run again to go on" in err
    assert sorted(pictures(tmp_path)) == ["IMG_0000_3.jpg"]
    code, out, _ = run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)
    assert code == 0
    assert "2 sets made, 1 up to date already" in out


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform != "linux", reason="needs to mount a small disk")
def test_a_disk_that_is_really_full(card, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount here")
    try:
        code, _, err = run(["batch", str(card), "-o", str(disk), "--workers", "1", "--quality", "100", "-q", *NONE], capsys)
        assert code == 2
        assert "no space left" in err
        assert err.count("\n") == 1
        for file in disk.glob("*.jpg"):
            read(file)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_manifest_that_cannot_grow_ends_the_batch_with_the_old_lines_whole(mine, monkeypatch):
    card, out = mine
    before = (out / MANIFEST).read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gmodiff.batch.manifest.os.fsync", full)
    with pytest.raises(OutputError, match="no space left on device"):
        made(card, out, again=True)
    assert (out / MANIFEST).read_bytes() == before


def test_a_fault_of_the_program_in_one_set_is_that_set_s(card, tmp_path, inline, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("gmodiff.pipeline.reconstruct", broken)
    done = run_batch(plan_of(card), str(tmp_path), Settings(model="none"))
    assert len(done.failed) == 3
    assert Manifest(tmp_path / MANIFEST).finished["0.jpg"]["error"] == "ZeroDivisionError: by zero"


def test_a_photo_that_changes_while_it_is_merged_gives_no_picture(card, tmp_path, inline, monkeypatch):
    import gmodiff.pipeline

    shutil.copytree(card, tmp_path / "card")
    merge = gmodiff.pipeline.reconstruct

    def meanwhile(bracket, *arguments, **options):
        if bracket.frames[0].name in ("IMG_0001.jpg",):
            os.utime(tmp_path / "card" / "IMG_0000.jpg", (5, 5))
        return merge(bracket, *arguments, **options)

    monkeypatch.setattr("gmodiff.pipeline.reconstruct", meanwhile)
    done = run_batch(plan_of(tmp_path / "card"), str(tmp_path / "out"), Settings(model="none"))
    assert done.failed == ["0.jpg"]
    assert "changed while it was being merged" in Manifest(tmp_path / "out" / MANIFEST).finished["0.jpg"]["error"]
    assert sorted(pictures(tmp_path / "out")) == ["1.jpg", "2.jpg"]


# ---- ends ----------------------------------------------------------------------------------------------------------------


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


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


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


def check_whole(out: Path) -> None:
    """Every picture that has a name can be read, and is what the manifest says where it says anything."""
    told = Manifest(out / MANIFEST).finished if (out / MANIFEST).exists() else {}
    for file in out.glob("*.jpg"):
        assert read(file).gain_map is not None
    for row in told.values():
        if row["status"] == "done" and Manifest(out / MANIFEST).last[row["output"]]["status"] == "done":
            assert hashlib.sha256((out / row["output"]).read_bytes()).hexdigest() == row["sha256"]


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


def test_a_manifest_is_a_file_of_this_machine(card, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["batch", str(card), "-o", "out", "--manifest", "file:///results/m.jsonl", *NONE], capsys)
    assert code == 2
    assert "--manifest file:///results/m.jsonl: expected a file of this machine" in err
    assert list(tmp_path.iterdir()) == []


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


def test_somebody_elses_report_is_not_replaced(card, tmp_path, capsys, inline):
    (tmp_path / REPORT).write_text("<html>mine</html>")
    code, _, err = run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)
    assert code == 2
    assert "is no report of a batch" in err
    assert (tmp_path / REPORT).read_text() == "<html>mine</html>"
    assert pictures(tmp_path) == {}
    assert run(["batch", str(card), "-o", str(tmp_path), *NONE, "--force"], capsys)[0] == 0
    assert run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)[0] == 0


def test_why_sets_are_made_anew_is_told(card, tmp_path, capsys, inline):
    options = ["batch", str(card), "-o", str(tmp_path), *NONE]
    assert "made anew" not in run(options, capsys)[2]
    assert "3 sets made with other settings, exposures or reference before: made anew" in run([*options, "--quality", "80"], capsys)[2]
