"""Brackets among photos: found where they are certain, left over with a reason where not."""

import struct
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from gmodiff.errors import FileFormatError, InputError
from gmodiff.exif import read_exif
from gmodiff.grouping import Shot, group, read_shot
from photo_files import GOLDEN, dng_bytes, exif_bytes, jpeg_bytes, tiff_bytes

NOON = datetime(2026, 5, 1, 12)


def shot(name: str, at_s: float, stops: float, **facts) -> Shot:
    """A photo at f/8, ISO 100, so many stops above 1/100 s; its time begins at noon."""
    time = 0.01 * 2.0**stops
    plain = Shot(name, Path("card") / name, NOON + timedelta(seconds=at_s), time / 64, time, 100, 8.0, "Maker X", 35.0, 60, 40, bytes=1000)
    return replace(plain, **facts)


def burst(first: int, at_s: float, places=(0, -2, 2), centre: float = 0.0, step_s: float = 0.3, **facts) -> list[Shot]:
    """An automatic bracket whose places stand in the compensation tag."""
    return [
        shot(f"IMG_{first + i}.jpg", at_s + step_s * i, centre + p, bracketing=True, bias_stops=p, exposure_mode=2, **facts)
        for i, p in enumerate(places)
    ]


def names(plan) -> list[list[str]]:
    return [[s.name for s in g.shots] for g in plan.groups]


def left(plan) -> dict[str, str]:
    return {s.name: why for s, why in plan.leftovers}


def test_brackets_one_after_another_are_told_apart_by_their_repeating_places():
    plan = group([*burst(1, 0), *burst(4, 1, centre=0.4), *burst(7, 60, (0, -2, 2, -4, 4))])
    assert names(plan) == [[f"IMG_{n}.jpg" for n in run] for run in ((1, 2, 3), (4, 5, 6), (7, 8, 9, 10, 11))]
    assert not plan.leftovers
    assert "camera says it bracketed" in plan.groups[0].why


@pytest.mark.parametrize("places", [(0, -2, 2), (-2, 0, 2), (0, 2, -2), (0, -1, 1, -2, 2), (0, -3, -2, -1, 1, 2, 3), (-1, 1)])
def test_any_order_of_places(places):
    plan = group([*burst(1, 0, places), *burst(20, 2, places, centre=0.3)])
    assert [len(g.shots) for g in plan.groups] == [len(places)] * 2


def test_places_that_the_metadata_do_not_hold_are_told_from_exposures_although_metering_drifts():
    def plain(shots):
        return [replace(s, bias_stops=0.0) for s in shots]

    plan = group([*plain(burst(1, 0)), *plain(burst(4, 1.5, centre=0.33)), *plain(burst(7, 3, centre=-0.33))])
    assert [len(g.shots) for g in plan.groups] == [3, 3, 3]


def test_a_maker_s_place_counts_before_compensation_and_exposure():
    shots = [replace(s, bracket_stops=s.bias_stops, bias_stops=0.0) for s in [*burst(1, 0), *burst(4, 1, centre=0.5)]]
    assert [len(g.shots) for g in group(shots).groups] == [3, 3]


def test_a_lost_photo_shortens_its_own_bracket_and_spoils_no_other():
    shots = [*burst(1, 0), *burst(4, 10), *burst(7, 20)]
    plan = group(s for s in shots if s.name not in ("IMG_4.jpg",))
    assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"], ["IMG_5.jpg", "IMG_6.jpg"], ["IMG_7.jpg", "IMG_8.jpg", "IMG_9.jpg"]]
    assert "is one missing?" in plan.groups[1].why
    assert "missing" not in plan.groups[0].why


def test_what_is_left_of_a_bracket_joins_no_other_although_the_light_changed():
    """0 of one bracket, whose other photos are lost, and 0, -2, 2 of the next, metered a third of a stop brighter."""
    first, second = burst(1, 0)[:1], burst(4, 2, centre=0.33)
    plan = group([*first, *second])
    assert names(plan) == [["IMG_4.jpg", "IMG_5.jpg", "IMG_6.jpg"]]
    assert "no other photo of that bracket" in left(plan)["IMG_1.jpg"]


