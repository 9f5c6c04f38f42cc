"""What a batch tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


class Watcher:
    """What a batch tells while it runs; every method does nothing here."""

    def begins(self, total: int, kept: int, workers: int) -> None:
        """total: sets to make; kept: done and up to date already; workers: 0 where a cluster decides."""

    def ended(self, output: str, row: Row) -> None:
        """A set is done or failed."""

    def tick(self, running: int) -> None:
        """Twice a second: sets at hand."""

    def note(self, text: str) -> None:
        """A sentence for the user."""
