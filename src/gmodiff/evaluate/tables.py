"""Rows to statistics, and statistics to tables in Markdown and LaTeX. NumPy only.

The comparison is made on the scenes that every method got through: a method that fails on the hard ones must not look better for it.
Intervals are 95 % bootstrap intervals of the mean over scenes (percentile method); the resampled scenes are the same for all methods.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
NOTHING = "–"
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


# ---- statistics -----------------------------------------------------------------------------------------------------------


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
        return [s for s in self.scenes if _ok(self.rows.get((s, method)))]

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
    compared = tuple(m for m in methods if any(_ok(by.get((s, m))) for s in scenes))
    common = tuple(s for s in scenes if compared and all(_ok(by.get((s, m))) for m in compared))
    metrics = tuple(_metrics(by.values()))
    own = {m: {k: _statistic(v) for k in metrics if (v := _finite(_values(by, scenes, m, k))).size} for m in compared}
    return Summary(
        dataset,
        scenes,
        methods,
        compared,
        common,
        metrics,
        _shared(by, common, compared, metrics) if common else own,
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
    in_time = sorted((r for r in rows if _ok(r) and r.get("scene_hash")), key=lambda r: str(r.get("finished", "")))
    newest = {r["scene"]: r["scene_hash"] for r in in_time}
    kept, other, notes = {}, [], []
    for row in latest(rows):
        if _ok(row) and row.get("scene_hash") and row["scene_hash"] != newest[row["scene"]]:
            other.append(f"{row['scene']} {row['method']}")
        else:
            kept[row["scene"], row["method"]] = row
    if other:
        shown = ", ".join(other[:6]) + (" ..." if len(other) > 6 else "")
        notes.append(
            f"Left out, because these rows saw other pixels than the newest of their scene: {shown}. --resume measures them again."
        )
    scored = {scene for (scene, _), r in kept.items() if value(r, "psnr_mu") is not None}
    bare = sorted({scene for (scene, _), r in kept.items() if _ok(r)} - scored)
    if scored and bare:
        kept = {k: r for k, r in kept.items() if k[0] not in bare}
        notes.append(f"Left out, because they have no ground truth: {', '.join(bare)}.")
    return kept, notes


def value(row: Row | None, metric: str) -> float | None:
    """A metric of a row; None where the row failed or is missing, or holds no finite number for it."""
    return _number(row["metrics"].get(metric)) if row is not None and _ok(row) else None


def bootstrap_interval(values: F64) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values; the same n resamples the same places, so differences of pairs may be given too."""
    means = values[_resampled(values.size)].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resampled(count: int) -> NDArray[np.intp]:
    rng = np.random.Generator(np.random.PCG64(BOOTSTRAP_SEED))
    return rng.integers(0, count, (RESAMPLES, count), dtype=np.intp)


def _ok(row: Row | None) -> bool:
    return row is not None and row["status"] == "ok"


def _number(found: object) -> float | None:
    return float(found) if isinstance(found, int | float) and isfinite(found) else None


def _metrics(rows: Iterable[Row]) -> list[str]:
    """Every metric that has a value: known ones first, each followed by its masks."""
    present = {k for r in rows if _ok(r) for k in r["metrics"] if value(r, k) is not None}
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


def _shared(
    by: Mapping[tuple[str, str], Row], scenes: Sequence[str], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Statistic]]:
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
        rows = [by[s, method] for s in scenes if _ok(by.get((s, method)))]
        values = [v for r in rows if (v := _number(r.get(key))) is not None]
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


# ---- tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell, with what follows it in smaller print, and whether it is the best of its kind."""

    text: str
    more: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table for print: title, heads, rows of as many cells, sentences beneath. The first `texts` columns hold words."""

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    texts: int = 1


def tables(of: Summary) -> list[Table]:
    """Every table of a summary that has something to show, the main one first."""
    made = (
        main_table(of),
        own_table(of),
        mask_table(of),
        difference_table(of),
        factor_table(of),
        motion_table(of),
        scene_table(of),
    )
    return [t for t in made if t is not None]


def main_table(of: Summary) -> Table:
    """Method against every metric over the common scenes, with wins, seconds and memory."""
    title = "quality" if of.metrics else "cost"
    return _quality_table(of, "main", f"{of.dataset}: {title}", of.shared, _main_notes(of), None)


def own_table(of: Summary) -> Table | None:
    """The same over each method's own scenes; None where all methods have the same scenes anyway."""
    if not _uneven(of) or not of.common:
        return None
    counts = {m: len(of.succeeded(m)) for m in of.compared}
    note = "Methods were scored on different scenes here: these means cannot be compared with each other."
    return _quality_table(of, "own", f"{of.dataset}: each method over all scenes it has a result for", of.own, (note,), counts)


