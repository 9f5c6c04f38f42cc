"""What goes wrong in the middle of a batch: a full disk, a fault of the program, a photo that changes."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from batches import NONE, pictures, plan_of
from command_line import run
from gmodiff import read
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings
from gmodiff.batch.run import MANIFEST, run_batch
from gmodiff.errors import OutputError


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