@pytest.mark.parametrize(
    "other", [{"camera": "Maker Y"}, {"focal_length_mm": 50.0}, {"width": 40, "height": 60}, {"raw": True}, {"bracketing": False}]
)
def test_photos_that_differ_in_what_a_bracket_shares_are_not_of_it(other):
    shots = burst(1, 0)
    plan = group([*shots[:2], replace(shots[2], **other)])
    assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg"]]
    assert list(left(plan)) == ["IMG_3.jpg"]


def test_two_cameras_beside_each_other_on_one_card():
    a, b = burst(1, 0), burst(101, 0.15, camera="Maker Y")
    mixed = [s for pair in zip(a, b, strict=True) for s in pair]
    assert names(group(mixed)) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"], ["IMG_101.jpg", "IMG_102.jpg", "IMG_103.jpg"]]


def test_metered_exposures_are_no_bracket():
    """Photos in automatic mode, some seconds apart, whose exposures follow what they show."""
    plan = group(shot(f"{n}.jpg", 2 * n, stops, exposure_mode=0, bias_stops=0.0) for n, stops in enumerate((0, 2, -2, 1, 3)))
    assert not plan.groups
    assert len(plan.leftovers) == 5


def test_compensation_by_hand_is_a_bracket_where_the_exposure_followed_it():
    biases = (0, -2, 2)
    same = [shot(f"{n}.jpg", 5 * n, b + 0.1 * n, exposure_mode=0, bias_stops=b) for n, b in enumerate(biases)]
    assert names(group(same)) == [["0.jpg", "1.jpg", "2.jpg"]]
    elsewhere = [same[0], shot("1.jpg", 5, 1.0, exposure_mode=0, bias_stops=-2), same[2]]
    assert not group(elsewhere).groups


def by_hand(stops, pause_s=8.0, **facts) -> list[Shot]:
    return [shot(f"{n}.jpg", pause_s * n, s, exposure_mode=1, bias_stops=0.0, **facts) for n, s in enumerate(stops)]


@pytest.mark.parametrize(
    ("stops", "groups"),
    [
        ((0, 1, 2, 3), [4]),
        ((0, -1, 1, -2, 2), [5]),
        ((0, 1, 2, 0, -1, -2), [6]),  # up, and from the start again down
        ((0, 1, 2, 0, 1, 2), [3, 3]),
        ((0, 1), []),  # two, seconds apart: may be chance
        ((0, 0.4, 0.8), []),  # little more than following the light
        ((0, 0, 0), []),
        ((0, 3, 1, 2), []),  # a chance order
    ],
)
def test_brackets_set_by_hand(stops, groups):
    assert [len(g.shots) for g in group(by_hand(stops)).groups] == groups


def test_a_burst_by_hand_may_have_any_order_and_a_long_pause_ends_it():
    assert [len(g.shots) for g in group(by_hand((0, 3, 1, 2), pause_s=1)).groups] == [4]
    assert not group(by_hand((0, 1, 2), pause_s=120)).groups


@pytest.mark.parametrize("other", [{"f_number": 11.0}, {"iso": 400, "exposure_time_s": 0.03}])
def test_by_hand_all_else_is_the_same(other):
    shots = by_hand((0, 1, 2))
    assert not group([*shots[:2], replace(shots[2], **other)]).groups


def test_long_exposures_leave_room_for_themselves_and_for_noise_removal():
    long = [shot(f"{n}.jpg", 150.0 * n, 12 + n, exposure_mode=1) for n in range(3)]  # 41 to 164 s
    assert [len(g.shots) for g in group(long).groups] == [3]


def test_more_photos_than_a_bracket_has_are_left_over():
    plan = group(by_hand([n / 2 for n in range(17)], pause_s=1))
    assert not plan.groups
    assert "at most 16" in plan.leftovers[0][1]


def test_without_times_or_exposures_nothing_is_guessed():
    shots = [replace(s, time=None) for s in burst(1, 0)] + [
        replace(s, exposure=None, exposure_time_s=None, bias_stops=None) for s in burst(5, 0)
    ]
    plan = group(shots)
    assert not plan.groups
    assert "no time" in left(plan)["IMG_1.jpg"]
    assert "no exposure" in left(plan)["IMG_5.jpg"]


