"""What a batch never replaces: photos, files of others, and what another batch is writing."""

import os
import shutil
from dataclasses import replace

import pytest

from batches import NONE, content, made, pictures, plan_of
from command_line import run
from gmodiff.batch import run as batch_module
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings, make_set
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import MANIFEST, REPORT, run_batch
from gmodiff.errors import InputError

# ---- photos ----


def test_a_photo_is_never_replaced_not_even_by_force(card, tmp_path, inline):
    shutil.copytree(card, tmp_path / "card")
    before = content(tmp_path / "card")
    plan = PlanFile((PlannedSet("IMG_0000.jpg", plan_of(tmp_path / "card").sets[0].photos),))
    with pytest.raises(InputError, match="is one of the photos"):
        run_batch(plan, str(tmp_path / "card"), Settings(model="none"), force=True)
    assert content(tmp_path / "card") == before
    assert not (tmp_path / "card" / ".gmodiff-batch").exists()


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


# ---- files and pictures of others ----


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


def test_two_batches_do_not_write_into_one_folder(card, tmp_path, inline):
    with batch_module._alone(tmp_path / ".gmodiff-batch"), pytest.raises(InputError, match="another gmodiff batch is writing there"):
        made(card, tmp_path)


def test_somebody_elses_report_is_not_replaced(card, tmp_path, capsys, inline):
    (tmp_path / REPORT).write_text("<html>mine</html>")
    code, _, err = run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)
    assert code == 2
    assert "is no report of a batch" in err
    assert (tmp_path / REPORT).read_text() == "<html>mine</html>"
    assert pictures(tmp_path) == {}
    assert run(["batch", str(card), "-o", str(tmp_path), *NONE, "--force"], capsys)[0] == 0
    assert run(["batch", str(card), "-o", str(tmp_path), *NONE], capsys)[0] == 0
