"""The training curve of a run, from its log."""

from __future__ import annotations

import json
from pathlib import Path


def plot_log(log: Path, to: Path) -> None:
    """Loss, and what the checks found, over steps, as a PNG; does nothing where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    checks = [(line["step"], line["check"]) for line in lines if "check" in line]
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(*zip(*losses, strict=True), linewidth=0.8)
    above.set(ylabel="loss")
    found = sorted({k for _, c in checks for k in c})
    beside = below.twinx()
    for n, name in enumerate(found):
        side = below if "psnr" in name else beside
        side.plot([s for s, _ in checks], [c[name] for _, c in checks], marker=".", label=name, color=f"C{n}")
    below.set(xlabel="step", ylabel="PSNR on the scenes that steer (dB)")
    beside.set(ylabel="other figures")
    if found:
        figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(to, dpi=110)
