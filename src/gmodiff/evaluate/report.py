"""Rows to what people read: a report with tables, plots and contact sheets, and tables put into a document."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from gmodiff.errors import InputError, MissingDependencyError, OutputError
from gmodiff.evaluate.markup import latex, markdown, markdown_text
from gmodiff.evaluate.plots import save_plots
from gmodiff.evaluate.rows import Row, latest
from gmodiff.evaluate.sheets import save_sheet
from gmodiff.evaluate.statistics import Summary, summary
from gmodiff.evaluate.tables import Table, failures, provenance, settings, tables
from gmodiff.writer import replacing

BEGIN, END = "<!-- gmodiff report: begin -->", "<!-- gmodiff report: end -->"


def write_report(rows: Sequence[Row], folder: Path, *, dataset: str, notes: Sequence[str] = (), plots: bool = True) -> Path:
    """Write folder/report.md, tables.tex, plots/*.png and, from folder/pictures/, sheets/<scene>.jpg; the path of report.md.

    notes: sentences for the reader, set above the tables. Without Matplotlib the report has no plots and says so.
    Raises InputError where the dataset has no rows, OutputError where the folder cannot be written.
    """
    of = summary(rows, dataset)
    made = tables(of)
    try:
        for name in ("plots", "sheets"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    lines = [f"# {markdown_text(dataset)}", ""]
    lines += [*(f"- {markdown_text(note)}" for note in notes), *([""] if notes else [])]
    for table in made:
        lines += [f"## {markdown_text(_short_title(table, of))}", "", markdown(table)]
    if plots:
        lines += _plots(of, folder)
    sheets = _sheets(of, folder)
    if sheets:
        lines += ["## Contact sheets", "", *sheets, ""]
    lines += ["## Settings", "", *_provenance(of), ""]
    _put(folder / "tables.tex", _tex(made))
    _put(folder / "report.md", "\n".join(lines))
    return folder / "report.md"


def insert_tables(document: Path, rows: Sequence[Row], *, command: str | None = None) -> None:
    """Replace what stands between BEGIN and END in a Markdown document by the tables of every dataset in rows.

    command: what made the rows, named above the tables. Raises InputError where the document or exactly one pair of marks is not there.
    """
    try:
        with document.open(encoding="utf-8", newline="") as stream:  # line ends outside the marks stay as they are
            text = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{document}: cannot be read ({error})") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise InputError(f"{document} needs the lines {BEGIN} and {END}, once each: the tables go between them")
    kept = latest(rows)
    lines = [BEGIN, ""]
    if command:
        lines += [f"`{command}`", ""]
    for dataset in dict.fromkeys(r["dataset"] for r in kept):
        of = summary(kept, dataset)
        lines += [f"### {markdown_text(dataset)}", ""]
        for table in tables(of):
            if table.name != "main":
                lines += [f"**{markdown_text(_short_title(table, of))}**", ""]
            lines.append(markdown(table))
        lines += ["<details><summary>Settings</summary>", "", *_provenance(of), "", "</details>", ""]
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    _put(document, before + "\n".join(lines) + after)


def _short_title(table: Table, of: Summary) -> str:
    title = table.title.removeprefix(f"{of.dataset}: ")
    return title[:1].upper() + title[1:]


def _plots(of: Summary, folder: Path) -> list[str]:
    try:
        paths = save_plots(of, folder / "plots")
    except MissingDependencyError as error:
        return [f"No plots: {markdown_text(str(error))}.", ""]
    return ["## Plots", "", *(f"![{p.stem.replace('_', ' ')}](plots/{p.name})\n" for p in paths)] if paths else []


def _sheets(of: Summary, folder: Path) -> list[str]:
    """A line for each scene whose pictures were kept."""
    lines = []
    for scene in of.scenes:
        rows = [of.rows[scene, m] for m in of.methods if (scene, m) in of.rows]
        if save_sheet(folder / "pictures" / scene, rows, folder / "sheets" / f"{scene}.jpg"):
            lines.append(f"- [{markdown_text(scene)}](sheets/{quote(scene)}.jpg)")
    return lines


def _provenance(of: Summary) -> list[str]:
    lines = [f"- {markdown_text(line)}" for line in (*provenance(of), *settings(of))]
    failed = failures(of)
    return lines + (["", "Failed:", "", *(f"- {markdown_text(line)}" for line in failed)] if failed else [])


def _tex(made: Sequence[Table]) -> str:
    head = "% Made by gmodiff report. Needs \\usepackage{booktabs} and \\usepackage{graphicx}.\n"
    return head + "\n" + "\n".join(latex(t) for t in made)


def _put(path: Path, text: str) -> None:
    with replacing(path, force=True) as temporary:
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="")
