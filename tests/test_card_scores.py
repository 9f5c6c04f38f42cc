"""`gmodiff train scores`: means of evaluation rows on a card, of its own weights only."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import gmodiff
from command_line import run
from gmodiff.model_card import Card

SHIPPED = Path(gmodiff.__file__).parent / "weights"


@pytest.fixture
def card(tmp_path):
    """Copies of the shipped cards; Card.read looks at nothing else."""
    for path in SHIPPED.glob("*.json"):
        shutil.copy(path, tmp_path)
    return tmp_path / "compact.json"


def rows(place: Path, method: str, weights: str) -> str:
    """A file of two rows and one that failed."""
    empty = {"dataset": "set", "method": method, "settings": {}, "facts": {}, "method_hash": weights}
    done = [empty | {"scene": s, "status": "ok", "metrics": {"psnr_mu": db, "jod": None}} for s, db in (("a", 30.0), ("b", 33.0))]
    path = place / "rows.jsonl"
    failed = empty | {"scene": "c", "status": "failed", "metrics": {}, "error": "no"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*done, failed)))
    return str(path)


def test_means_go_on_the_card_of_the_weights_they_were_measured_with(card, tmp_path, capsys):
    before = json.loads(card.read_text())
    code, _, err = run(["train", "scores", rows(tmp_path, "compact", Card.read(card).state), "-o", str(card)], capsys)
    assert code == 0, err
    after = json.loads(card.read_text())
    assert after.pop("scores") == {"set": {"scenes": 2, "psnr_mu": 31.5}}
    assert {k: v for k, v in before.items() if k != "scores"} == after


def test_a_refiner_has_scores_of_rows_in_which_it_refined(card, tmp_path, capsys):
    refiner = tmp_path / "compact-refiner.json"
    own, guide = Card.read(refiner).state, Card.read(card).state
    given = ["train", "scores", rows(tmp_path, "refined", f"{guide}+{own}"), "-o", str(refiner), "--method", "refined"]
    code, _, err = run(given, capsys)
    assert code == 0, err
    assert json.loads(refiner.read_text())["scores"]["set"]["scenes"] == 2


@pytest.mark.parametrize("name", ["compact.json", "compact-refiner.json"])
def test_rows_of_other_weights_are_refused(card, tmp_path, capsys, name):
    before = (tmp_path / name).read_bytes()
    given = ["train", "scores", rows(tmp_path, "m", "0123456789abcdef"), "-o", str(tmp_path / name), "--method", "m"]
    code, _, err = run(given, capsys)
    assert code == 2
    assert "measured with other weights" in err
    assert (tmp_path / name).read_bytes() == before


def test_rows_in_which_a_refiner_worked_are_not_its_regressors(card, tmp_path, capsys):
    both = f"{Card.read(card).state}+{Card.read(tmp_path / 'compact-refiner.json').state}"
    code, _, err = run(["train", "scores", rows(tmp_path, "m", both), "-o", str(card), "--method", "m"], capsys)
    assert code == 2
    assert "measured with other weights" in err


def test_answers_of_another_threshold_or_reach_are_asked_for_again(tmp_path, card):
    """But a file is signed with the hash of the weights alone, whatever the card says of their use."""
    refiner = Card.read(tmp_path / "compact-refiner.json")
    stricter = replace(refiner, facts={**refiner.facts, "threshold": 0.7})
    farther = replace(refiner, halo_px=refiner.halo_px + 32)
    assert len({refiner.state, stricter.state, farther.state}) == 3
    assert {refiner.label, stricter.label, farther.label} == {refiner.label}


def test_no_rows_of_the_method_is_one_line(card, tmp_path, capsys):
    code, _, err = run(["train", "scores", rows(tmp_path, "other", "x"), "-o", str(card)], capsys)
    assert code == 2
    assert "no finished rows of method 'compact'" in err
