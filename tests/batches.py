"""Batches of small cards (`cards`): plans of them, and what runs leave."""

import hashlib
from pathlib import Path

from gmodiff.batch.one_set import Settings
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import run_batch

NONE = ["--model", "none"]


def plan_of(card: Path, sets: int = 3) -> PlanFile:
    return PlanFile(tuple(PlannedSet(f"{n}.jpg", tuple(str(card / f"IMG_{3 * n + i:04d}.jpg") for i in range(3))) for n in range(sets)))


def made(card: Path, out: Path, settings: Settings | None = None, **options) -> tuple[list[str], list[str]]:
    done = run_batch(plan_of(card), str(out), settings or Settings(model="none"), **options)
    assert not done.failed
    return sorted(done.made), sorted(done.kept)


def pictures(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.jpg")}


def content(folder: Path) -> str:
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in sorted(folder.rglob("*.jpg")))).hexdigest()
