"""What is on a card: folders that cannot be read, loops of links, thousands of files, results of earlier runs."""

import os
from pathlib import Path

import pytest

from cards import write_set
from gmodiff.batch.card import read_card, read_list
from gmodiff.batch.missing import missed_by
from gmodiff.errors import InputError


def found(card) -> list[str]:
    return sorted(s.name for s in card.shots)


def test_loops_of_links_end_and_every_file_counts_once(tmp_path):
    write_set(tmp_path / "a" / "b", 1)
    os.symlink(tmp_path / "a", tmp_path / "a" / "b" / "up")
    os.symlink(tmp_path / "a" / "b", tmp_path / "second")
    os.symlink("self", tmp_path / "a" / "self")
    os.symlink("nowhere", tmp_path / "a" / "broken")
    os.link(tmp_path / "a" / "b" / "IMG_0001.jpg", tmp_path / "a" / "hard.jpg")
    card = read_card([str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b" / "IMG_0002.jpg")])
    assert len(card.shots) == 3
    assert sorted(Path(p).name for p, _ in card.others) == ["broken", "self"]


def test_a_folder_below_that_cannot_be_read_is_told_and_the_rest_is_there(tmp_path, monkeypatch):
    write_set(tmp_path / "good", 1)
    (tmp_path / "locked").mkdir()
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    card = read_card([str(tmp_path)])
    assert len(card.shots) == 3
    assert [(Path(p).name, why) for p, why in card.others] == [("locked", "cannot be read: Permission denied")]
    with pytest.raises(InputError, match="locked cannot be read: Permission denied"):
        read_card([str(tmp_path / "locked")])


def test_thousands_of_files_that_are_no_photos(tmp_path):
    write_set(tmp_path, 1)
    for n in range(3000):
        (tmp_path / f"{n}.txt").write_bytes(b"x")
    told = []
    card = read_card([str(tmp_path)], progress=lambda done, total: told.append((done, total)))
    assert len(card.shots) == 3
    assert len(card.others) == 3000
    assert told[-1] == (3003, 3003)


def test_what_systems_keep_for_themselves_and_the_folder_of_results_are_not_looked_into(tmp_path):
    write_set(tmp_path / "card", 1)
    write_set(tmp_path / "card" / ".Trashes", 4)
    write_set(tmp_path / "card" / "out", 7)
    (tmp_path / "card" / "._IMG_0001.jpg").write_bytes(b"\0\5\x16\7")
    card = read_card([str(tmp_path / "card")], skip=[str(tmp_path / "card" / "out")])
    assert found(card) == ["IMG_0001.jpg", "IMG_0002.jpg", "IMG_0003.jpg"]
    assert not card.others
    assert card.hidden == 2


def test_the_program_s_own_folder_is_not_counted_as_hidden(tmp_path):
    write_set(tmp_path, 1)
    (tmp_path / ".gmodiff-batch").mkdir()
    assert read_card([str(tmp_path)]).hidden == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("IMG_9.jpg", True), ("IMG_9.JPG", True), ("a.dng", True), ("a.CR3", True), ("a.txt", False), ("a.mp4", False), ("jpg", False)],
)
def test_a_file_that_is_named_like_a_photo_and_is_none_is_told_apart(tmp_path, name, expected):
    (tmp_path / name).write_bytes(b"junk" * 100)
    card = read_card([str(tmp_path)])
    assert card.unreadable == ([str(tmp_path / name)] if expected else [])
    assert [place for place, _ in card.others] == [str(tmp_path / name)]


def test_links_that_lead_nowhere_are_unreadable_photos_and_own_results_are_not(tmp_path):
    import gmodiff

    os.symlink("nowhere", tmp_path / "IMG_9.jpg")
    gmodiff.write(gmodiff.reconstruct(gmodiff.read_bracket(write_set(tmp_path, 1))), tmp_path / "IMG_0001_hdr.jpg")
    assert read_card([str(tmp_path)]).unreadable == [str(tmp_path / "IMG_9.jpg")]


def paths(*numbers: int, suffix: str = ".jpg", folder: str = "card") -> tuple[str, ...]:
    return tuple(f"{folder}/IMG_{n}{suffix}" for n in numbers)


@pytest.mark.parametrize(
    ("sets", "unreadable", "expected"),
    [
        ([paths(1, 3), paths(4, 5, 6)], paths(2), {0: paths(2)}),  # between
        ([paths(1, 2), paths(4, 5, 6)], paths(3), {0: paths(3)}),  # next to two: the shorter one
        ([paths(1, 2, 3), paths(5, 6)], paths(4), {1: paths(4)}),
        ([paths(1, 2, 3), paths(5, 6, 7)], paths(4), {0: paths(4), 1: paths(4)}),
        ([paths(1, 2)], paths(3), {0: paths(3)}),
        ([paths(2, 3, 4)], paths(1), {0: paths(1)}),
        ([paths(9, 11)], paths(10), {0: paths(10)}),  # in natural order
        ([paths(1, 4)], paths(2, 3), {0: paths(2, 3)}),
        ([paths(1, 2), paths(5, 6)], paths(3, 4), {0: paths(3, 4), 1: paths(3, 4)}),
        ([paths(1, 2, 3)], paths(500), {}),  # far from it
        ([paths(1, 3)], paths(2, folder="other"), {}),
        ([paths(1, 3, suffix=".NEF")], paths(2, suffix=".nef"), {0: paths(2, suffix=".nef")}),
        ([paths(1, 3, suffix=".NEF")], paths(2), {}),  # its RAW file is what the set is of
        ([("s3://b/c/x_1.jpg", "s3://b/c/x_3.jpg")], ["s3://b/c/x_2.jpg"], {0: ("s3://b/c/x_2.jpg",)}),
        ([("card/dark.jpg", "card/middle.jpg")], ["card/light.jpg"], {0: ("card/light.jpg",)}),
    ],
)
def test_unreadable_files_and_the_sets_that_seem_to_miss_them(sets, unreadable, expected):
    assert {k: tuple(v) for k, v in missed_by(sets, unreadable).items()} == expected


def test_a_merged_picture_on_the_card_is_no_photo(tmp_path):
    import gmodiff

    paths = write_set(tmp_path, 1)
    gmodiff.write(gmodiff.reconstruct(gmodiff.read_bracket(paths)), tmp_path / "IMG_0001_hdr.jpg")
    card = read_card([str(tmp_path)])
    assert len(card.shots) == 3
    assert "made by gmodiff" in card.others[0][1]


def test_a_file_whose_name_is_no_text(tmp_path):
    paths = write_set(tmp_path, 1)
    odd = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    try:
        os.rename(paths[0], odd)
    except OSError:
        pytest.skip("this disk has no such names")
    assert len(read_card([str(tmp_path)]).shots) == 3


def test_lists(tmp_path):
    (tmp_path / "l.txt").write_text("\ufeff# night\n a.jpg \n\ns3://b/c.jpg\n", encoding="utf-8")
    assert read_list(str(tmp_path / "l.txt")) == ["a.jpg", "s3://b/c.jpg"]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\0\xd8")
    with pytest.raises(InputError, match="not a text file"):
        read_list(str(tmp_path / "b.txt"))
