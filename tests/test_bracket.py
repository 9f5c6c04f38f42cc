"""Reading brackets: exposures in order of trust, order of frames, reference, response files, and one line for what is no bracket."""

from __future__ import annotations

import json
import math
import sys
import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmodiff.bracket import read_bracket
from gmodiff.errors import FileFormatError, InputError, OutputError
from gmodiff.icc import profile_bytes
from gmodiff.image import Calibration, Frame
from gmodiff.radiometry import DISPLAY_P3, SRGB, CameraResponse, srgb_encode
from gmodiff.response_file import load_response_file, save_response_file
from photo_files import NEUTRAL, dng_bytes, exif_bytes, jpeg_bytes

BRACKETS = Path(__file__).parents[2] / "shared" / "data" / "brackets"
CURVES = Path(__file__).parents[2] / "shared" / "data" / "responses" / "curves.json"


def scene(height: int = 60, width: int = 80) -> np.ndarray:
    """(H, W, 3) radiance over 11 stops, with texture."""
    y, x = np.mgrid[0:height, 0:width]
    light = 2.0 ** (11 * x / (width - 1) - 8) * (1 + 0.2 * np.sin(y / 3) * np.cos(x / 2))
    return light[..., None] * np.array([1.0, 0.9, 0.8])


def pixels(stops: float, radiance: np.ndarray | None = None) -> np.ndarray:
    light = scene() if radiance is None else radiance
    return np.rint(255 * srgb_encode(np.clip(light * 2.0**stops, 0, 1))).astype(np.uint8)


def shoot(folder: Path, shots: dict[str, tuple[float, bytes | None]], radiance: np.ndarray | None = None) -> list[Path]:
    """A JPEG per name of (stops, EXIF block)."""
    paths = []
    for name, (stops, exif) in shots.items():
        paths.append(folder / name)
        paths[-1].write_bytes(jpeg_bytes(pixels(stops, radiance), exif))
    return paths


TIMES = {"a.jpg": (0.0, exif_bytes((1, 100))), "b.jpg": (-2.0, exif_bytes((1, 400))), "c.jpg": (2.0, exif_bytes((1, 25)))}
"""Not in the order of exposure, as cameras number them."""