def _quality_table(
    of: Summary,
    name: str,
    title: str,
    statistics: Mapping[str, Mapping[str, Statistic]],
    notes: tuple[str, ...],
    counts: Mapping[str, int] | None,
) -> Table:
    metrics = [k for k in _present(of, statistics) if "/" not in k and not k.endswith(UNSCALED)]
    heads, columns = ["method"], [[Cell(m) for m in of.compared]]
    if counts is not None:
        heads.append("scenes")
        columns.append([Cell(str(counts[m])) for m in of.compared])
    for metric in metrics:
        bounded = metric == "psnr_mu" and any(found[metric].low is not None for found in statistics.values() if metric in found)
        heads.append(metric_of(metric).head + (" [95 %]" if bounded else ""))
        columns.append(_column(of.compared, statistics, metric, interval=metric == "psnr_mu"))
        if metric == "psnr_mu":
            heads.append("median")
            columns.append([Cell(f"{statistics[m][metric].median:.2f}" if metric in statistics[m] else NOTHING) for m in of.compared])
    if counts is None:
        if any(of.wins.values()):
            heads.append("wins")
            columns.append([Cell(str(of.wins.get(m, NOTHING))) for m in of.compared])
        for head, found in (("seconds", of.seconds), ("peak MB", of.peak_mb)):
            if found:
                heads.append(head)
                columns.append([Cell(_short(found[m]) if m in found else NOTHING) for m in of.compared])
    return Table(name, title, tuple(heads), tuple(zip(*columns, strict=True)), notes)


def metric_of(key: str) -> Metric:
    """How a metric is printed; masks ("psnr_mu/motion") like the metric itself, unknown ones under their own names."""
    base = key.partition("/")[0]
    return METRICS.get(base.removesuffix(UNSCALED), Metric(base, 3))


def _present(of: Summary, statistics: Mapping[str, Mapping[str, Statistic]]) -> list[str]:
    """Metrics that some method has, in the order of their columns."""
    return [k for k in of.metrics if any(k in found for found in statistics.values())]


def _column(methods: Sequence[str], statistics: Mapping[str, Mapping[str, Statistic]], metric: str, *, interval: bool) -> list[Cell]:
    found = {m: statistics[m][metric] for m in methods if metric in statistics[m]}
    best = best_of({m: s.mean for m, s in found.items()}, metric)
    return [_statistic_cell(found[m], metric, m in best, interval) if m in found else Cell(NOTHING) for m in methods]


def best_of(values: Mapping[str, float], metric: str) -> set[str]:
    """Methods whose value, as printed, is the best; CEILINGS do not count, and nobody is best alone."""
    how = metric_of(metric)
    shown = {m: round(v, how.decimals) for m, v in values.items() if m not in CEILINGS}
    if len(shown) < 2:
        return set()
    top = min(shown.values()) if how.lower else max(shown.values())
    return {m for m, v in shown.items() if v == top}


def _statistic_cell(found: Statistic, metric: str, best: bool, interval: bool) -> Cell:
    decimals = metric_of(metric).decimals
    more = f"[{found.low:.{decimals}f}, {found.high:.{decimals}f}]" if interval and found.low is not None else ""
    return Cell(f"{found.mean:.{decimals}f}", more, best)