def test_copies_and_the_camera_s_own_pictures_are_left_over():
    shots = burst(1, 0)
    copies = [replace(s, path=Path("backup") / s.name) for s in shots]
    plan = group([*shots, *copies, shots[0]])
    assert len(plan.groups) == 1
    assert len(plan.leftovers) == 3
    assert all("a copy of" in why for _, why in plan.leftovers)
    raws = [replace(s, name=s.name[:-3] + "NEF", path=s.path.with_suffix(".NEF"), raw=True, width=64) for s in shots]
    plan = group([*shots, *raws])
    assert names(plan) == [["IMG_1.NEF", "IMG_2.NEF", "IMG_3.NEF"]]
    assert "own picture of IMG_1.NEF" in left(plan)["IMG_1.jpg"]


def moved(shots, pattern: str) -> list[Shot]:
    """Copies of photos at pattern.format(stem)."""
    paths = [Path(pattern.format(s.path.stem)) for s in shots]
    return [replace(s, path=p, name=p.name) for s, p in zip(shots, paths, strict=True)]


@pytest.mark.parametrize("name", ["{} (1).jpg", "{} copy.jpg", "{} - Copy.jpg", "Copy of {}.jpg", "{}(1).jpg"])
@pytest.mark.parametrize("folder", ["card", "backup"])
def test_of_two_copies_the_one_with_the_camera_s_name_stays(name, folder):
    """Also where the copy comes first by its folder, and where it would join others: one photo, or the whole bracket."""
    shots = burst(1, 0)
    for copied in (shots[:1], shots):
        plan = group([*moved(copied, f"{folder}/{name}"), *shots])
        assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"]]
        assert len(plan.leftovers) == len(copied)
        assert f"a copy of {shots[0].path}" in [why for _, why in plan.leftovers]


def test_of_two_copies_the_one_beside_the_other_photos_of_its_time_stays():
    """best/a.jpg is a chosen photo under a shorter name, in a folder that comes first."""
    shots = burst(1, 0)
    plan = group([*moved(shots[:1], "best/a.jpg"), *moved(burst(90, 9000)[:1], "best/b.jpg"), *shots])
    assert [s.path for s in plan.groups[0].shots] == [s.path for s in shots]


def test_a_whole_card_and_its_backup_do_not_mix():
    shots = [*burst(1, 0), *burst(4, 60), *burst(7, 120)]
    plan = group([*shots, *moved(shots, "backup/{}.jpg")])
    assert {s.path.parent.name for g in plan.groups for s in g.shots} == {"backup"}
    assert [len(g.shots) for g in plan.groups] == [3, 3, 3]


@pytest.mark.parametrize("name", ["{} edit.jpg", "{}-edit.jpg", "{}_edit.jpg"])
def test_an_edited_version_is_one_whatever_sorts_before_a_point(name):
    shots = burst(1, 0)
    plan = group([*(replace(s, bytes=900) for s in moved(shots[:1], f"card/{name}")), *shots])
    assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"]]


# ---- fixed size and names -------------------------------------------------------------------------------------------------


def bare(count: int) -> list[Shot]:
    return [Shot(f"p{n}.jpg", Path("card") / f"p{n}.jpg", width=60, height=40) for n in range(count)]


def test_a_fixed_size_cuts_photos_without_metadata_in_order_of_their_names():
    assert names(group(bare(12), frames=6)) == [[f"p{n}.jpg" for n in range(6)], [f"p{n}.jpg" for n in range(6, 12)]]


def test_a_fixed_size_that_does_not_divide_is_not_cut_at_random():
    plan = group(bare(7), frames=3)
    assert not plan.groups
    assert len(plan.leftovers) == 7
    assert "no multiple of 3" in plan.leftovers[0][1]


def test_a_fixed_size_steps_over_what_is_too_much():
    """A single before the second bracket, and a bracket that lost its last photo."""
    single = shot("IMG_0.jpg", 100, 0, bracketing=False)
    shots = [*burst(1, 0), single, *burst(4, 101), *burst(7, 300)[:2]]
    plan = group(shots, frames=3)
    assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"], ["IMG_4.jpg", "IMG_5.jpg", "IMG_6.jpg"]]
    assert set(left(plan)) == {"IMG_0.jpg", "IMG_7.jpg", "IMG_8.jpg"}


