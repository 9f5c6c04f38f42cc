"""Rows to statistics: what each method comes to on the scenes of a dataset. NumPy only.

The comparison is made on the scenes that every method got through: a method that fails on the hard ones must not look better for it.
Intervals are 95 % bootstrap intervals of the mean over scenes (percentile method); the resampled scenes are the same for all methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.evaluate.rows import Row, latest

F64 = NDArray[np.float64]

RESAMPLES, BOOTSTRAP_SEED = 10_000, 20_251
BASELINE, CEILINGS = "classical", ("oracle", "held-truth")
"""What the others are compared with, and who knows the truth (`Method.sees_truth`) and therefore wins nothing."""

MASKS = ("motion", "clipped", "dark")
FEWEST_FOR_INTERVAL = 6
"""Scenes below which a bootstrap interval says little more than the smallest and the largest value."""


@dataclass(frozen=True)
class Metric:
    """How a metric is printed: title, decimals, and whether lower is better."""

    title: str
    decimals: int
    lower: bool = False

    @property
    def head(self) -> str:
        """The title, with a word where lower is better."""
        return f"{self.title} (lower is better)" if self.lower else self.title


METRICS: Mapping[str, Metric] = {
    "psnr_mu": Metric("PSNR-mu", 2),
    "psnr_l": Metric("PSNR-l", 2),
    "ssim_mu": Metric("SSIM-mu", 4),
    "pu21_psnr": Metric("PU21-PSNR", 2),
    "pu21_ssim": Metric("PU21-SSIM", 4),
    "jod": Metric("JOD", 2),
    "gms": Metric("GMS", 4),
    "gain_psnr": Metric("gain PSNR", 2),
    "grid_db": Metric("grid dB", 2, lower=True),
    "lpips": Metric("LPIPS", 3, lower=True),
    "dists": Metric("DISTS", 3, lower=True),
    "musiq": Metric("MUSIQ", 1),
    "maniqa": Metric("MANIQA", 3),
    "clipiqa": Metric("CLIP-IQA", 3),
}
"""Metrics in the order of their columns; others follow under their own names."""

UNSCALED = "_unscaled"


def metric_of(key: str) -> Metric:
    """How a metric is printed; masks ("psnr_mu/motion") like the metric itself, unknown ones under their own names."""
    base = key.partition("/")[0]
    return METRICS.get(base.removesuffix(UNSCALED), Metric(base, 3))


@dataclass(frozen=True)
class Statistic:
    """Of one metric of one method over `count` scenes; low and high bound the mean (95 %), None below FEWEST_FOR_INTERVAL scenes."""

    mean: float
    median: float
    count: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """PSNR-mu of a method minus that of another on the `count` scenes both have: mean, its interval, scenes won, lost and drawn."""

    method: str
    baseline: str
    mean: float
    low: float | None
    high: float | None
    count: int
    won: int
    lost: int


@dataclass(frozen=True)
class Summary:
    """Statistics of one dataset.

    scenes, methods: all that have rows; scenes by name, methods in the order of their first row.
    compared: methods with at least one success. common: scenes on which all of these succeeded.
    metrics: every metric that has a value, masks included, in the order of their columns.
    shared: method to metric to Statistic over the common scenes (over a method's own scenes where there are no common ones).
    own: the same over each method's own scenes. In `shared` a metric counts the scenes where every method that has it has a value.
    wins: common scenes on which the method has the best psnr_mu of all but CEILINGS, draws counting for each; those have none.
    failed: number of failed rows. seconds, peak_mb: medians over the scenes of `shared`, where known.
    differences: of each other compared method to the baseline. rows: (scene, method) to its last row. notes: what was left out.
    """

    dataset: str
    scenes: tuple[str, ...]
    methods: tuple[str, ...]
    compared: tuple[str, ...]
    common: tuple[str, ...]
    metrics: tuple[str, ...]
    shared: Mapping[str, Mapping[str, Statistic]]
    own: Mapping[str, Mapping[str, Statistic]]
    wins: Mapping[str, int]
    failed: Mapping[str, int]
    seconds: Mapping[str, float]
    peak_mb: Mapping[str, float]
    differences: tuple[Difference, ...]
    rows: Mapping[tuple[str, str], Row] = field(repr=False)
    notes: tuple[str, ...] = ()

    def succeeded(self, method: str) -> list[str]:
        """Scenes on which a method has a result."""
        return [s for s in self.scenes if has_result(self.rows.get((s, method)))]

    def facts(self, scene: str) -> Mapping[str, Any]:
        """What the rows say of a scene."""
        return next((r["facts"] for (s, _), r in self.rows.items() if s == scene and r["facts"]), {})


def summary(rows: Iterable[Row], dataset: str) -> Summary:
    """Statistics of one dataset, from the last row of each scene and method. Raises InputError where it has no rows."""
    every = list(rows)
    chosen = [r for r in every if r["dataset"] == dataset]
    if not chosen:
        raise InputError(f"no rows of dataset {dataset!r}: there are rows of {', '.join(sorted({r['dataset'] for r in every})) or 'none'}")
    methods = tuple(dict.fromkeys(r["method"] for r in chosen))
    by, notes = _of_one_truth(chosen)
    scenes = tuple(sorted({scene for scene, _ in by}))
    compared = tuple(m for m in methods if any(has_result(by.get((s, m))) for s in scenes))
    common = tuple(s for s in scenes if compared and all(has_result(by.get((s, m))) for m in compared))
    metrics = tuple(_metrics(by.values()))
    own = {m: {k: _statistic(v) for k in metrics if (v := _finite(_values(by, scenes, m, k))).size} for m in compared}
    return Summary(
        dataset,
        scenes,
        methods,
        compared,
        common,
        metrics,
        shared_statistics(by, common, compared, metrics) if common else own,
        own,
        _wins(by, common, compared),
        {m: sum(by[s, m]["status"] == "failed" for s in scenes if (s, m) in by) for m in methods},
        _medians(by, common or scenes, compared, "seconds"),
        _medians(by, common or scenes, compared, "peak_mb"),
        _differences(by, scenes, compared),
        by,
        tuple(notes),
    )


def _of_one_truth(rows: Sequence[Row]) -> tuple[dict[tuple[str, str], Row], list[str]]:
    """The last row of each scene and method, without rows that saw other pixels than the scene's newest, and without unscored scenes.

    Two data sets of one name, or a set that changed, must not be compared with each other by mistake.
    """
    in_time = sorted((r for r in rows if has_result(r) and r.get("scene_hash")), key=lambda r: str(r.get("finished", "")))
    newest = {r["scene"]: r["scene_hash"] for r in in_time}
    kept, other, notes = {}, [], []
    for row in latest(rows):
        if has_result(row) and row.get("scene_hash") and row["scene_hash"] != newest[row["scene"]]:
            other.append(f"{row['scene']} {row['method']}")
        else:
            kept[row["scene"], row["method"]] = row
    if other:
        shown = ", ".join(other[:6]) + (" ..." if len(other) > 6 else "")
        notes.append(
            f"Left out, because these rows saw other pixels than the newest of their scene: {shown}. --resume measures them again."
        )
    scored = {scene for (scene, _), r in kept.items() if value(r, "psnr_mu") is not None}
    bare = sorted({scene for (scene, _), r in kept.items() if has_result(r)} - scored)
    if scored and bare:
        kept = {k: r for k, r in kept.items() if k[0] not in bare}
        notes.append(f"Left out, because they have no ground truth: {', '.join(bare)}.")
    return kept, notes


def value(row: Row | None, metric: str) -> float | None:
    """A metric of a row; None where the row failed or is missing, or holds no finite number for it."""
    return finite_number(row["metrics"].get(metric)) if row is not None and has_result(row) else None


def bootstrap_interval(values: F64) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values; the same n resamples the same places, so differences of pairs may be given too."""
    means = values[_resampled(values.size)].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resampled(count: int) -> NDArray[np.intp]:
    rng = np.random.Generator(np.random.PCG64(BOOTSTRAP_SEED))
    return rng.integers(0, count, (RESAMPLES, count), dtype=np.intp)


def has_result(row: Row | None) -> bool:
    """Whether there is a row and its method succeeded."""
    return row is not None and row["status"] == "ok"


def finite_number(found: object) -> float | None:
    """A row's entry as a number; None where it is none, or not finite."""
    return float(found) if isinstance(found, int | float) and isfinite(found) else None


def _metrics(rows: Iterable[Row]) -> list[str]:
    """Every metric that has a value: known ones first, each followed by its masks."""
    present = {k for r in rows if has_result(r) for k in r["metrics"] if value(r, k) is not None}
    known, masks = list(METRICS), list(MASKS)

    def place(key: str) -> tuple[int, str, int, str]:
        base, _, mask = key.partition("/")
        return (
            known.index(base) if base in known else len(known),
            base,
            (masks.index(mask) + 1 if mask in masks else len(masks) + 1) if mask else 0,
            mask,
        )

    return sorted(present, key=place)


def _values(by: Mapping[tuple[str, str], Row], scenes: Sequence[str], method: str, metric: str) -> F64:
    """(scenes,) values, NaN where there is none."""
    found = (value(by.get((s, method)), metric) for s in scenes)
    return np.array([np.nan if v is None else v for v in found], np.float64)


def _finite(values: F64) -> F64:
    return values[np.isfinite(values)]


def _statistic(values: F64) -> Statistic:
    low, high = bootstrap_interval(values) if values.size >= FEWEST_FOR_INTERVAL else (None, None)
    return Statistic(float(values.mean()), float(np.median(values)), values.size, low, high)


def shared_statistics(
    by: Mapping[tuple[str, str], Row], scenes: Sequence[str], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Statistic]]:
    """Method to metric to Statistic over the scenes where every method that has the metric has a value."""
    found: dict[str, dict[str, Statistic]] = {m: {} for m in methods}
    for metric in metrics:
        table = {m: v for m in methods if np.isfinite(v := _values(by, scenes, m, metric)).any()}
        if not table:
            continue
        everywhere = np.isfinite(np.stack(list(table.values()))).all(axis=0)
        if everywhere.any():
            for method, values in table.items():
                found[method][metric] = _statistic(values[everywhere])
    return found


