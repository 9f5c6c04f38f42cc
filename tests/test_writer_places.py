"""Where files go: nothing is replaced unasked, nothing is left half-written, what refuses says so."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gmodiff.errors import OutputError
from gmodiff.reader import read
from gmodiff.writer import SUFFIXES, check_writable, write
from hdr_samples import Halved, exif_block, picture

WRITE = sys.modules["gmodiff.writer"]


PICTURE = picture(exif=exif_block(orientation=1, thumbnail=b"\xff\xd8 a stale thumbnail \xff\xd9"))


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_nothing_is_replaced_without_force(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"precious")
    for attempt in (lambda: write(PICTURE, path), lambda: check_writable([path])):
        with pytest.raises(OutputError, match="--force"):
            attempt()
    assert path.read_bytes() == b"precious"
    check_writable([path], force=True)
    write(PICTURE, path, force=True)
    assert read(path).gain_map is not None
    assert leftovers(tmp_path) == ["a.jpg"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "a.png"

    class Intruding(Halved):
        def __call__(self, radiance):
            path.write_bytes(b"precious")
            return radiance

    with pytest.raises(OutputError, match="appeared"):
        write(replace(PICTURE, look=Intruding()), path)
    assert path.read_bytes() == b"precious"
    assert leftovers(tmp_path) == ["a.png"]


@pytest.mark.parametrize("name", ["a.bmp", "a", "a.jpg.txt", "a.webp"])
def test_other_suffixes_are_refused_with_the_list(tmp_path, name):
    with pytest.raises(OutputError, match=r"supported are \.jpg .*\.avif .*\.exr"):
        check_writable([tmp_path / name])


def test_suffixes_in_capitals_are_as_good(tmp_path):
    write(PICTURE, tmp_path / "A.JPG")
    assert read(tmp_path / "A.JPG").gain_map is not None


def test_impossible_places(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_writable([tmp_path / "folder.jpg"], force=True)
    with pytest.raises(OutputError, match="does not exist; create it"):
        check_writable([tmp_path / "missing" / "a.jpg"])
    with pytest.raises(OutputError, match="named twice"):
        check_writable([tmp_path / "a.jpg", tmp_path / "." / "a.jpg"])
    with pytest.raises(OutputError, match="named twice"):
        check_writable([tmp_path / "a.png"], others=[tmp_path / "a.png"])
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"x")
    with pytest.raises(OutputError, match="is one of the files being read"):
        check_writable([photo], inputs=[photo], force=True)
    with pytest.raises(OutputError, match="too long"):
        write(PICTURE, tmp_path / ("a" * 260 + ".exr"))


def test_a_folder_that_refuses_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(WRITE.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match=r"not writable \(read-only file system\)"):
        check_writable([tmp_path / "a.jpg"])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    with pytest.raises(OutputError, match="not writable"):
        check_writable([folder / "a.jpg"])


def test_links_stay_links(tmp_path):
    (tmp_path / "real.jpg").write_bytes(b"old")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    write(PICTURE, tmp_path / "link.jpg", force=True)
    assert (tmp_path / "link.jpg").is_symlink()
    assert read(tmp_path / "real.jpg").gain_map is not None


def test_files_are_as_readable_as_any_new_file(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.jpg").stat().st_mode == (tmp_path / "plain").stat().st_mode


# ---- failures half-way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", sorted({s for s in SUFFIXES if s not in (".jpeg", ".tiff")}))
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_failure_at_the_last_step_leaves_nothing(tmp_path, monkeypatch, suffix, failure):
    def fail(*_):
        raise failure

    (tmp_path / f"a{suffix}").write_bytes(b"precious")
    monkeypatch.setattr(WRITE.os, "replace", fail)
    expected = OutputError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected, match="no space left" if isinstance(failure, OSError) else None):
        write(PICTURE, tmp_path / f"a{suffix}", force=True)
    assert leftovers(tmp_path) == [f"a{suffix}"]
    assert (tmp_path / f"a{suffix}").read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", ["png", "avif", "jxl"])
def test_ctrl_c_while_encoding_leaves_nothing(tmp_path, suffix):
    class Interrupted(Halved):
        def __call__(self, radiance):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(replace(PICTURE, look=Interrupted()), tmp_path / f"a.{suffix}")
    assert leftovers(tmp_path) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from gmodiff.errors import OutputError
from gmodiff.writer import write
from hdr_samples import picture
folder = Path(sys.argv[1])
image = picture(200, 200)
noise = np.random.default_rng(0).random(image.radiance.shape, np.float32)
from dataclasses import replace
image = replace(image, radiance=noise, base=(noise * 255).astype(np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for suffix in ("jpg", "png", "avif", "jxl", "exr", "hdr", "tif"):
    try:
        write(image, folder / f"a.{suffix}")
    except OutputError as error:
        assert "\\n" not in str(error) and f"a.{suffix}" in str(error), str(error)
    else:
        raise SystemExit(f"{suffix}: no error")
    assert not list(folder.iterdir()), suffix
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are POSIX")
def test_a_disk_that_really_fills_up(tmp_path):
    source = Path(WRITE.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{Path(__file__).parent}"}
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