def _short(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"


def mask_table(of: Summary) -> Table | None:
    """PSNR-mu, and JOD where there is one, inside the masks; None where no mask has a value."""
    metrics = [k for k in _present(of, of.shared) if k.startswith(("psnr_mu/", "jod/"))]
    if not metrics:
        return None
    heads = tuple(f"{metric_of(k).head}, {k.partition('/')[2]}" for k in metrics)
    columns = [[Cell(m) for m in of.compared], *(_column(of.compared, of.shared, k, interval=False) for k in metrics)]
    notes = [
        "Means inside masks. motion: where the scene moves; clipped: where the reference clips; dark: five stops or more below its white."
    ]
    notes += _counts_note(of, metrics)
    return Table("masks", f"{of.dataset}: inside masks", ("method", *heads), tuple(zip(*columns, strict=True)), tuple(notes))


def _counts_note(of: Summary, metrics: Sequence[str]) -> list[str]:
    """Where metrics are means over fewer scenes than the table says, which."""
    if not of.common:
        return []
    counts = {k: max(of.shared[m][k].count for m in of.compared if k in of.shared[m]) for k in metrics}
    fewer = [f"{metric_of(k).title}{', ' if '/' in k else ''}{k.partition('/')[2]} {n}" for k, n in counts.items() if n < len(of.common)]
    return [f"Fewer than {_count(len(of.common), 'scene')}, where the others have no value: {'; '.join(fewer)}."] if fewer else []


def difference_table(of: Summary) -> Table | None:
    """PSNR-mu of each method minus the baseline's, scene by scene; None where there is nothing to subtract."""
    if not of.differences:
        return None
    baseline = of.differences[0].baseline
    rows = []
    for d in of.differences:
        interval = f"[{d.low:+.2f}, {d.high:+.2f}]" if d.low is not None else ""
        counts = (Cell(str(n)) for n in (d.count, d.won, d.lost))
        rows.append((Cell(d.method), Cell(f"{d.mean:+.2f}", interval), *counts))
    return Table(
        "differences",
        f"{of.dataset}: PSNR-mu minus that of {baseline}",
        ("method", "difference" + (" [95 %]" if of.differences[0].low is not None else ""), "scenes", "won", "lost"),
        tuple(rows),
        (f"Mean over the scenes that both the method and {baseline} have; an interval is that of the paired difference.",),
    )


def factor_table(of: Summary) -> Table | None:
    """Methods that were given one factor before scoring: the factor, and PSNR without it; None where there are none."""
    rows = []
    for method in of.compared:
        found = [of.rows[s, method] for s in of.common or of.succeeded(method) if _ok(of.rows.get((s, method)))]
        scales = [v for r in found if (v := _number(r.get("scale"))) is not None]
        if any(v != 1.0 for v in scales):
            spread = f"{min(scales):.3g} to {max(scales):.3g}"
            psnr = [of.shared[method].get(k + UNSCALED) for k in ("psnr_mu", "psnr_l")]
            rows.append(
                (Cell(method), Cell(f"{np.median(scales):.3g}"), Cell(spread), *(Cell(f"{p.mean:.2f}" if p else NOTHING) for p in psnr))
            )
    if not rows:
        return None
    return Table(
        "factors",
        f"{of.dataset}: the one factor given to methods that cannot know it",
        ("method", "median factor", "range", "PSNR-mu without", "PSNR-l without"),
        tuple(rows),
        ("A method that has to guess the camera's response knows radiance only up to a factor; it is fitted to the truth before scoring.",),
    )


def motion_table(of: Summary) -> Table | None:
    """PSNR-mu by kind of motion, over the common scenes; None where rows name no kinds."""
    kinds: dict[str, list[str]] = {}
    for scene in of.common:
        kind = of.facts(scene).get("motion")
        if isinstance(kind, str) and any(value(of.rows[scene, m], "psnr_mu") is not None for m in of.compared):
            kinds.setdefault(kind, []).append(scene)
    if not kinds:
        return None
    columns = [[Cell(m) for m in of.compared]]
    for scenes in kinds.values():
        columns.append(_column(of.compared, _shared(of.rows, scenes, of.compared, ["psnr_mu"]), "psnr_mu", interval=False))
    heads = tuple(f"{kind} ({len(scenes)})" for kind, scenes in kinds.items())
    note = "In brackets: the number of scenes."
    return Table("motion", f"{of.dataset}: PSNR-mu by kind of motion", ("method", *heads), tuple(zip(*columns, strict=True)), (note,))


SCENE_FACTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "motion": ("motion", str),
    "frames": ("frames", str),
    "stops": ("stops", lambda stops: " ".join(f"{s:+g}" if s else "0" for s in stops)),
    "iso": ("ISO", lambda iso: f"{iso:g}" if isinstance(iso, int | float) else str(iso)),
    "clipped_share": ("clipped", lambda share: f"{100 * share:.1f} %"),
}
"""Facts of the table by scene: key to head and print."""


