"""The commands `gmodiff evaluate` and `gmodiff report`; everything heavy is imported when they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gmodiff.errors import InputError

SOME_FAILED = 1
"""Exit code where rows were made but some methods failed on some scenes; the report says which."""


@click.command(short_help="Measure methods on scenes whose truth is known.")
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...", type=click.Path(path_type=Path))
@click.option("-m", "--method", "methods", multiple=True, metavar="NAME",
              help="What to measure; may be repeated. Default: every method (see --list-methods). saved:FOLDER reads outputs "
                   "FOLDER/SCENE.exr (.hdr .npy .tif) in which 1.0 is the white of the short frame; "
                   "saved:FOLDER@reference: of the reference; saved:FOLDER@fit: unknown. model:CARD.json runs a network "
                   "(model:CARD.json@auto: with the response fitted; @refine: refined; @exact: in float32). "
                   "OURS=saved:FOLDER calls it OURS.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("results"), show_default=True,
              metavar="FOLDER", help="Rows, tables, plots and pictures go here.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), metavar="FOLDER", help="Where the pictures of a set file are.")
@click.option("--scenes", metavar="NAME,...", help="Only these scenes; patterns with * and ? will do.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME",
              help="Beyond PSNR, SSIM and PU21: jod, gms, lpips, dists, musiq, maniqa, clipiqa, or none; may be repeated. "
                   "Default: jod where it is installed.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Scenes measured beside each other.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Keep every method's picture, for the contact sheets.")
@click.option("--resume", is_flag=True, help="Keep the rows that are there and run what is missing, failed or changed.")
@click.option("--force", is_flag=True, help="Start anew where rows are there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--list-methods", is_flag=True, is_eager=True, expose_value=False,
              callback=lambda context, _, wanted: _list_methods(context) if wanted else None,
              help="Say what each method is, and end.")  # fmt: skip
def evaluate(
    datasets: tuple[Path, ...],
    methods: tuple[str, ...],
    output: Path,
    data: Path | None,
    scenes: str | None,
    metrics: tuple[str, ...],
    workers: int,
    pictures: bool,
    resume: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure methods on the scenes of DATASET: a set file (.toml), a folder of a published set, or a folder of brackets.

    \b
      gmodiff evaluate benchmarks/sets/synthetic-val.toml -o results/
      gmodiff evaluate SIG17/Test -m classical -m saved:my_outputs -o results/

    Writes one row a scene and method to FOLDER/DATASET.jsonl as they come (Ctrl-C loses at most the scene at hand; --resume goes on), then
    FOLDER/DATASET/report.md with tables, plots and contact sheets.
    """
    from gmodiff.datasets.dataset import open_dataset
    from gmodiff.evaluate.methods import METHODS
    from gmodiff.evaluate.report import write_report
    from gmodiff.evaluate.rows import latest, read_rows
    from gmodiff.evaluate.run import evaluate as run

    if resume and force:
        raise InputError("--resume and --force exclude each other: one keeps the rows that are there, the other drops them")
    opened = [open_dataset(path, data) for path in datasets]
    names = [d.name for d in opened]
    if len(set(names)) < len(names):
        raise InputError(f"two datasets are called {next(n for n in names if names.count(n) > 1)!r}: rename one, results go by name")
    extra = None if not metrics else [m for m in metrics if m != "none"]
    wanted = [part.strip() for part in scenes.split(",") if part.strip()] if scenes else []
    summary = []
    for dataset in opened:
        with _Watcher(dataset.name, quiet or as_json) as watch:
            outcome = run(
                dataset,
                output,
                methods=methods or tuple(METHODS),
                metrics=extra,
                scenes=wanted,
                workers=workers,
                resume=resume,
                force=force,
                pictures=pictures,
                progress=watch,
            )
        rows, damaged = read_rows(outcome.rows)
        notes = list(dict.fromkeys([*outcome.notes, *damaged]))
        report = write_report(latest(rows), output / dataset.name, dataset=dataset.name, notes=notes)
        told = {"dataset": dataset.name, "rows": str(outcome.rows), "report": str(report), "new": outcome.new}
        summary.append(told | {"kept": outcome.kept, "failed": outcome.failed, "notes": notes})
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    elif not quiet:
        for told in summary:
            _print(told, latest(read_rows(Path(str(told["rows"])))[0]))
    if any(told["failed"] for told in summary):
        sys.exit(SOME_FAILED)


