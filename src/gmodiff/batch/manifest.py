"""The manifest of a batch: JSON lines, appended and synced, never rewritten. What is in it happened; what is not may have.

The first line says what the file is: format, version. Every other line is one event of one set, told apart by its output:
    output            name of the result, relative to the output folder, with forward slashes
    status            "started", before any file of the set is made; then "done" or "failed"
    photos            [{"place", "stamp", "sha256"}]: as given, what changes with the file, hash of its content ("" where unreadable)
    settings, version the settings that make a difference to the result, and this program's version
    bytes, sha256     of the result
    seconds, cpu_seconds, peak_mb   of making it: by the clock, by the processors, and most memory the worker ever held
    result            size, frames, reference, exposure source, headroom, provenance summary, notes
    doubt             what the set may lack, one line; only where there is a doubt
    error             of a failed set, one line            finished   UTC, ISO 8601
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmodiff import __version__
from gmodiff.errors import FileFormatError, InputError, OutputError

FORMAT = "gmodiff-batch-1"
STARTED, DONE, FAILED = "started", "done", "failed"
_REQUIRED = {"output": str, "status": str, "photos": list, "settings": dict}

Row = Mapping[str, Any]


class Manifest:
    """A manifest file, there or still to be made.

    last: the last line of each output; finished: the last that is done or failed; done: the last that is done; begun: of those that were
    started and not finished since, the first such start.
    notes: lines that are no events, left out.
    Raises InputError where the file cannot be read, FileFormatError where it is of another version or no manifest at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: dict[str, Row] = {}
        self.finished: dict[str, Row] = {}
        self.done: dict[str, Row] = {}
        self.begun: dict[str, Row] = {}
        self.notes: list[str] = []
        self._begin_again = False
        self._read()

    def _read(self) -> None:
        try:
            text = self.path.read_bytes().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return
        if len(lines) == 1 and not text.endswith("\n") and _is_cut_head(lines[0]):
            self._begin_again = True
            self.notes.append(f"{self.path.name}: nothing but a cut line; begun again")
            return
        self._check_head(lines[0])
        rows = [_row(line) for line in lines[1:]]
        for row in rows:
            if row is not None:
                self._take(row)
        bad = rows.count(None)
        if bad:
            self.notes.append(
                f"{self.path.name}: {bad} cut or damaged line{'s' if bad > 1 else ''} left out; what is not told is done again"
            )

    def _take(self, row: Row) -> None:
        self.last[row["output"]] = row
        if row["status"] == STARTED:
            self.begun.setdefault(row["output"], row)
        else:
            self.finished[row["output"]] = row
            self.begun.pop(row["output"], None)
        if row["status"] == DONE:
            self.done[row["output"]] = row

    def _check_head(self, line: str) -> None:
        try:
            head = json.loads(line)
        except ValueError:
            head = None
        found = head.get("format") if isinstance(head, dict) else None
        if found != FORMAT:
            ours = str(found).startswith("gmodiff-batch-")
            what = f"a manifest of another version ({found})" if ours else "not a manifest of gmodiff batch"
            raise FileFormatError(
                f"{self.path}: {what}, this program (gmodiff {__version__}) writes {FORMAT}; move it away, or give another output folder"
            )

    def append(self, row: Row) -> None:
        """Add an event, whole and synced. Raises OutputError where the disk refuses; then no part of the line stays."""
        try:
            with self.path.open("ab+") as out:
                if self._begin_again:
                    out.truncate(0)
                    self._begin_again = False
                end = out.seek(0, os.SEEK_END)
                parts = []
                if end == 0:
                    parts.append(_line({"format": FORMAT, "version": __version__}))
                else:
                    out.seek(-1, os.SEEK_END)
                    if out.read(1) != b"\n":
                        parts.append(b"\n")  # whatever a crash left of the last line must not swallow this one
                parts.append(_line(row))
                try:
                    out.write(b"".join(parts))
                    out.flush()
                    os.fsync(out.fileno())
                except OSError:
                    os.truncate(self.path, end)
                    raise
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({(error.strerror or str(error)).lower()}); the batch cannot go on"
            ) from error
        self._take(row)


def _is_cut_head(line: str) -> bool:
    head = _line({"format": FORMAT}).decode().rstrip("}\n")
    return head.startswith(line) or line.startswith(head)


def _line(row: Row) -> bytes:
    # ASCII: a file name need not be text, and what JSON escapes comes back as it was.
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(k), kind) for k, kind in _REQUIRED.items()):
        return None
    return row if row["status"] in (STARTED, DONE, FAILED) else None
