"""The private folder: what users call files never becomes a path, limits hold, nothing stays behind."""

import asyncio
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.grouping import Shot
from gmodiff.photo import Photo
from gmodiff.web import workspace
from gmodiff.web.workspace import KEPT_S, PREFIX, Limits, Workspace, shown_name
from web_page import EXAMPLES

NASTY = [
    "../../etc/passwd",
    "..\\..\\boot.ini",
    "/absolute/name.jpg",
    "a\0b.jpg",
    "‮gpj.exe",
    "x" * 5000 + ".jpg",
    "",
    "CON",
    "<script>.jpg",
    "a/b/",
]


@pytest.fixture
def space(tmp_path):
    made = Workspace(place=tmp_path)
    yield made
    made.close()


def receive(space: Workspace, data: bytes, name: str = "photo.jpg", pieces: int = 3):
    async def chunks():
        for part in np.array_split(np.frombuffer(data, np.uint8), pieces):
            yield part.tobytes()

    return asyncio.run(space.receive(chunks(), name))


def add(space: Workspace, path: Path, name: str | None = None):
    return space.add(*receive(space, path.read_bytes(), name or path.name))


@pytest.mark.parametrize("name", NASTY)
def test_a_name_never_becomes_a_path(space, name):
    path, shown = receive(space, b"data", name)
    assert path.parent == space.folder
    assert shown.isprintable()
    assert 0 < len(shown) <= 120
    assert not set("/\\\0") & set(shown)
    assert path.name.startswith("upload-")


def test_the_last_part_of_a_name_is_shown():
    assert shown_name("C:\\fakepath\\IMG_1.JPG") == "IMG_1.JPG"
    assert shown_name("card/DCIM/äöü 照片.jpg") == "äöü 照片.jpg"


def test_nobody_else_can_look_in(space):
    assert stat.S_IMODE(space.folder.stat().st_mode) == 0o700


def test_a_photo_comes_with_its_settings_and_a_picture_of_it(space):
    upload = add(space, EXAMPLES[0], "my photo.jpg")
    assert upload.name == upload.shot.name == "my photo.jpg"
    assert (upload.shot.width, upload.shot.height) == (1200, 800)
    assert upload.shot.exposure is not None
    assert upload.thumbnail.startswith(b"\xff\xd8\xff")
    assert space.get(upload.id) == upload


@pytest.mark.parametrize("data", [b"no photo at all" * 50, EXAMPLES[0].read_bytes()[:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 99])
def test_what_is_no_photo_is_refused_by_the_users_name_and_removed(space, data):
    path, shown = receive(space, data, "holiday.jpg")
    with pytest.raises(GMODiffError, match=r"holiday\.jpg") as refused:
        space.add(path, shown)
    assert "upload-" not in str(refused.value)
    assert str(space.folder) not in str(refused.value)
    assert not path.exists()


def test_a_result_is_no_photo_of_a_bracket(space, tmp_path):
    from gmodiff import write
    from hdr_samples import picture

    write(picture(64, 64), tmp_path / "result.jpg")
    with pytest.raises(InputError, match=r"result\.jpg was made by gmodiff"):
        add(space, tmp_path / "result.jpg")


def test_sixteen_bits_and_grey_have_a_thumbnail(space, tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "deep.tif"), np.full((40, 60, 3), 30000, np.uint16))
    Image.fromarray(np.full((40, 60), 99, np.uint8)).save(tmp_path / "grey.png")
    assert add(space, tmp_path / "deep.tif").thumbnail
    assert add(space, tmp_path / "grey.png").thumbnail


def test_limits_hold(tmp_path):
    space = Workspace(Limits(file_bytes=1000, photos=1, pixels=1000), tmp_path)
    with pytest.raises(InputError, match=r"big\.jpg is larger than 0\.001 MB \(--max-upload\)"):
        receive(space, b"x" * 1001, "big.jpg")
    with pytest.raises(InputError, match="empty"):
        receive(space, b"", pieces=1)
    assert not list(space.folder.glob("upload-*"))
    space.close()
    space = Workspace(Limits(photos=1, pixels=1000), tmp_path)
    with pytest.raises(InputError, match=r"1200x800, 960000 pixels, above the limit of 1000 \(--max-pixels\)"):
        add(space, EXAMPLES[0])
    space.close()
    space = Workspace(Limits(photos=1, total_bytes=2_000_000), tmp_path)
    add(space, EXAMPLES[0])
    with pytest.raises(InputError, match="1 photos are here already"):
        add(space, EXAMPLES[1])
    with pytest.raises(InputError, match="--max-total"):
        space.check_room(3_000_000)
    space.close()


