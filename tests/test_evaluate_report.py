"""Reports made from rows and pictures that are there, and nothing else."""

import sys

import cv2
import numpy as np
import pytest

from gmodiff.errors import InputError, OutputError
from gmodiff.evaluate import report, sheets
from gmodiff.evaluate.report import BEGIN, END, insert_tables, write_report
from gmodiff.evaluate.sheets import contact_sheet, error_map, file_name, most_different, save_pictures, tone_mapped
from scenes import small_scene
from test_evaluate_tables import ROWS, row


def test_a_report_holds_tables_plots_and_sheets(tmp_path):
    scene = small_scene("a", height=120, width=160)
    for method in ("reference", "classical"):
        save_pictures(tmp_path / "pictures", scene, method, scene.truth * (1.0 if method == "classical" else 0.5))
    path = write_report(ROWS, tmp_path, dataset="hills", notes=["mind <this>"])
    text = path.read_text()
    assert "mind &lt;this>" in text
    assert "| classical |" in text
    for link in ("plots/time.png", "sheets/a.jpg"):
        assert f"({link})" in text
        assert cv2.imread(str(tmp_path / link)) is not None
    assert not (tmp_path / "sheets" / "b.jpg").exists()
    tex = (tmp_path / "tables.tex").read_text()
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") >= 1


