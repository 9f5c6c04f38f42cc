"""What jobs leave behind the routes, in the process of the test: merges removed while they are made, what is kept, and how long."""

import threading
import time

import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.web import merging
from gmodiff.web import page as page_module
from gmodiff.web.merging import Models
from gmodiff.web.page import FILE_BYTES_PER_PIXEL, MergeWanted, Page, Settings
from gmodiff.web.queue import Job
from gmodiff.web.workspace import KEPT_S, Limits, Upload, Workspace
from web_page import EXAMPLES, smaller


@pytest.fixture
def page(tmp_path):
    made = Page(Workspace(place=tmp_path), Models("none"), at_once=2)
    yield made
    made.close()


@pytest.fixture
def photos(page, tmp_path_factory) -> list[Upload]:
    return added(page, tmp_path_factory.mktemp("card"))


def added(page: Page, folder) -> list[Upload]:
    found = []
    for path in (smaller(p, folder) for p in EXAMPLES):
        copy = page.workspace.folder / f"upload-{path.name}"
        copy.write_bytes(path.read_bytes())
        found.append(page.workspace.add(copy, path.name))
    return found


def ended(job: Job) -> Job:
    for _ in range(6000):
        if job.state not in ("waiting", "running"):
            return job
        time.sleep(0.01)
    raise AssertionError(job)


def merged(page: Page, photos: list[Upload], **settings) -> Job:
    job = ended(page.merge(MergeWanted(photos=[p.id for p in photos], settings=Settings(**settings))))
    assert job.state == "done", job.error
    return job


def folders(page: Page) -> list[str]:
    return sorted(p.name for p in page.workspace.folder.iterdir() if p.is_dir())


class Held:
    """A function that, the first time, waits until the test lets it go on: before it begins, or when all is done."""

    def __init__(self, function, *, done: bool = False):
        self.function, self.done, self.reached, self.go_on = function, done, threading.Event(), threading.Event()

    def __call__(self, *args, **kwargs):
        first = not self.reached.is_set()
        result = self.function(*args, **kwargs) if self.done else None
        self.reached.set()
        if first:
            assert self.go_on.wait(30)
        return result if self.done else self.function(*args, **kwargs)


@pytest.mark.parametrize("place", ["read_bracket", "aligned", "merge", "finished"])
def test_a_merge_that_is_cancelled_anywhere_leaves_nothing(page, photos, monkeypatch, place):
    held = Held(getattr(merging, place))
    monkeypatch.setattr(merging, place, held)
    job = page.merge(MergeWanted(photos=[p.id for p in photos]))
    assert held.reached.wait(30)
    page.queue.cancel(job.id)
    held.go_on.set()
    assert ended(job).state == "cancelled"
    assert folders(page) == []
    assert page.pictures == {}


def test_a_merge_removed_in_its_last_moment_leaves_nothing(page, photos, monkeypatch):
    held = Held(page_module.render, done=True)
    monkeypatch.setattr(page_module, "render", held)
    job = page.merge(MergeWanted(photos=[p.id for p in photos]))
    assert held.reached.wait(30)
    page.forget(job.id)
    held.go_on.set()
    assert ended(job).state == "cancelled"
    assert folders(page) == []
    assert page.pictures == {}


@pytest.mark.parametrize("unheard", [False, True])
def test_a_merge_removed_while_it_is_rendered_again_leaves_nothing(page, photos, monkeypatch, unheard):
    job = merged(page, photos)
    held = Held(page_module.render, done=True)
    monkeypatch.setattr(page_module, "render", held)
    again = page.render(job.id, Settings(headroom=1.0))
    assert held.reached.wait(30)
    if unheard:
        monkeypatch.setattr(page, "_renders", lambda key: [])  # it is not cancelled, and finds out by itself
    page.forget(job.id)
    held.go_on.set()
    assert ended(again).state == "failed"
    assert again.error is not None
    assert "not here any more" in again.error
    assert page.pictures == {}
    assert folders(page) == []


def test_renditions_of_one_merge_are_made_one_after_another_and_of_two_at_once(page, photos, monkeypatch):
    job, other = merged(page, photos), merged(page, photos)
    original, at_once, most = page_module.render, [], []

    def rendered(found, *args):
        at_once.append(id(found))
        most.append(at_once.count(id(found)))
        time.sleep(0.1)
        picture = original(found, *args)
        at_once.remove(id(found))
        return picture

    monkeypatch.setattr(page_module, "render", rendered)
    jobs = [page.render(key, Settings(headroom=stops)) for key in (job.id, other.id) for stops in (1.0, 2.0)]
    assert [ended(j).state for j in jobs] == ["done"] * 4
    assert max(most) == 1


def test_who_waits_for_another_rendition_can_be_cancelled(page, photos, monkeypatch):
    job = merged(page, photos)
    held = Held(page_module.render)
    monkeypatch.setattr(page_module, "render", held)
    first = page.render(job.id, Settings(headroom=1.0))
    assert held.reached.wait(30)
    second = page.render(job.id, Settings(headroom=2.0))
    while second.state == "waiting":
        time.sleep(0.01)
    page.queue.cancel(second.id)
    assert ended(second).state == "cancelled"
    assert first.state == "running"
    held.go_on.set()
    assert ended(first).state == "done"


def test_photos_removed_while_their_merge_waits_are_merged_all_the_same(page, photos, monkeypatch):
    held = Held(merging.read_bracket)
    monkeypatch.setattr(merging, "read_bracket", held)
    job = page.merge(MergeWanted(photos=[p.id for p in photos]))
    assert held.reached.wait(30)
    for photo in photos:
        page.workspace.remove(photo.id)
    assert all(p.path.exists() for p in photos)
    held.go_on.set()
    assert ended(job).state == "done", job.error
    assert not any(p.path.exists() for p in photos)