def _wins(by: Mapping[tuple[str, str], Row], scenes: Sequence[str], methods: Sequence[str]) -> dict[str, int]:
    wins = {m: 0 for m in methods if m not in CEILINGS}
    for scene in scenes:
        scored = {m: v for m in wins if (v := value(by.get((scene, m)), "psnr_mu")) is not None}
        for method in scored:
            wins[method] += scored[method] == max(scored.values())
    return wins


def _medians(by: Mapping[tuple[str, str], Row], scenes: Sequence[str], methods: Sequence[str], key: str) -> dict[str, float]:
    found = {}
    for method in methods:
        rows = [by[s, method] for s in scenes if has_result(by.get((s, method)))]
        values = [v for r in rows if (v := finite_number(r.get(key))) is not None]
        if values:
            found[method] = float(np.median(values))
    return found


def _differences(by: Mapping[tuple[str, str], Row], scenes: Sequence[str], methods: Sequence[str]) -> tuple[Difference, ...]:
    if not methods:
        return ()
    baseline = BASELINE if BASELINE in methods else next((m for m in methods if m not in CEILINGS), methods[0])
    base = _values(by, scenes, baseline, "psnr_mu")
    found = []
    for method in methods:
        if method == baseline:
            continue
        gain = _finite(_values(by, scenes, method, "psnr_mu") - base)
        if gain.size:
            of = _statistic(gain)
            found.append(Difference(method, baseline, of.mean, of.low, of.high, of.count, int((gain > 0).sum()), int((gain < 0).sum())))
    return tuple(found)