def test_without_matplotlib_there_are_no_plots_and_a_line_says_why(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    text = write_report(ROWS, tmp_path, dataset="hills").read_text()
    assert 'pip install "gmodiff\\[evaluate\\]"' in text
    assert "| classical |" in text


def test_failed_rows_are_in_the_report(tmp_path):
    rows = [*ROWS, row("a", "broken", None, status="failed", error="ZeroDivisionError: division by zero")]
    text = write_report(rows, tmp_path, dataset="hills", plots=False).read_text()
    assert "a, broken: ZeroDivisionError: division by zero" in text


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(ROWS, tmp_path / "file", dataset="hills")


def test_tables_go_between_the_marks_and_nowhere_else(tmp_path):
    document = tmp_path / "results.md"
    document.write_text(f"# Before\n\n{BEGIN}\nstale text\n{END}\n\nafter\n")
    for _ in range(2):  # a second time changes nothing
        insert_tables(document, [*ROWS, row("z", "classical", 20.0, dataset="sea")], command="gmodiff evaluate hills")
        text = document.read_text()
        assert text.startswith("# Before\n\n" + BEGIN)
        assert text.endswith(END + "\n\nafter\n")
        assert "stale text" not in text
        assert text.count("### hills") == text.count("### sea") == 1
        assert "`gmodiff evaluate hills`" in text


@pytest.mark.parametrize("text", ["no marks", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_documents_without_one_pair_of_marks_are_refused(tmp_path, text):
    document = tmp_path / "results.md"
    document.write_text(text)
    with pytest.raises(InputError, match="once each"):
        insert_tables(document, ROWS)
    assert document.read_text() == text
    with pytest.raises(InputError, match="cannot be read"):
        insert_tables(tmp_path / "nothing.md", ROWS)


# ---- pictures ------------------------------------------------------------------------------------------------------------


def test_tone_mapping_rises_with_light_keeps_grey_grey_and_shows_everything():
    ramp = np.repeat(np.geomspace(0.002, 4, 200, dtype=np.float32)[None, :, None], 3, axis=2)
    shown = tone_mapped(ramp, 4.0)
    assert (np.diff(shown[0, :, 1].astype(int)) >= 0).all()
    assert len(np.unique(shown[0, :, 1])) > 150
    assert (shown[..., 0] == shown[..., 2]).all()
    assert shown.max() == 255
    odd = np.array([[[np.nan, 0, 0], [np.inf, 1, 1], [-1, -1, -1]]], np.float32)
    assert tone_mapped(odd, 4.0).tolist() == [[[255, 0, 255], [255, 0, 255], [0, 0, 0]]]
    blues = [tone_mapped(np.full((1, 1, 3), (0, 0, v), np.float32), 4.0)[0, 0, 2] for v in (1.0, 2.0, 3.8)]
    assert blues[0] < blues[1] < blues[2]


def test_saturated_light_keeps_its_hue():
    red = np.full((1, 1, 3), (2.0, 0.1, 0.1), np.float32)
    r, g, b = tone_mapped(red, 4.0)[0, 0].astype(int)
    assert r > 1.5 * g
    assert g == b


def test_error_maps_are_black_where_right_bright_where_wrong_grey_where_unknown():
    scene = small_scene()
    wrong = scene.truth.copy()
    wrong[:20] *= 4
    known = np.ones(scene.bracket.shape, bool)
    known[-10:] = False
    shown = error_map(wrong, scene.truth, scene.short_white, known)
    assert shown[30:80].max() < 10
    assert shown[:20].mean() > 100
    assert (shown[-10:] == sheets.UNKNOWN_GREY).all()


def test_names_of_files_stay_apart():
    names = ["saved:a/b", "saved:a_b", "saved_a_b", "reference", "saved:" + "x" * 300]
    files = [file_name(n) for n in names]
    assert len(set(files)) == len(names)
    assert file_name("classical-auto") == "classical-auto"
    assert all(len(f) < 80 and "/" not in f and ":" not in f for f in files)


def test_crops_go_where_methods_differ_and_do_not_touch():
    same = np.full((200, 300, 3), 100, np.uint8)
    other = same.copy()
    other[20:60, 30:70] = 200
    other[120:160, 200:240] = 160
    boxes = most_different({"a": same, "b": other}, 50)
    assert len(boxes) == 2
    (y, x, side), (y2, x2, _) = boxes
    assert abs(y + side / 2 - 40) < 25
    assert abs(x + side / 2 - 50) < 25
    assert abs(y2 - y) >= side or abs(x2 - x) >= side
    assert most_different({"a": same}, 50) == []
    assert most_different({"a": same, "b": same}, 50) == []


@pytest.mark.parametrize("size", [(97, 131), (131, 97)])
def test_sheets_of_odd_sizes_with_missing_pictures_and_failures(tmp_path, size):
    scene = small_scene("a", height=size[0], width=size[1])
    save_pictures(tmp_path, scene, "reference", scene.truth)
    save_pictures(tmp_path, scene, "classical", scene.truth * 2)
    rows = [row("a", m, 30.0) for m in ("reference", "classical", "gone")] + [row("a", "broken", None, status="failed")]
    sheet = contact_sheet(tmp_path / "a", rows)
    assert sheet.shape[1] == sheets.SHEET_WIDTH
    assert sheet.std() > 10
    (tmp_path / "a" / "reference.jpg").write_bytes(b"damaged")
    assert contact_sheet(tmp_path / "a", rows).shape[1] == sheets.SHEET_WIDTH
    assert contact_sheet(tmp_path / "nothing", rows) is None


def test_pictures_of_a_scene_that_changed_go(tmp_path):
    scene = small_scene("a")
    save_pictures(tmp_path, scene, "reference", scene.truth)
    save_pictures(tmp_path, scene, "classical", scene.truth)
    assert (tmp_path / "a" / "reference.jpg").exists()
    changed = small_scene("a", seed=5)
    before = (tmp_path / "a" / "truth.jpg").read_bytes()
    save_pictures(tmp_path, changed, "classical", changed.truth)
    assert not (tmp_path / "a" / "reference.jpg").exists()
    assert (tmp_path / "a" / "truth.jpg").read_bytes() != before


def test_a_sheet_without_truth_has_no_errors(tmp_path):
    scene = small_scene("a")
    bare = type(scene)("a", scene.bracket)
    save_pictures(tmp_path, bare, "reference", scene.truth)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["frame_1.jpg", "frame_2.jpg", "frame_3.jpg", "reference.jpg", "scene.txt"]
    assert contact_sheet(tmp_path / "a", [row("a", "reference", None)]) is not None


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.Path, "write_text", refuse)
    with pytest.raises(OutputError, match="no space left"):
        write_report(ROWS, tmp_path, dataset="hills", plots=False)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]