def test_photos_of_a_merge_cancelled_before_it_began_go_too(page, photos):
    page.queue.close()
    page.queue._closed = False  # no thread takes a job: it waits until it is cancelled
    job = page.merge(MergeWanted(photos=[p.id for p in photos]))
    page.workspace.remove(photos[0].id)
    assert photos[0].path.exists()
    page.queue.cancel(job.id)
    assert not photos[0].path.exists()
    assert photos[1].path.exists()


def test_an_error_names_photos_that_were_removed_meanwhile(page, photos, monkeypatch):
    held = Held(merging.read_bracket)
    monkeypatch.setattr(merging, "read_bracket", held)
    photos[0].path.write_bytes(photos[0].path.read_bytes()[:2000])
    job = page.merge(MergeWanted(photos=[p.id for p in photos]))
    assert held.reached.wait(30)
    for photo in photos:
        page.workspace.remove(photo.id)
    held.go_on.set()
    assert ended(job).state == "failed"
    assert job.error is not None
    assert job.error.startswith(photos[0].name)
    assert "upload-" not in job.error


def test_room_is_asked_for_before_anything_is_made(tmp_path, tmp_path_factory):
    page = Page(Workspace(Limits(total_bytes=3_000_000), tmp_path), Models("none"))
    photos = added(page, tmp_path_factory.mktemp("card"))
    with pytest.raises(InputError, match="--max-total"):
        page.merge(MergeWanted(photos=[p.id for p in photos]))
    page.close()


def test_a_file_that_finds_no_room_is_refused(page, photos):
    job = merged(page, photos)
    assert job.picture is not None
    picture = page.picture(job.picture)
    pixels = picture.shape[0] * picture.shape[1]
    page.workspace.limits = Limits(total_bytes=page.workspace.used_bytes() + FILE_BYTES_PER_PIXEL * pixels - 1)
    with pytest.raises(InputError, match="--max-total"):
        page.written(picture.id, ".exr", quality=95, compact=False, strip=False)
    assert not list(picture.folder.glob("out*"))
    page.workspace.limits = Limits()
    page.written(picture.id, ".exr", quality=95, compact=False, strip=False).close()
    page.workspace.limits = Limits(total_bytes=1)
    page.written(picture.id, ".exr", quality=95, compact=False, strip=False).close()  # it is there already


def test_finished_renditions_are_told_until_the_next_is_asked_for(page, photos):
    job = merged(page, photos)
    first = ended(page.render(job.id, Settings(headroom=1.0)))
    assert first in page.queue.jobs()
    second = ended(page.render(job.id, Settings(headroom=2.0)))
    assert [j.id for j in page.queue.jobs()] == [job.id, second.id]
    page.forget(job.id)
    assert page.queue.jobs() == []


def test_what_nobody_looked_at_for_a_day_goes_and_what_somebody_looked_at_stays(page, photos):
    old, seen = merged(page, photos), merged(page, photos)
    assert seen.picture is not None
    now = time.time()
    page.picture(seen.picture).touched = now + KEPT_S
    page.remove_old(now + KEPT_S + 60)
    assert [j.id for j in page.queue.jobs()] == [seen.id]
    assert old.picture not in page.pictures
    assert len(folders(page)) == 1
    page.remove_old(now + 2 * KEPT_S + 60)
    assert folders(page) == []


def test_a_checked_file_lies_on_the_disk_and_goes_when_it_is_left_or_old(page, photos):
    job = merged(page, photos)
    assert job.picture is not None
    with page.written(job.picture, ".jpg", quality=90, compact=False, strip=False) as file:
        made = file.read()

    def checked() -> str:
        copy = page.workspace.folder / "copy.jpg"
        copy.write_bytes(made)
        picture = page.check(copy, "mine.jpg")
        assert isinstance(picture.image.radiance, np.memmap)
        return picture.id

    first, second = checked(), checked()
    page.forget_check(first)
    assert first not in page.pictures
    assert not (page.workspace.folder / first).exists()
    page.forget_check(job.picture)
    assert job.picture in page.pictures
    page.picture(job.picture).touched = page.picture(second).touched + KEPT_S
    page.remove_old(page.picture(second).touched + KEPT_S + 60)
    assert second not in page.pictures
    assert not (page.workspace.folder / second).exists()


def test_of_many_checked_files_those_nobody_looks_at_go(page, photos):
    job = merged(page, photos)
    assert job.picture is not None
    with page.written(job.picture, ".jpg", quality=90, compact=False, strip=False) as file:
        made = file.read()
    found = []
    for n in range(6):
        copy = page.workspace.folder / "copy.jpg"
        copy.write_bytes(made)
        found.append(page.check(copy, f"{n}.jpg").id)
        page.picture(found[0])  # somebody looks at the first all the while
    assert [f for f in found if f not in page.pictures] == [found[1]]


def test_a_photo_removed_just_before_its_merge_is_told_and_nothing_is_held(page, photos):
    page.workspace.remove(photos[0].id)
    with pytest.raises(InputError, match="this photo is not here any more"):
        page.merge(MergeWanted(photos=[p.id for p in photos]))
    with pytest.raises(InputError, match="16 photos"):
        page.merge(MergeWanted(photos=[photos[1].id]))
    page.workspace.remove(photos[1].id)
    assert not photos[1].path.exists()


def test_closing_twice_is_quick(page, photos):
    page.merge(MergeWanted(photos=[p.id for p in photos]))
    page.close()
    started = time.monotonic()
    page.close()
    assert not page.workspace.folder.exists()
    assert time.monotonic() - started < 5  # ten seconds a thread, were it to wait again