def scene_table(of: Summary) -> Table | None:
    """PSNR-mu by scene and method, with the scene's facts; None where nothing has a PSNR-mu and nothing failed."""
    if not any(value(r, "psnr_mu") is not None for r in of.rows.values()):
        return None
    facts = {s: of.facts(s) for s in of.scenes}
    keys = [k for k in SCENE_FACTS if any(facts[s].get(k) is not None for s in of.scenes)]
    rows = []
    for scene in of.scenes:
        told = (Cell(SCENE_FACTS[k][1](facts[scene][k]) if facts[scene].get(k) is not None else NOTHING) for k in keys)
        scored = {m: v for m in of.methods if (v := value(of.rows.get((scene, m)), "psnr_mu")) is not None}
        best = best_of(scored, "psnr_mu")
        cells = (
            Cell(f"{scored[m]:.2f}", best=m in best)
            if m in scored
            else Cell("failed" if (scene, m) in of.rows and of.rows[scene, m]["status"] == "failed" else NOTHING)
            for m in of.methods
        )
        rows.append((Cell(scene), *told, *cells))
    heads = ("scene", *(SCENE_FACTS[k][0] for k in keys), *of.methods)
    return Table(
        "scenes",
        f"{of.dataset}: PSNR-mu by scene",
        heads,
        tuple(rows),
        ("Bold: the best, what knows the truth left aside.",),
        texts=1 + len(keys),
    )


# ---- what is said beneath -------------------------------------------------------------------------------------------------


def _uneven(of: Summary) -> bool:
    return any(len(of.succeeded(m)) != len(of.common) for m in of.compared)


def _main_notes(of: Summary) -> tuple[str, ...]:
    if not of.compared:
        return (*of.notes, "No method succeeded on any scene.")
    if not of.metrics:
        return ("No scene has a ground truth: there is nothing to score, only times (medians) and pictures.",)
    notes = list(of.notes)
    if of.common:
        notes.append(f"Means over the {_count(len(of.common), 'scene')} on which all {_count(len(of.compared), 'method')} succeeded.")
        if _uneven(of):
            notes.append(f"Not all have all {_count(len(of.scenes), 'scene')}; left out of the means: {_left_out(of)}.")
    else:
        notes.append(
            "There is no scene on which all methods succeeded: each mean is over the method's own scenes. They cannot be compared."
        )
    if len(of.common or of.scenes) >= FEWEST_FOR_INTERVAL:
        notes.append(f"Intervals: 95 % bootstrap over scenes ({RESAMPLES} resamples, percentiles).")
    else:
        notes.append(f"Fewer than {FEWEST_FOR_INTERVAL} scenes: no intervals.")
    if any(of.wins.values()):
        notes.append(
            f"wins: scenes with the best PSNR-mu, of {_count(len(of.common), 'scene')}. Bold: the best. "
            "What knows the truth is left out of both."
        )
    if of.seconds or of.peak_mb:
        notes.append("Seconds and MB are medians.")
    notes += _counts_note(of, [k for k in _present(of, of.shared) if "/" not in k and not k.endswith(UNSCALED)])
    for method in of.methods:
        if method not in of.compared:
            reasons = sorted({str(r.get("error")) for (_, m), r in of.rows.items() if m == method and r["status"] == "skipped"})
            notes.append(
                f"{method} does not apply here ({reasons[0]})." if reasons else f"{method} failed on every scene and is not compared."
            )
    return tuple(notes)


