"""The report: the worst first, and nothing in it that a file name or a message could break."""

import inspect
import json
import re

import pytest

from gmodiff import response_choice
from gmodiff.batch.contact_sheet import ROUTINE, warnings_of, worst_first, write_contact_sheet
from gmodiff.batch.manifest import FORMAT
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import preview_of


def row(output: str = "a.jpg", *, status: str = "done", inferred: float = 0.1, disagreement: float | None = 0.05, headroom: float = 2.0,
        moved: float = 3.0, notes: tuple[str, ...] = (), error: str = "", doubt: str = "") -> dict:  # fmt: skip
    if status == "failed":
        return {"output": output, "status": status, "photos": [{"place": "card/x.jpg"}], "settings": {}, "error": error, "doubt": doubt}
    where = {"measured_percent": 99.0, "aligned_percent": 0.9, "inferred_percent": inferred, "highlight_stops": 1.5, "shadow_stops": 2.0}
    result = {"width": 400, "height": 300, "disagreement_stops": disagreement, "headroom_stops": headroom, "moved_px": moved,
              "notes": list(notes), "provenance": where}  # fmt: skip
    return {"output": output, "status": status, "photos": [{"place": "card/x.jpg"}], "settings": {}, "result": result, "doubt": doubt}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, []),
        ({"inferred": 4.2}, ["4.2 % of the picture is inferred"]),
        ({"disagreement": 0.4}, ["photos disagree by 0.40 stops"]),
        ({"disagreement": None}, []),
        ({"headroom": 0.1}, ["hardly any HDR: nothing much brighter than white"]),
        ({"moved": 60.0}, ["a photo was moved by 60 pixels"]),
        ({"notes": ("no ISO in a.jpg",)}, ["no ISO in a.jpg"]),
        ({"notes": (f"b.jpg: EXIF says +0.7 stops, {ROUTINE} to +1",)}, []),
        ({"status": "failed", "error": "a.jpg is empty"}, ["a.jpg is empty"]),
        ({"doubt": "b.jpg cannot be read"}, ["b.jpg cannot be read"]),
        ({"status": "failed", "error": "a.jpg is empty", "doubt": "b.jpg cannot be read"}, ["a.jpg is empty", "b.jpg cannot be read"]),
    ],
)
def test_what_is_worth_a_look(facts, expected):
    assert warnings_of(row(**facts)) == expected


def test_the_worst_come_first():
    rows = [row("fine.jpg"), row("better.jpg", inferred=0.0), row("guessed.jpg", inferred=20), row("note.jpg", notes=("x",)),
            row("failed.jpg", status="failed", error="e"), row("apart.jpg", disagreement=0.6)]  # fmt: skip
    assert [r["output"] for r in worst_first(rows)] == ["failed.jpg", "guessed.jpg", "apart.jpg", "note.jpg", "fine.jpg", "better.jpg"]


def test_the_page_holds_its_pictures_and_no_foreign_markup(tmp_path):
    manifest = tmp_path / "batch.jsonl"
    rows = [row("a b#1.jpg"), row("<b>.jpg", status="failed", error="<script>alert(1)</script>"), row("gone.jpg")]
    manifest.write_text("\n".join(json.dumps(r) for r in ({"format": FORMAT}, *rows)) + "\n")
    preview = preview_of(manifest, "a b#1.jpg")
    preview.parent.mkdir(parents=True)
    preview.write_bytes(b"\xff\xd8small")
    page = write_contact_sheet(manifest, str(tmp_path), tmp_path / "batch.html").read_text()
    assert 'href="a%20b%231.jpg"' in page
    assert "data:image/jpeg;base64,/9hzbWFsbA==" in page
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "no picture" in page
    assert "3 sets: 1 failed, 0 with warnings, 2 without" in page
    assert not re.search(r'(src|href)="https?:', page)


def test_more_pictures_than_a_page_holds_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("gmodiff.batch.contact_sheet.MOST_PICTURES", 2)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(json.dumps(r) for r in ({"format": FORMAT}, *(row(f"{n}.jpg") for n in range(5)))) + "\n")
    page = write_contact_sheet(manifest, "s3://bucket/out", tmp_path / "m.html").read_text()
    assert page.count("<article") == 2
    assert "3 more sets are in m.jsonl" in page


def test_what_is_left_over_is_listed_and_many_of_a_reason_are_summed_up(tmp_path):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(json.dumps(r) for r in ({"format": FORMAT}, row("a.jpg"))) + "\n")
    left = (("card/@CARDS@<i>.jpg", "a single photo"), *((f"card/{n}.txt", f"{n}.txt is not a photo") for n in range(50)))
    planned = PlannedSet("a.jpg", ("card/x.jpg", "card/y.jpg"), doubt="z.jpg cannot be read")
    page = write_contact_sheet(manifest, str(tmp_path), tmp_path / "m.html", PlanFile((planned,), left)).read_text()
    assert "<summary>51 files left over</summary>" in page
    assert "<li>card/@CARDS@&lt;i&gt;.jpg: a single photo</li>" in page
    assert "<li>and 30 files more for the same reason</li>" in page
    assert "<li>z.jpg cannot be read</li>" in page  # as the plan says now; the row knew nothing of it
    assert "1 set: 0 failed, 1 with warnings, 0 without" in page


def test_routine_notes_are_called_what_calibration_calls_them():
    import gmodiff.calibrate as calibrate

    assert any(ROUTINE in inspect.getsource(module) for module in (calibrate, response_choice))