PLAIN = {name: (stops, None) for name, (stops, _) in TIMES.items()}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A calibration that believes what it is told, one call per entry; unknown exposures come out four times apart."""
    made: list[dict[str, Any]] = []

    def calibrate(frames: tuple[Frame, ...], **options: Any) -> tuple[tuple[float, ...], CameraResponse, Calibration]:
        made.append({"frames": frames, **options})
        known = [f.exposure for f in frames] if options["exposures_known"] else [4.0**i for i in range(len(frames))]
        response = options["response"] or CameraResponse.named("srgb")
        return tuple(known), response, Calibration(options["exposure_source"], notes=("calibrated",))

    module = types.ModuleType("gmodiff.calibrate")
    module.calibrate = calibrate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gmodiff.calibrate", module)
    return made


def names(bracket: Any) -> list[str]:
    return [f.name for f in bracket.frames]


def relative(bracket: Any) -> list[float]:
    return [round(math.log2(f.exposure / bracket.frames[0].exposure), 4) for f in bracket.frames]


# ---- exposures ------------------------------------------------------------------------------------------------------------


def test_exif_orders_and_times_the_frames(tmp_path: Path, calls: list) -> None:
    bracket = read_bracket(shoot(tmp_path, TIMES))
    assert names(bracket) == ["b.jpg", "a.jpg", "c.jpg"]
    assert relative(bracket) == [0, 2, 4]
    assert bracket.frames[1].exposure == pytest.approx(0.01 * 2 / 2.8**2)
    assert bracket.calibration.exposure_source == "exif"
    assert bracket.calibration.notes == ("calibrated",)
    assert bracket.frames[bracket.reference].name == "a.jpg"
    assert bracket.frames[0].exif is not None
    assert calls[0]["exposures_known"]
    assert calls[0]["transfer"] == "srgb"
    assert not calls[0]["linear"]


def test_user_is_trusted_before_exif(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, TIMES)
    for given_as in ({"exposures": [4, 1, 16]}, {"ev": [0, -2, 2]}):
        bracket = read_bracket(paths, **given_as)
        assert names(bracket) == ["b.jpg", "a.jpg", "c.jpg"]
        assert relative(bracket) == [0, 2, 4]
        assert bracket.calibration.exposure_source == "given"
    # A higher EV is a brighter photo: the opposite sign turns the order round.
    assert names(read_bracket(paths, ev=[0, 2, -2])) == ["c.jpg", "a.jpg", "b.jpg"]


def test_exposure_txt_beside_photos_without_exif(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, {"img_10.jpg": (2.0, None), "img_9.jpg": (0.0, None), "img_8.jpg": (-2.5, None)})
    (tmp_path / "exposure.txt").write_text("-2.5\n0\n2\n")
    bracket = read_bracket(paths)
    assert names(bracket) == ["img_8.jpg", "img_9.jpg", "img_10.jpg"]
    assert relative(bracket) == [0, 2.5, 4.5]
    assert bracket.calibration.exposure_source == "exposure.txt"
    # EXIF is trusted before it.
    assert read_bracket(shoot(tmp_path, TIMES)).calibration.exposure_source == "exif"


def test_exposure_txt_that_does_not_fit_is_noted_and_a_malformed_one_refused(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, PLAIN)
    (tmp_path / "exposure.txt").write_text("0 2")
    bracket = read_bracket(paths)
    assert bracket.calibration.exposure_source == "estimated"
    assert any("2 exposures for 3 photos" in note for note in bracket.calibration.notes)
    for text in ("0\nbright\n2", "0\nnan\n2", "0\n1e9\n2"):
        (tmp_path / "exposure.txt").write_text(text)
        with pytest.raises(FileFormatError, match=r"exposure\.txt"):
            read_bracket(paths)


def test_without_any_exposure_brightness_gives_the_order(tmp_path: Path, calls: list) -> None:
    bracket = read_bracket(shoot(tmp_path, PLAIN))
    assert names(bracket) == ["b.jpg", "a.jpg", "c.jpg"]
    assert bracket.calibration.exposure_source == "estimated"
    assert not calls[0]["exposures_known"]
    assert all(math.isnan(f.exposure) for f in calls[0]["frames"])


def test_one_photo_without_time_makes_all_unknown(tmp_path: Path, calls: list) -> None:
    bracket = read_bracket(shoot(tmp_path, {**TIMES, "d.jpg": (1.0, exif_bytes((0, 1)))}))
    assert bracket.calibration.exposure_source == "estimated"
    assert any("exposure time 0" in note and "d.jpg" in note for note in bracket.calibration.notes)
    assert any("no usable exposure time in d.jpg" in note for note in bracket.calibration.notes)


def test_missing_aperture_and_iso(tmp_path: Path, calls: list) -> None:
    bare = {"a.jpg": (0.0, exif_bytes((1, 100), None, None)), "b.jpg": (2.0, exif_bytes((1, 25), None, None))}
    bracket = read_bracket(shoot(tmp_path, bare))
    assert (relative(bracket), bracket.calibration.exposure_source) == ([0, 2], "exif")
    assert bracket.calibration.notes == ("calibrated",)
    some = {"a.jpg": (0.0, exif_bytes((1, 100), f_number=(8, 1))), "b.jpg": (2.0, exif_bytes((1, 25), f_number=(0, 1)))}
    bracket = read_bracket(shoot(tmp_path, some))
    assert relative(bracket) == [0, 2]
    assert any("f/8 is assumed" in note for note in bracket.calibration.notes)
    some = {"a.jpg": (0.0, exif_bytes((1, 100), 200)), "b.jpg": (2.0, exif_bytes((1, 25), None))}
    assert read_bracket(shoot(tmp_path, some)).calibration.exposure_source == "estimated"


def test_iso_and_aperture_count(tmp_path: Path, calls: list) -> None:
    shots = {
        "a.jpg": (0.0, exif_bytes((1, 100), 100, (8, 1))),
        "b.jpg": (2.0, exif_bytes((1, 100), 400, (8, 1))),
        "c.jpg": (4.0, exif_bytes((1, 100), 400, (4, 1))),
    }
    assert relative(read_bracket(shoot(tmp_path, shots))) == [0, 2, 4]


def test_two_frames_of_one_exposure_among_others_are_kept(tmp_path: Path, calls: list) -> None:
    noisy = scene() * (1 + 0.05 * np.random.default_rng(0).standard_normal((60, 80, 3)))
    paths = shoot(tmp_path, TIMES)
    paths += shoot(tmp_path, {"d.jpg": (0.0, exif_bytes((1, 100)))}, noisy)
    bracket = read_bracket(paths)
    assert len(bracket.frames) == 4
    assert relative(bracket) == [0, 2, 2, 4]


def test_identical_metadata_of_different_photos_is_not_believed(tmp_path: Path, calls: list) -> None:
    same = exif_bytes((1, 100))
    paths = shoot(tmp_path, {name: (stops, same) for name, (stops, _) in TIMES.items()})
    bracket = read_bracket(paths)
    assert bracket.calibration.exposure_source == "estimated"
    assert names(bracket) == ["b.jpg", "a.jpg", "c.jpg"]
    assert any("1/100 s, ISO 200, f/2.8" in note for note in bracket.calibration.notes)
    (tmp_path / "exposure.txt").write_text("0\n-2\n2\n")
    assert read_bracket(paths).calibration.exposure_source == "exposure.txt"


def test_pixels_may_overrule_and_the_frames_are_sorted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list) -> None:
    module = sys.modules["gmodiff.calibrate"]
    monkeypatch.setattr(module, "calibrate", lambda f, **o: ((5.0, 1.0, 9.0), CameraResponse.named("srgb"), Calibration("estimated")))
    bracket = read_bracket(shoot(tmp_path, TIMES), reference="b.jpg")
    assert names(bracket) == ["a.jpg", "b.jpg", "c.jpg"]
    assert [f.exposure for f in bracket.frames] == [1, 5, 9]
    assert bracket.frames[bracket.reference].name == "b.jpg"
    assert bracket.calibration.exposure_source == "estimated"


# ---- reference, response, kinds of frames ---------------------------------------------------------------------------------


def test_reference_can_be_chosen(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, TIMES)
    for chosen, name in ((2, "c.jpg"), (0, "a.jpg"), ("b.jpg", "b.jpg"), ("3", "c.jpg"), (str(paths[1]), "b.jpg")):
        bracket = read_bracket(paths, reference=chosen)
        assert bracket.frames[bracket.reference].name == name
    for chosen in (3, -1, "4", "0", "d.jpg", ""):
        with pytest.raises(InputError, match="reference"):
            read_bracket(paths, reference=chosen)


def test_reference_is_the_frame_with_most_well_exposed_pixels(tmp_path: Path, calls: list) -> None:
    bright = np.full((60, 80, 3), 0.8) * (1 + 0.1 * np.sin(np.arange(80) / 3))[None, :, None]
    bracket = read_bracket(shoot(tmp_path, TIMES, bright))
    assert bracket.frames[bracket.reference].name == "a.jpg"
    bracket = read_bracket(shoot(tmp_path, TIMES, bright * 2.5))
    assert bracket.frames[bracket.reference].name == "b.jpg"
    # All as good: the middle one, not the first or the last.
    bracket = read_bracket(shoot(tmp_path, TIMES, bright * 0.25))
    assert bracket.frames[bracket.reference].name == "a.jpg"


def test_response_argument(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, TIMES)
    kept = tmp_path / "camera.json"
    save_response_file(CameraResponse.named("gamma1.9"), kept)
    for argument in ("srgb", "linear", "gamma2.2", str(kept)):
        assert read_bracket(paths, response=argument).response.name in (argument, kept.name)
        assert calls[-1]["response"] is not None
        assert not calls[-1]["force_estimate"]
    read_bracket(paths)
    assert calls[-1]["response"] is None
    assert not calls[-1]["force_estimate"]
    read_bracket(paths, response="estimate")
    assert calls[-1]["response"] is None
    assert calls[-1]["force_estimate"]
    for argument in ("gamma", "gammax", "gamma99", "sRGB2", "", "missing.json"):
        with pytest.raises(InputError):
            read_bracket(paths, response=argument)


def test_colour_space_is_the_files(tmp_path: Path, calls: list) -> None:
    icc = profile_bytes(DISPLAY_P3)
    for i, stops in enumerate((0, 2)):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg_bytes(pixels(stops), exif_bytes((1, 100 >> stops)), icc))
    assert read_bracket([tmp_path / "0.jpg", tmp_path / "1.jpg"]).colour is DISPLAY_P3
    (tmp_path / "1.jpg").write_bytes(jpeg_bytes(pixels(2), exif_bytes((1, 25)), profile_bytes(SRGB)))
    with pytest.raises(InputError, match=r"1\.jpg is in srgb but 0\.jpg is in display-p3"):
        read_bracket([tmp_path / "0.jpg", tmp_path / "1.jpg"])


def test_raw_bracket_is_linear_with_one_development(tmp_path: Path, calls: list) -> None:
    pytest.importorskip("rawpy")
    light = scene(64, 64) * NEUTRAL
    for i, stops in enumerate((-2, 0, 2)):
        neutral = NEUTRAL if i == 0 else (0.6, 1.0, 0.5)
        (tmp_path / f"{i}.dng").write_bytes(dng_bytes(light * 2.0**stops, time=(4**i, 1600), neutral=neutral))
    bracket = read_bracket(sorted(tmp_path.glob("*.dng")))
    assert calls[0]["linear"]
    assert bracket.colour.transfer == "linear"
    assert relative(bracket) == [0, 2, 4]
    a, b = (f.encoded[8:-8, 8:-8].astype(float) for f in bracket.frames[:2])
    valid = (a > 1000) & (b < 64000)
    stops = np.log2(np.maximum(b, 1) / np.maximum(a, 1))
    assert [np.median(stops[..., c][valid[..., c]]) for c in range(3)] == pytest.approx([2, 2, 2], abs=0.01)
    assert bracket.frames[0].noise.encoded < 1e-4


def test_noise_follows_the_format(tmp_path: Path, calls: list) -> None:
    jpeg = read_bracket(shoot(tmp_path, TIMES)).frames[0].noise
    paths = []
    for name, (stops, _) in TIMES.items():
        paths.append(tmp_path / name.replace("jpg", "png"))
        Image.fromarray(pixels(stops)).save(paths[-1])
    assert read_bracket(paths).frames[0].noise.encoded < jpeg.encoded


def test_frames_of_one_name_in_two_folders(tmp_path: Path, calls: list) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    paths = shoot(tmp_path / "x", {"a.jpg": TIMES["a.jpg"]}) + shoot(tmp_path / "y", {"a.jpg": TIMES["b.jpg"]})
    bracket = read_bracket(paths)
    assert len(set(names(bracket))) == 2


def test_progress_runs_from_0_to_1(tmp_path: Path, calls: list) -> None:
    seen: list[tuple[str, float]] = []
    read_bracket(shoot(tmp_path, TIMES), progress=lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [f for stage, f in seen if stage == "read"]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


# ---- bad input ------------------------------------------------------------------------------------------------------------


def refusal(paths: list[Path], **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_bracket(paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_two_black_frames_are_not_twins(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, {"a.jpg": (-30.0, None), "b.jpg": (-32.0, None), "c.jpg": (0.0, None)})
    assert len(read_bracket(paths, ev=[-30, -32, 0]).frames) == 3


def test_what_is_no_bracket_is_refused_with_one_line(tmp_path: Path, calls: list) -> None:
    a, b, _ = paths = shoot(tmp_path, TIMES)
    assert "2 to 16 photos, got 1" in refusal([a])
    assert "2 to 16 photos, got 0" in refusal([])
    assert "got 17" in refusal([a] * 17)
    assert "same file" in refusal([a, b, a])
    (tmp_path / "link.jpg").symlink_to(a)
    assert "same file" in refusal([a, tmp_path / "link.jpg"])
    (tmp_path / "copy.jpg").write_bytes(a.read_bytes())
    line = refusal([a, b, tmp_path / "copy.jpg"])
    assert "same pixels" in line
    assert "a.jpg" in line
    assert "copy.jpg" in line
    assert "give one" in refusal(paths, ev=[0, 1, 2], exposures=[1, 2, 4])
    assert "ev 0, 1: 2 numbers for 3 photos" in refusal(paths, ev=[0, 1])
    assert "all the same" in refusal(paths, ev=[1, 1, 1])
    for bad in ([1, 2, 0], [1, 2, -1], [1, 2, math.nan], [1, 2, math.inf]):
        assert "positive" in refusal(paths, exposures=bad)
    for bad in ([0, 1, math.nan], [0, 1, 1000]):
        assert "stops" in refusal(paths, ev=bad)
    assert "missing.jpg" in refusal([a, tmp_path / "missing.jpg"])
    assert "--max-pixels" in refusal(paths, max_pixels=100)
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "empty.jpg is empty" in refusal([a, b, tmp_path / "empty.jpg"])
    assert not calls


def test_two_photos_of_one_exposure_are_refused(tmp_path: Path, calls: list) -> None:
    noisy = scene() * (1 + 0.05 * np.random.default_rng(0).standard_normal((60, 80, 3)))
    for exif, reason in ((exif_bytes((1, 100)), "1/100 s"), (None, "equally bright")):
        paths = shoot(tmp_path, {"a.jpg": (0.0, exif)}) + shoot(tmp_path, {"b.jpg": (0.0, exif)}, noisy)
        line = refusal(paths)
        assert reason in line
        assert "a.jpg and b.jpg" in line


def test_frames_of_different_sizes_and_kinds_are_refused(tmp_path: Path, calls: list) -> None:
    (a,) = shoot(tmp_path, {"a.jpg": TIMES["a.jpg"]})
    (small,) = shoot(tmp_path, {"small.jpg": (1.0, None)}, scene(50, 80))
    assert "small.jpg is 80x50 but a.jpg is 80x60" in refusal([a, small])
    (turned,) = shoot(tmp_path, {"turned.jpg": (1.0, None)}, scene().transpose(1, 0, 2))
    assert "upright" in refusal([a, turned])
    import cv2

    cv2.imwrite(str(tmp_path / "deep.png"), pixels(2.0).astype(np.uint16) * 257)
    assert "deep.png is 16-bit but a.jpg is 8-bit" in refusal([a, tmp_path / "deep.png"])


@pytest.mark.parametrize(("value", "word"), [(255, "clipped"), (0, "black")])
def test_photos_that_measured_nothing_are_refused(tmp_path: Path, calls: list, value: int, word: str) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48), (value, value, value)).save(tmp_path / name)
    assert word in refusal([tmp_path / "a.png", tmp_path / "b.png"], ev=[0, 2])


def test_an_error_in_one_photo_stops_the_reading(tmp_path: Path, calls: list) -> None:
    paths = shoot(tmp_path, {f"{i}.jpg": (i / 4, None) for i in range(12)})
    paths[1].write_bytes(paths[1].read_bytes()[:500])
    assert "1.jpg" in refusal(paths)


# ---- response files -------------------------------------------------------------------------------------------------------


def test_response_file_round_trip(tmp_path: Path) -> None:
    for response in (CameraResponse.named("srgb"), CameraResponse.named("linear"), CameraResponse.named("gamma2.4")):
        path = tmp_path / f"{response.name}.json"
        save_response_file(response, path)
        back = load_response_file(path)
        assert np.abs(back.table - response.table).max() < 1e-6
        encoded = np.linspace(0.005, 1, 300)
        assert np.abs(back.at(encoded) / response.at(encoded) - 1).max() < 2e-3


def test_channels_of_a_response_file_stay_apart(tmp_path: Path) -> None:
    table = np.linspace(0, 1, 4097)[:, None] ** np.array([1.8, 2.0, 2.2])
    save_response_file(CameraResponse(table, "estimated"), tmp_path / "a.json")
    assert np.abs(load_response_file(tmp_path / "a.json").table - table).max() < 1e-6


def test_response_file_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    save_response_file(CameraResponse.named("srgb"), path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        save_response_file(CameraResponse.named("linear"), path)
    assert path.read_bytes() == before
    save_response_file(CameraResponse.named("linear"), path, force=True)
    assert load_response_file(path).is_linear
    with pytest.raises(OutputError, match="cannot be written"):
        save_response_file(CameraResponse.named("srgb"), tmp_path / "missing" / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_measured_curves_load(tmp_path: Path) -> None:
    if not CURVES.exists():
        pytest.skip("shared/data/responses is not beside this checkout")
    measured = json.loads(CURVES.read_text())
    for curve in measured["curves"]:
        path = tmp_path / "c.json"
        path.write_text(json.dumps({"encoded": measured["encoded"], "log2_linear": curve["log2_linear"]}))
        response = load_response_file(path)
        expected = np.stack([curve["log2_linear"][c] for c in "rgb"], axis=1)
        found = np.log2(response.at(np.array(measured["encoded"])))
        # The file's own 1 is at encoded 0.975; the shapes must agree.
        difference = found - expected
        assert np.ptp(difference[4:], axis=0).max() < 0.05, curve["camera"]


GOOD = {"encoded": [0, 0.5, 1], "linear": [0, 0.2, 1]}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "not json",
        "[1, 2]",
        "{}",
        "[" * 100_000,
        json.dumps({**GOOD, "encoded": [0, 1]}),
        json.dumps({**GOOD, "encoded": [0, 0.5, 0.4]}),
        json.dumps({**GOOD, "encoded": [0.2, 0.5, 1]}),
        json.dumps({**GOOD, "encoded": [0, 0.5, 2]}),
        json.dumps({**GOOD, "encoded": "abc"}),
        json.dumps({**GOOD, "encoded": [0, "x", 1]}),
        json.dumps({**GOOD, "linear": [0, 0.6, 0.5]}),
        json.dumps({**GOOD, "linear": [0, 0, 0]}),
        json.dumps({**GOOD, "linear": [0, float("nan"), 1]}),
        json.dumps({**GOOD, "linear": {"r": [0, 0.2, 1]}}),
        json.dumps({**GOOD, "linear": 5}),
        json.dumps({"encoded": [0, 0.5, 1], "log2_linear": [0, 5000, 9000]}),
    ],
)
def test_malformed_response_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(FileFormatError, match=r"r\.json is no response file") as caught:
        load_response_file(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_response_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(InputError, match="cannot be read"):
            load_response_file(path)
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match="UTF-8"):
        load_response_file(tmp_path / "b.json")


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=4), max_leaves=8)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["encoded", "linear", "log2_linear", "r", "name"]), JSON))
def test_any_json_gives_a_response_or_our_error(tmp_path_factory: pytest.TempPathFactory, content: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        load_response_file(path)
    except FileFormatError:
        return


# ---- real brackets --------------------------------------------------------------------------------------------------------

REAL = {
    "hdrtb_ghost_hall": ("exif", [0, 2, 4.06], "IMG_0959.JPG"),
    "hdrtb_handheld": ("exif", [0, 2, 4], "IMG_4209.jpg"),
    "luishsu_sample_street": ("exif", [0, 1, 2, 2.51, 3.47, 3.47, 4.47, 5.47], None),
    "merianos_oldhouse": ("estimated", None, "OldHouse2.jpg"),
    "merianos_rovinia": ("estimated", None, "rovinia2.jpg"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_brackets(name: str, calls: list) -> None:
    folder = BRACKETS / name
    if not folder.is_dir():
        pytest.skip("shared/data/brackets is not beside this checkout")
    source, stops, reference = REAL[name]
    files = [folder / image["file"] for image in json.loads((folder / "meta.json").read_text())["images"]]
    bracket = read_bracket(files[::-1])
    assert bracket.calibration.exposure_source == source
    if stops is not None:
        assert relative(bracket) == pytest.approx(stops, abs=0.01)
    if reference is not None:
        assert bracket.frames[bracket.reference].name == reference
    brightness = [f.encoded[::8, ::8].mean() for f in bracket.frames]
    assert all(b > a * 0.97 for a, b in pairwise(brightness))
