"""Batches run again: which sets are made anew, and which are kept."""

import os
import shutil

import pytest

from batches import NONE, made, plan_of
from cards import write_set
from command_line import run
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings
from gmodiff.batch.run import MANIFEST, run_batch
from gmodiff.batch.storage import size
from gmodiff.errors import InputError


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


def test_a_card_that_lies_elsewhere_now_goes_on(mine, tmp_path_factory):
    card, out = mine
    moved = tmp_path_factory.mktemp("moved")
    for path in card.iterdir():
        shutil.copy2(path, moved / path.name)
    assert made(moved, out)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_store_that_does_not_answer_is_no_empty_one(tmp_path, monkeypatch):
    import fsspec

    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "info", lambda *a, **k: (_ for _ in ()).throw(TimeoutError("no answer")))
    with pytest.raises(InputError, match="cannot be looked at"):
        size("memory://out/a.jpg")


def test_everything_anew_when_asked(mine):
    assert made(*mine, again=True)[0] == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_picture_that_stayed_when_its_set_failed_later_is_made_anew(mine):
    card, out = mine
    good = (card / "IMG_0004.jpg").read_bytes()
    (card / "IMG_0004.jpg").write_bytes(good[: len(good) // 2])
    assert run_batch(plan_of(card), str(out), Settings(model="none")).failed == ["1.jpg"]
    (card / "IMG_0004.jpg").write_bytes(good)
    assert made(card, out)[0] == ["1.jpg"]


def test_results_in_the_card_s_own_folder_are_no_photos_the_second_time(card, tmp_path, capsys, inline):
    shutil.copytree(card, tmp_path / "card")
    for expected in ("3 sets made", "0 sets made, 3 up to date"):
        code, out, err = run(["batch", str(tmp_path / "card"), "-o", str(tmp_path / "card"), *NONE], capsys)
        assert code == 0, err
        assert expected in out


def test_why_sets_are_made_anew_is_told(card, tmp_path, capsys, inline):
    options = ["batch", str(card), "-o", str(tmp_path), *NONE]
    assert "made anew" not in run(options, capsys)[2]
    assert "3 sets made with other settings, exposures or reference before: made anew" in run([*options, "--quality", "80"], capsys)[2]