def test_names():
    shots = [
        Shot(n, Path("card") / n, width=60, height=40)
        for n in ("hill_1.jpg", "hill_2.jpg", "sea_1.jpg", "sea_2.jpg", "moon_1.jpg", "x.jpg")
    ]
    for pattern in ("{set}_?.jpg", r"(.*)_\d", r"(?P<set>[a-z]+)_([0-9])\.jpg"):
        plan = group(shots, pattern=pattern)
        assert names(plan) == [["hill_1.jpg", "hill_2.jpg"], ["sea_1.jpg", "sea_2.jpg"]]
        assert "only photo called 'moon'" in left(plan)["moon_1.jpg"]
        assert "does not match" in left(plan)["x.jpg"]


@pytest.mark.parametrize("other", [{"width": 80}, {"camera": "Maker Y"}])
def test_names_alone_do_not_join_what_cannot_belong_together(other):
    shots = [Shot(n, Path("card") / n, width=60, height=40) for n in ("a_1.jpg", "a_2.jpg")]
    assert not group([shots[0], replace(shots[1], **other)], pattern="{set}_?.jpg").groups


@pytest.mark.parametrize(
    "options", [{"frames": 1}, {"frames": 17}, {"pattern": "("}, {"pattern": "abc"}, {"pattern": "(a)(b)"}, {"frames": 3, "pattern": "(a)"}]
)
def test_what_cannot_be_asked_for(options):
    with pytest.raises(InputError, match=r"frames|pattern"):
        group(bare(3), **options)


# ---- files ----------------------------------------------------------------------------------------------------------------

GREY = np.full((40, 60, 3), 90, np.uint8)


def test_a_jpeg_tells_everything(tmp_path):
    path = tmp_path / "a.jpg"
    extra = {"t0x9291": (2, "25"), "t0xA402": (3, [2]), "t0x9204": (10, [(-2, 1)]), "t0x920A": (5, [(35, 1)]), "t0xA431": (2, "123")}
    path.write_bytes(jpeg_bytes(GREY, exif_bytes((1, 400), orientation=6, **extra)))
    found = read_shot(path)
    assert found.time == datetime(2026, 5, 1, 12, 0, 0, 250000)
    assert (found.width, found.height) == (40, 60)  # turned
    assert (found.camera, found.focal_length_mm, found.bias_stops, found.bracketing) == ("Maker Model 7 123", 35, -2, True)
    assert found.exposure == pytest.approx(1 / 400 * 2 / 2.8**2)
    assert found.bytes == path.stat().st_size
    assert not found.raw