@click.command(short_help="Make tables, plots and contact sheets from rows.")
@click.argument("rows", nargs=-1, required=True, metavar="ROWS.jsonl...", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
              help="Write FOLDER/DATASET/report.md, tables.tex, plots and sheets. Default: beside the rows.")  # fmt: skip
@click.option("--into", type=click.Path(path_type=Path, dir_okay=False), metavar="DOCUMENT.md",
              help="Instead, put the tables into a document, between its lines <!-- gmodiff report: begin --> and end.")  # fmt: skip
@click.option("--command", "made_by", metavar="TEXT", help="The command to name above the tables put into a document.")
def report(rows: tuple[Path, ...], output: Path | None, into: Path | None, made_by: str | None) -> None:
    """Make the report of `gmodiff evaluate` again, from its rows, or put its tables into a document."""
    from gmodiff.evaluate.report import insert_tables, write_report
    from gmodiff.evaluate.rows import latest, read_rows

    found: list[dict[str, Any]] = []
    for path in rows:
        some, damaged = read_rows(path)
        for note in damaged:
            click.echo(f"note: {note}", err=True)
        if not some:
            raise InputError(f"{path} holds no rows: gmodiff evaluate writes them")
        found += some
    kept = latest(found)
    if into is not None and output is not None:
        raise InputError("--into and -o exclude each other: tables go into a document, or a report into a folder")
    if into is not None:
        insert_tables(into, kept, command=made_by)
        click.echo(f"{into}: tables of {', '.join(sorted({r['dataset'] for r in kept}))}")
        return
    for name in sorted({r["dataset"] for r in kept}):
        folder = (output or rows[0].parent) / name
        click.echo(write_report([r for r in kept if r["dataset"] == name], folder, dataset=name))


def _list_methods(context: click.Context) -> None:
    from gmodiff.evaluate.methods import METHODS

    for m in METHODS.values():
        click.echo(f"{m.name:15} {m.about}{' (one factor fitted)' if m.fitted else ''}")
    click.echo(f"{'saved:FOLDER':15} outputs from files, FOLDER/SCENE.exr (.hdr .npy .tif)")
    click.echo(f"{'model:CARD':15} a network by the path of its card (.json)")
    context.exit()


def _print(told: Mapping[str, Any], rows: list[Mapping[str, Any]]) -> None:
    """A line for each method and where everything is."""
    import statistics

    for name in dict.fromkeys(r["method"] for r in rows):
        fine = [r for r in rows if r["method"] == name and r["status"] == "ok"]
        line = f"  {name:15} {len(fine):3} scenes"
        for key, shown in (("psnr_mu", "PSNR-mu {:.2f} dB"), ("psnr_l", "PSNR-l {:.2f} dB"), ("jod", "JOD {:.2f}")):
            values = [r["metrics"][key] for r in fine if r["metrics"].get(key) is not None]
            if values:
                line += f"  {shown.format(statistics.fmean(values))}" + (f" ({len(values)} scenes)" if len(values) < len(fine) else "")
        failed = sum(r["method"] == name and r["status"] == "failed" for r in rows)
        click.echo(line + (f"  {failed} FAILED" if failed else ""))
    click.echo(f"{told['dataset']}: {told['new']} rows new, {told['kept']} kept, {told['failed']} failed; {told['report']}")
    failures = [r for r in rows if r["status"] == "failed"]
    for row in failures[:5]:
        click.echo(f"failed: {row['scene']}, {row['method']}: {row['error']}", err=True)
    if len(failures) > 5:
        click.echo(f"failed: {len(failures) - 5} more, named in the report", err=True)
    for note in told["notes"]:
        click.echo(f"note: {note}", err=True)


class _Watcher:
    """Progress on stderr: a bar with the time left on a terminal, a line a scene elsewhere, nothing when quiet."""

    def __init__(self, name: str, quiet: bool) -> None:
        self._name, self._quiet = name, quiet
        self._bar: Any = None
        self._task: Any = None
        self._seen: dict[str, list[str]] = {}

    def __enter__(self) -> _Watcher:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._name)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            click.echo(f"{self._name}: the rows so far are kept; --resume goes on from there", err=True)

    def __call__(self, done: int, total: int, row: Mapping[str, Any] | None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=self._name if row is None else str(row["scene"]))
        elif row is not None and not self._quiet:
            value = row["metrics"].get("psnr_mu")
            shown = row["status"] if row["status"] != "ok" else "-" if value is None else f"{value:.2f}"
            click.echo(f"{done}/{total} {row['scene']} {row['method']} {shown}", err=True)
