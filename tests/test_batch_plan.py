"""Plans: what is refused in one that was edited, and how names, hidden files and what is left over are told."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest

from batches import NONE, plan_of
from command_line import run
from gmodiff.batch.one_set import Settings
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import run_batch
from gmodiff.errors import InputError


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


# ---- odd names ----


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
