"""Rows: one line of JSON for one method on one scene, appended as it comes, never rewritten.

A row holds (keys in this order):
    dataset, scene, method   names
    status                   "ok", "failed", or "skipped" where the method does not apply; the last two have `error`, one line, no metrics
    metrics                  "psnr_mu" ... and "psnr_mu/motion" ... (metric/mask): numbers, None where a mask is empty
    settings                 metric or group of metrics to the settings it was computed with, as text
    facts                    of the scene: size, frames, stops, motion_share, clipped_share, dark_share, and how it was made
    scale                    the one factor the estimate was multiplied by before scoring; 1.0 for methods that know the response
    seconds, peak_mb         of the method alone: wall time, and memory above what the process held before it (None where unknown,
                             and for results read from files)
    threads, workers         how many threads the method had, and how many scenes ran beside each other
    scene_hash, source_hash  of the pixels it saw, and of what the scene was made from
    method_hash              of what the method's result rests on beyond scene and code: the file of a saved result, the state of networks
                             (`model_card.Card.state`); "" for none
    version, commit          of this project
    finished                 UTC, ISO 8601
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gmodiff.errors import InputError

Row = Mapping[str, Any]

MOST_NOTES = 5
REQUIRED = ("dataset", "scene", "method", "status", "metrics", "settings", "facts")


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a file in the order written, and one sentence for each line that is not a row.

    A line cut off by a crash is no reason to stop: its scene and method simply have no row.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            wrong = _wrong(row)
        except (json.JSONDecodeError, RecursionError):
            wrong = "cut off or damaged"
        if wrong:
            notes.append(f"{path}, line {number}: not a row ({wrong}), left out")
        else:
            rows.append(row)
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"{path}: {len(notes) - MOST_NOTES} more lines are not rows"]
    return rows, notes


def _wrong(row: Any) -> str:
    """What keeps a line from being a row; nothing if it is one."""
    if not isinstance(row, dict):
        return "not an object"
    missing = [k for k in REQUIRED if k not in row]
    if missing:
        return f"without {missing[0]}"
    if not all(isinstance(row[k], str) for k in ("dataset", "scene", "method", "status")):
        return "names that are no text"
    if not all(isinstance(row[k], dict) for k in ("metrics", "settings", "facts")):
        return "metrics, settings or facts that are no objects"
    odd = [k for k, v in row["metrics"].items() if v is not None and not (isinstance(v, (int, float)) and math.isfinite(v))]
    return f"{odd[0]} is {row['metrics'][odd[0]]!r}, no number" if odd else ""


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each dataset, scene and method, by dataset and scene, methods in the order of their first appearance."""
    found: dict[tuple[str, str, str], Row] = {}
    methods: dict[str, int] = {}
    for row in rows:
        methods.setdefault(row["method"], len(methods))
        found[row["dataset"], row["scene"], row["method"]] = row
    return [found[k] for k in sorted(found, key=lambda k: (k[0], k[1], methods[k[2]]))]


def append_row(path: Path, row: Row) -> None:
    """Add a row, whole and synced: a crash a moment later does not lose it."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with path.open("ab+") as out:
        # Whatever a crash left of the last line must not swallow this one.
        if out.seek(0, os.SEEK_END) > 0:
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                line = "\n" + line
        out.write(line.encode())
        out.flush()
        os.fsync(out.fileno())
