"""Rows: one line of JSON for one method on one scene, appended as it comes, never rewritten.

A row holds (keys in this order):
    dataset, scene, method   names
    status                   "ok" or "failed"; failed rows have `error`, one line, and no metrics
    metrics                  "psnr_mu" ... and "psnr_mu/motion" ... (metric/mask): numbers, None where a mask is empty
    settings                 metric or group of metrics to the settings it was computed with, as text
    facts                    of the scene: size, frames, stops, motion_share, clipped_share, dark_share, and how it was made
    scale                    the one factor the estimate was multiplied by before scoring; 1.0 for methods that know the response
    seconds, peak_mb         of the method alone: wall time, and memory above what the process held before it (None where unknown)
    threads, workers         how many threads the method had, and how many scenes ran beside each other
    scene_hash, source_hash  of the pixels it saw, and of what the scene was made from
    version, commit          of this project
    finished                 UTC, ISO 8601
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gmodiff.errors import InputError

Row = Mapping[str, Any]

REQUIRED = ("dataset", "scene", "method", "status", "metrics", "settings", "facts")


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a file in the order written, and one sentence for each line that is not a row.

    A line cut off by a crash is no reason to stop: its scene and method simply have no row.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    rows, notes = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            missing = [k for k in REQUIRED if k not in row] if isinstance(row, dict) else ["everything"]
        except json.JSONDecodeError:
            row, missing = None, ["everything"]
        if row is None or missing:
            notes.append(f"{path}, line {number}: not a row ({'cut off or damaged' if row is None else 'without ' + missing[0]}), left out")
        else:
            rows.append(row)
    return rows, notes


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
