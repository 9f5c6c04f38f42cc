"""Plots of a summary: quality against time, clipping and motion, as PNG. Matplotlib loads when one is drawn.

A method has one colour and one marker in every plot: eight colours that stay apart for colour-blind eyes (Okabe and Ito 2008), told
apart further by their markers; what knows the truth is grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmodiff.errors import MissingDependencyError
from gmodiff.evaluate.statistics import CEILINGS, Statistic, Summary, value
from gmodiff.writer import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000")
MARKERS = "osD^vP*X<>"
CEILING_COLOUR = "#808080"

SIZE_INCHES, DPI = (9.0, 5.6), 130
LONGEST_NAME = 28
FEWEST_SCENES = 4
"""Scatter plots of fewer show nothing that the table does not."""
BIN_SCENES, MAX_BINS = 6, 5
"""Scatter plots of twice as many scenes get a line through the means of bins that hold about so many each."""


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str
    line: str
    label: str


@dataclass(frozen=True)
class Against:
    """A plot of PSNR-mu by scene against one of the scenes' facts."""

    name: str
    fact: str
    factor: float
    axis: str


SCATTERS = (
    Against("clipped_share", "clipped_share", 100.0, "pixels that the reference clips (%)"),
    Against("clipped_stops", "clipped_stops", 1.0, "brightest thousandth of the scene above the reference's white (stops)"),
    Against("motion_share", "motion_share", 100.0, "pixels that move (%)"),
)


def save_plots(of: Summary, folder: Path) -> list[Path]:
    """Write every plot that the summary has numbers for into a folder that exists; their paths, time first.

    Raises MissingDependencyError where Matplotlib is not installed, OutputError where the disk refuses.
    """
    made = [("time", quality_against_time(of)), *((s.name, quality_against(of, s)) for s in SCATTERS)]
    paths = []
    for name, figure in made:
        if figure is not None:
            path = folder / f"{name}.png"
            with replacing(path, force=True) as temporary:
                figure.savefig(temporary, dpi="figure")
            paths.append(path)
    return paths


def quality_against_time(of: Summary) -> Figure | None:
    """Median seconds, on a logarithmic axis, against mean PSNR-mu with its interval; None where no method has both."""
    points = {m: (max(of.seconds[m], 1e-3), of.shared[m]["psnr_mu"]) for m in of.seconds if "psnr_mu" in of.shared[m]}
    if not points:
        return None
    figure, axes = _axes(of, "PSNR-mu (dB), mean over scenes", "seconds per bracket (median)")
    axes.set_xscale("log")
    styles = _styles(of.compared)
    for method, (seconds, found) in points.items():
        style = styles[method]
        spread = None if found.low is None or found.high is None else [[found.mean - found.low], [found.high - found.mean]]
        axes.errorbar(
            seconds, found.mean, yerr=spread, color=style.colour, marker=style.marker, markersize=8, capsize=4, linestyle="none", zorder=3
        )
    times = [seconds for seconds, _ in points.values()]
    axes.set_xlim(min(times) / 3, max(times) * 3)
    axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.xaxis.set_minor_formatter(lambda v, _: "")
    axes.margins(y=0.12)
    interval = any(f.low is not None for _, f in points.values())
    axes.set_title(f"{of.dataset}: quality against time" + (" (bars: 95 % intervals of the mean)" if interval else ""))
    figure.tight_layout()
    _label(figure, axes, {styles[m]: (x, *_bounds(f)) for m, (x, f) in points.items()})
    return figure


def _bounds(found: Statistic) -> tuple[float, float, float]:
    return found.mean, found.mean if found.low is None else found.low, found.mean if found.high is None else found.high


def quality_against(of: Summary, what: Against) -> Figure | None:
    """PSNR-mu of every scene and method against a fact; None where no scored scene has the fact, or all have the same value."""
    x = {s: float(v) * what.factor for s in of.scenes if isinstance(v := of.facts(s).get(what.fact), int | float)}
    points = {m: [(x[s], v) for s in x if (v := value(of.rows.get((s, m)), "psnr_mu")) is not None] for m in of.compared}
    points = {m: found for m, found in points.items() if found}
    if len({place for found in points.values() for place, _ in found}) < FEWEST_SCENES:
        return None
    figure, axes = _axes(of, "PSNR-mu (dB)", what.axis)
    styles = _styles(of.compared)
    for method, found in points.items():
        style = styles[method]
        places, scores = np.array(sorted(found)).T
        axes.plot(places, scores, style.marker, color=style.colour, markersize=4.5, alpha=0.55, markeredgewidth=0)
        line = _binned(places, scores) if len(found) >= 2 * BIN_SCENES else ([], [])
        axes.plot(*line, marker=style.marker, markersize=6, color=style.colour, linestyle=style.line, linewidth=1.6, label=style.label)
    lines = any(len(found) >= 2 * BIN_SCENES for found in points.values())
    axes.set_title(f"{of.dataset}: each point a scene" + (", lines: means of neighbouring scenes" if lines else ""))
    order = sorted(points, key=lambda m: -float(np.mean([score for _, score in points[m]])))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = [styles[m].label for m in order]
    axes.legend([handles[name] for name in labels], labels, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)
    figure.tight_layout()
    return figure


