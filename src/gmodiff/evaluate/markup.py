"""Tables as text: in Markdown and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gmodiff.evaluate.tables import Cell, Table


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
