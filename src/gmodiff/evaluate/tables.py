"""A summary to tables for print, and the sentences said beneath them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmodiff.evaluate.statistics import (
    CEILINGS,
    FEWEST_FOR_INTERVAL,
    RESAMPLES,
    UNSCALED,
    Statistic,
    Summary,
    finite_number,
    has_result,
    metric_of,
    shared_statistics,
    value,
)

NOTHING = "–"


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
        found = [of.rows[s, method] for s in of.common or of.succeeded(method) if has_result(of.rows.get((s, method)))]
        scales = [v for r in found if (v := finite_number(r.get("scale"))) is not None]
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
        columns.append(_column(of.compared, shared_statistics(of.rows, scenes, of.compared, ["psnr_mu"]), "psnr_mu", interval=False))
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
        missing = [s for s in out if s not in failed and not has_result(of.rows.get((s, method)))]
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
            if row is not None and has_result(row) and row.get("scene_hash"):
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
