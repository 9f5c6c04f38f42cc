"""Brackets that may lack a photo, and pictures whose bracket is no longer in the plan."""

import json
import shutil
from pathlib import Path

import pytest

from batches import NONE
from cards import write_set
from command_line import run
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.run import MANIFEST, REPORT

DOUBT = "IMG_0004.jpg, beside its photos, cannot be read: is it of this bracket?"


@pytest.fixture
def torn(card, tmp_path) -> Path:
    """A card whose second bracket has junk for its middle photo."""
    shutil.copytree(card, tmp_path / "torn")
    (tmp_path / "torn" / "IMG_0004.jpg").write_bytes(b"junk" * 999)
    return tmp_path / "torn"


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