def _left_out(of: Summary) -> str:
    out = [s for s in of.scenes if s not in of.common]
    parts = []
    for method in of.compared:
        failed = [s for s in out if (s, method) in of.rows and of.rows[s, method]["status"] == "failed"]
        missing = [s for s in out if s not in failed and not _ok(of.rows.get((s, method)))]
        parts += [f"{method} failed on {', '.join(failed)}"] if failed else []
        parts += [f"{method} has no result for {', '.join(missing)}"] if missing else []
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def provenance(of: Summary) -> list[str]:
    """Sentences on where the numbers come from: scenes, versions, commits, threads, dates, and what does not agree."""
    rows = list(of.rows.values())
    lines = [f"{_count(len(of.scenes), 'scene')}, {_count(len(of.methods), 'method')}, {_count(len(rows), 'row')}."]
    for key, noun in (
        ("version", "version"),
        ("commit", "commit"),
        ("threads", "threads per method"),
        ("workers", "scenes beside each other"),
    ):
        found = Counter(str(r[key]) for r in rows if r.get(key) is not None)
        if len(found) == 1:
            lines.append(f"{noun}: {next(iter(found))}.")
        elif found:
            several = ", ".join(f"{what} ({_count(n, 'row')})" for what, n in found.most_common())
            lines.append(f"{noun}: rows disagree: {several}.")
    dates = sorted(str(r["finished"]) for r in rows if r.get("finished"))
    if dates:
        lines.append(f"finished: {dates[0]}{'' if dates[-1] == dates[0] else ' to ' + dates[-1]}.")
    for scene in of.scenes:
        hashes: dict[str, list[str]] = {}
        for method in of.methods:
            row = of.rows.get((scene, method))
            if row is not None and _ok(row) and row.get("scene_hash"):
                hashes.setdefault(str(row["scene_hash"]), []).append(method)
        if len(hashes) > 1:
            groups = " / ".join(", ".join(m) for m in hashes.values())
            lines.append(f"{scene}: methods saw different pixels ({groups}); their numbers cannot be compared.")
    return lines


def settings(of: Summary) -> list[str]:
    """A line for each metric's settings; where rows disagree, each variant with its methods."""
    found: dict[str, dict[str, list[str]]] = {}
    for (_, method), row in of.rows.items():
        for metric, text in (row["settings"] or {}).items():
            methods = found.setdefault(metric, {}).setdefault(str(text), [])
            if method not in methods:
                methods.append(method)
    lines = []
    for metric, variants in found.items():
        if len(variants) == 1:
            lines.append(f"{metric}: {next(iter(variants))}")
        else:
            lines.append(f"{metric}: rows disagree: " + "; ".join(f"{text} ({', '.join(m)})" for text, m in variants.items()))
    return lines


def failures(of: Summary) -> list[str]:
    """A line for each failed row."""
    failed = ((scene, method, row) for (scene, method), row in of.rows.items() if row["status"] == "failed")
    return [f"{scene}, {method}: {' '.join(str(row.get('error') or 'no reason given').split())}" for scene, method, row in failed]


# ---- print ----------------------------------------------------------------------------------------------------------------


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in a table or outside, on one line."""
    text = re.sub(r"[\\`*|\[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)  # underscores within words are plain text
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def markdown(table: Table) -> str:
    """A table and the sentences beneath it, without its title, ending in a new line."""
    lines = [_markdown_row(markdown_text(h) for h in table.heads)]
    lines.append("|" + "|".join("---" if i < table.texts else "---:" for i in range(len(table.heads))) + "|")
    lines += [_markdown_row(_markdown_cell(c) for c in row) for row in table.rows]
    if table.notes:
        lines += ["", "\n".join(markdown_text(n) for n in table.notes)]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"{text} {markdown_text(cell.more)}" if cell.more else text


LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    # A bracket right after a line break would be read as its argument.
    "[": "{[}",
    "]": "{]}",
}


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return " ".join("".join(LATEX_SIGNS.get(c, c) for c in text).split())


def latex(table: Table) -> str:
    """A table environment (needs the packages booktabs and graphicx), the sentences beneath as part of its caption."""
    label = "".join(c if c.isalnum() and c.isascii() else "-" for c in f"{table.title.partition(':')[0]}-{table.name}")
    caption = ". ".join([latex_text(table.title), " ".join(latex_text(n) for n in table.notes)]).removesuffix(". ")
    columns = "l" * table.texts + "r" * (len(table.heads) - table.texts)
    lines = [
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:{label}}}",
        r"\setlength{\tabcolsep}{4pt}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_text(h) for h in table.heads) + r" \\",
        r"\midrule",
        *(" & ".join(_latex_cell(c) for c in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return rf"{text} {{\scriptsize {latex_text(cell.more)}}}" if cell.more else text
