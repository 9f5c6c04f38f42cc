"""The manifest: cut, lost, of another version, or ending between a picture and its line."""

import errno
import json
import os
import random
from pathlib import Path

import pytest

from batches import made, pictures, plan_of
from gmodiff.batch import run as batch_module
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings
from gmodiff.batch.run import MANIFEST, run_batch
from gmodiff.errors import InputError, OutputError


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


def test_a_manifest_that_cannot_grow_ends_the_batch_with_the_old_lines_whole(mine, monkeypatch):
    card, out = mine
    before = (out / MANIFEST).read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gmodiff.batch.manifest.os.fsync", full)
    with pytest.raises(OutputError, match="no space left on device"):
        made(card, out, again=True)
    assert (out / MANIFEST).read_bytes() == before


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


# ---- after a kill ----


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