def test_every_format_tells_its_size_without_being_decoded(tmp_path, monkeypatch):
    from PIL import Image

    def never(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("cv2.imdecode", never)
    monkeypatch.setattr("gmodiff.photo.decode_raw", never)
    exif = b"Exif\0\0" + exif_bytes()
    for name in ("a.png", "a.webp", "a.avif", "a.tif"):
        Image.fromarray(GREY).save(tmp_path / name, **({} if name.endswith("tif") else {"exif": exif}))
        found = read_shot(tmp_path / name)
        assert (found.width, found.height) == (60, 40), name
        assert (found.iso == 200) == (name != "a.tif")
    heic = read_shot(GOLDEN / "rotated.heic")
    assert (heic.width, heic.height, heic.iso) == (48, 64, 200)
    (tmp_path / "a.dng").write_bytes(dng_bytes(np.full((40, 60, 3), 0.2)))
    raw = read_shot(tmp_path / "a.dng")
    assert (raw.raw, raw.width, raw.height, raw.exposure_time_s) == (True, 60, 40, 0.01)


def test_raw_of_other_makers(tmp_path):
    """The containers alone: marks, boxes and offsets as the makers write them."""
    exif = exif_bytes()
    (tmp_path / "a.orf").write_bytes(b"IIRO" + exif[4:])
    (tmp_path / "a.rw2").write_bytes(b"IIU\0" + exif[4:])
    jpeg = jpeg_bytes(GREY, exif)
    (tmp_path / "a.raf").write_bytes((b"FUJIFILMCCD-RAW ".ljust(84, b"\0") + struct.pack(">II", 100, len(jpeg))).ljust(100, b"\0") + jpeg)
    cmt1 = tiff_bytes([{0x010F: (2, "Canon"), 0x0110: (2, "Canon EOS R5")}])
    cmt2 = tiff_bytes([{0x829A: (5, [(1, 50)]), 0x9003: (2, "2026:05:01 12:00:00")}])
    boxes = b"".join(struct.pack(">I", len(b) + 8) + kind + b for kind, b in ((b"CMT1", cmt1), (b"CMT2", cmt2)))
    (tmp_path / "a.cr3").write_bytes(struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom" + boxes)
    for name in ("a.orf", "a.rw2", "a.raf"):
        found = read_shot(tmp_path / name)
        assert (found.raw, found.iso, found.exposure_time_s) == (True, 200, 0.01), name
    cr3 = read_shot(tmp_path / "a.cr3")
    assert (cr3.camera, cr3.exposure_time_s, cr3.time) == ("Canon EOS R5", 0.02, NOON)


def maker_exif(make: str, note: bytes, order: str = "<") -> bytes:
    """An EXIF block with a maker note; offsets in the note that count from the block are not known yet: see where_note_is."""
    return tiff_bytes([{0x010F: (2, make), 0x8769: (4, [0])}, {0x927C: (7, list(note)), 0x9003: (2, "2026:05:01 12:00:00")}], order)


def directory(entries: dict[int, tuple[int, int, bytes]], order: str = "<") -> bytes:
    """Maker directory whose values stand in the entries: tag to (type, count, four bytes)."""
    body = b"".join(struct.pack(order + "HHI", tag, kind, n) + value for tag, (kind, n, value) in sorted(entries.items()))
    return struct.pack(order + "H", len(entries)) + body + b"\0" * 4


@pytest.mark.parametrize(("code", "stops"), [(0, 0), (64, 2), (65536 - 64, -2), (44, 4 / 3), (65536 - 20, -2 / 3)])
def test_canon_says_the_place(code, stops):
    values = struct.pack("<18H", *([0] * 17), code)
    plain = maker_exif("Canon", directory({0x0004: (3, 18, b"\0" * 4)}) + values)
    at = plain.find(struct.pack("<HHI", 0x0004, 3, 18))  # the entry, in the block
    block = plain[: at + 8] + struct.pack("<I", plain.find(values, at)) + plain[at + 12 :]
    assert read_exif(block).bracket_stops == pytest.approx(stops)


def test_nikon_says_the_place():
    own = tiff_bytes([{0x0019: (10, [(-4, 3)])}], ">")
    assert read_exif(maker_exif("NIKON CORPORATION", b"Nikon\0\x02\x10\0\0" + own)).bracket_stops == pytest.approx(-4 / 3)


@pytest.mark.parametrize(("value", "expected"), [(1, True), (0, False)])
def test_fujifilm_and_panasonic_say_that_they_bracket(value, expected):
    entries = {0x1100: (3, 1, struct.pack("<HH", value, 0))}
    assert read_exif(maker_exif("FUJIFILM", b"FUJIFILM" + struct.pack("<I", 12) + directory(entries))).bracketing is expected
    entries = {0x0045: (3, 1, struct.pack("<HH", value, 0))}
    assert read_exif(maker_exif("Panasonic", b"Panasonic\0\0\0" + directory(entries))).bracketing is expected


def test_what_is_no_photo_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("lens cleaned")
    (tmp_path / "half.jpg").write_bytes(jpeg_bytes(GREY)[:100])
    for name in ("notes.txt", "half.jpg"):
        with pytest.raises(FileFormatError, match=name):
            read_shot(tmp_path / name)


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "    :  :     :  :  ", "", "2026:02:31 10:00:00"])
def test_a_clock_that_was_never_set_is_no_time(tmp_path, text):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_bytes(GREY, exif_bytes(t0x9003=(2, text))))
    assert read_shot(path).time is None


@pytest.mark.parametrize("cut", range(60, 400, 17))
def test_a_damaged_maker_note_is_no_error(cut):
    values = struct.pack("<18H", *([0] * 17), 64)
    block = maker_exif("Canon", directory({0x0004: (3, 18, b"\xff\xff\xff\x7f")}) + values)
    read_exif(block[:cut])


def test_an_edited_version_beside_its_original_spoils_no_bracket():
    shots = burst(1, 0)
    edited = [replace(s, name=f"{s.path.stem}_edit.jpg", path=s.path.with_name(f"{s.path.stem}_edit.jpg"), bytes=900) for s in shots]
    plan = group([*shots, *edited])
    assert names(plan) == [["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"]]
    assert "another version of IMG_2.jpg" in left(plan)["IMG_2_edit.jpg"]