def test_an_upload_that_breaks_off_leaves_nothing(space):
    async def chunks():
        yield b"begin"
        raise ConnectionError("gone")

    with pytest.raises(InputError, match="cannot be kept"):
        asyncio.run(space.receive(chunks(), "a.jpg"))
    assert not list(space.folder.glob("upload-*"))


def test_removed_and_old_photos_are_gone(space):
    first, second = (add(space, p) for p in EXAMPLES[:2])
    space.remove(first.id)
    assert not first.path.exists()
    with pytest.raises(InputError, match="not here any more"):
        space.get(first.id)
    space.remove_old(time.time() + KEPT_S - 60)
    assert second.path.exists()
    space.remove_old(time.time() + KEPT_S + 60)
    assert not second.path.exists()
    assert space.uploads() == []


def test_messages_hold_no_path_of_ours(space):
    upload = add(space, EXAMPLES[0], "mine.jpg")
    assert space.in_users_words(f"{upload.path} and {upload.path.name} in {space.folder}") == "mine.jpg and mine.jpg in the page's folder"


def test_folders_of_servers_that_were_killed_are_removed_and_of_others_not(tmp_path):
    killed = "import os, signal; from gmodiff.web.workspace import Workspace; from pathlib import Path; import sys; "
    killed += "Workspace(place=Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    (dead,) = tmp_path.glob(f"{PREFIX}*")
    alive = Workspace(place=tmp_path)
    assert not dead.exists()
    week_ago = time.time() - 8 * KEPT_S
    os.utime(alive.folder, (week_ago, week_ago))  # a quiet week is no reason
    (tmp_path / f"{PREFIX}young").mkdir()
    (tmp_path / f"{PREFIX}old").mkdir()
    os.utime(tmp_path / f"{PREFIX}old", (week_ago, week_ago))
    (tmp_path / f"{PREFIX}file").write_text("not a folder")
    space = Workspace(place=tmp_path)
    assert alive.folder.exists()
    assert (tmp_path / f"{PREFIX}young").exists()  # its server is about to lock it
    assert not (tmp_path / f"{PREFIX}old").exists()
    for made in (space, alive):
        made.close()
        assert not made.folder.exists()


def test_the_limit_holds_for_uploads_that_do_not_say_how_long_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "WRITTEN_AT_ONCE", 1000)
    monkeypatch.setattr(workspace, "CHECKED_EVERY", 10_000)
    space = Workspace(Limits(total_bytes=100_000), tmp_path)
    with pytest.raises(InputError, match="--max-total"):
        receive(space, bytes(200_000), pieces=200)
    assert not list(space.folder.glob("upload-*"))
    receive(space, bytes(80_000), pieces=80)
    space.close()


def test_room_that_is_set_aside_is_not_given_twice(tmp_path):
    space = Workspace(Limits(total_bytes=1000), tmp_path)
    with space.room(600):
        with pytest.raises(InputError, match="--max-total"), space.room(600):
            pass
        with space.room(300):
            pass
    with space.room(600):
        pass
    place = space.new_folder("merge")
    with space.room(600, place):
        (place / "half").write_bytes(bytes(300))
        with space.room(300):  # 300 written, 300 still to come
            pass
        with pytest.raises(InputError, match="--max-total"), space.room(500):
            pass
    space.close()


def test_whatever_goes_wrong_with_a_photo_its_upload_goes(space, monkeypatch):
    monkeypatch.setattr(workspace, "_small", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        add(space, EXAMPLES[0])
    assert not list(space.folder.glob("upload-*"))


def test_a_raw_photo_whose_preview_is_damaged_is_developed(monkeypatch):
    monkeypatch.setattr(workspace, "_raw_preview", lambda path: b"no JPEG")
    monkeypatch.setattr(workspace, "read_photo", lambda path, max_pixels: Photo(path, np.full((40, 60, 3), 1000, np.uint16)))
    small = workspace._small(Path("a.dng"), Shot("a.dng", Path("a.dng"), width=60, height=40, raw=True), 10_000)
    assert small.shape[2] == 3


def test_a_damaged_photo_says_so(space, tmp_path):
    data = EXAMPLES[0].read_bytes()
    path, shown = receive(space, data[: len(data) // 3], "torn.jpg")
    with pytest.raises(FileFormatError, match=r"torn\.jpg is truncated"):
        space.add(path, shown)