def _axes(of: Summary, vertical: str, horizontal: str) -> tuple[Figure, Axes]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError('plots need Matplotlib: pip install "gmodiff[evaluate]"') from None
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(horizontal, fontsize=11)
    axes.set_ylabel(vertical, fontsize=11)
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _styles(methods: Sequence[str]) -> dict[str, _Style]:
    """Colours repeat after eight methods, with broken lines; markers after ten, so that a pair of both repeats after forty."""
    styles = {}
    for i, method in enumerate(m for m in methods if m not in CEILINGS):
        styles[method] = _Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], "-" if i < len(COLOURS) else "--", _name(method, i))
    for ceiling, line in zip(CEILINGS, ("-", "--"), strict=True):
        styles[ceiling] = _Style(CEILING_COLOUR, "h", line, ceiling)
    return {m: styles[m] for m in methods}


def _name(method: str, number: int) -> str:
    """A name that fits; what is cut from its middle is replaced by its number, so that two stay two. A dollar sign is no formula."""
    if len(method) > LONGEST_NAME:
        method = f"{method[:10]}…{method[-(LONGEST_NAME - 15) :]} ({number + 1})"
    return method.replace("$", r"\$")


def _binned(places: Any, scores: Any) -> tuple[list[float], list[float]]:
    """Means of bins of equal numbers of scenes, the places being sorted."""
    bins = min(MAX_BINS, len(places) // BIN_SCENES)
    return [float(p.mean()) for p in np.array_split(places, bins)], [float(s.mean()) for s in np.array_split(scores, bins)]


# ---- labels that do not overlap -------------------------------------------------------------------------------------------


def _label(figure: Figure, axes: Axes, points: Mapping[_Style, tuple[float, float, float, float]]) -> None:
    """Write each point's name near it, clear of other names, points and bars; a thin line leads to a name that had to move away."""
    canvas: Any = figure.canvas
    renderer = canvas.get_renderer()
    to_pixels = axes.transData.transform
    inside = axes.get_window_extent(renderer)
    taken = []
    for x, mean, low, high in points.values():
        (px, top), (_, bottom), (_, middle) = to_pixels((x, high)), to_pixels((x, low)), to_pixels((x, mean))
        taken += [(px - 6, bottom - 3, px + 6, top + 3), (px - 9, middle - 9, px + 9, middle + 9)]
    for style, (x, mean, _, _) in sorted(points.items(), key=lambda item: -item[1][1]):
        px, py = to_pixels((x, mean))
        text = axes.text(0, 0, style.label, fontsize=10, color=style.colour, transform=None, zorder=4)
        extent = text.get_window_extent(renderer)
        box = _free_place(px, py, extent.width, extent.height, taken, (inside.x0, inside.y0, inside.x1, inside.y1))
        taken.append(box)
        text.set_position((box[0], box[1] - extent.y0))
        near_x, near_y = min(max(px, box[0]), box[2]), min(max(py, box[1]), box[3])
        if (near_x - px) ** 2 + (near_y - py) ** 2 > 20**2:
            ends = axes.transData.inverted().transform([(px, py), (near_x, near_y)])
            axes.plot(*ends.T, color=style.colour, linewidth=0.7, zorder=2, scalex=False, scaley=False)


_Box = tuple[float, float, float, float]


def _free_place(px: float, py: float, width: float, height: float, taken: Sequence[_Box], inside: _Box) -> _Box:
    """The nearest place for a text of that size around a point that touches nothing taken, or the one that touches least."""
    boxes = [(x, y, x + width, y + height) for x, y in _around(px, py, width, height)]
    boxes = [b for b in boxes if b[0] >= inside[0] and b[1] >= inside[1] and b[2] <= inside[2] and b[3] <= inside[3]] or boxes
    return min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))


def _around(px: float, py: float, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Lower left corners: right, left, above, below and between, then further and further away."""
    for away in range(12, 160, 8):
        for dx, dy in ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 2), (1, -2), (-1, 2), (-1, -2)):
            yield px + dx * away - width * (1 - dx) / 2, py + dy * away - height * (1 - max(-1, min(1, dy))) / 2


def _overlap(a: _Box, b: _Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)
