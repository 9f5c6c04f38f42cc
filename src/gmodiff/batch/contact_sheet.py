"""The report of a batch: one page of small pictures, the worst first, that a person looks through in minutes; no other file is needed."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gmodiff.batch.manifest import FAILED, Manifest
from gmodiff.batch.plan_file import PlanFile
from gmodiff.batch.run import no_longer_planned, preview_of
from gmodiff.batch.storage import is_url, join, size
from gmodiff.batch.wording import MOST_ALIKE, by_reason, counted, printable
from gmodiff.errors import InputError
from gmodiff.writer import replacing

TITLE = "<title>gmodiff batch</title>"
"""By which a report of a batch is known."""

MOST_PICTURES = 2000
"""Pictures on a page; a browser holds no more of them comfortably. The rest, without warnings as far as that goes, is counted."""

MUCH_INFERRED_PERCENT, MUCH_DISAGREEMENT_STOPS, LITTLE_HEADROOM_STOPS, FAR_MOVED_SHARE = 1.0, 0.25, 0.2, 0.05
"""Beyond these a set is worth a look."""


ROUTINE = "refined by the pixels"
"""In notes that tell of what is done with most brackets: exposures from metadata are rounded."""

GONE, NO_LONGER_PLANNED = "gone", "no longer in the plan: of an earlier run, and never removed by this program"
"""Mark of a row whose set the plan no longer holds, and what the page says of it."""


def warnings_of(row: Mapping[str, Any]) -> list[str]:
    """What is worth a look in a finished set, the worst first."""
    doubt = [str(row["doubt"])] if row.get("doubt") else []
    if row["status"] == FAILED:
        return [str(row.get("error", "failed")), *doubt]
    result = row.get("result") or {}
    found = doubt
    inferred = _inferred(row)
    if inferred >= MUCH_INFERRED_PERCENT:
        found.append(f"{inferred:.1f} % of the picture is inferred")
    disagreement = result.get("disagreement_stops")
    if disagreement is not None and disagreement >= MUCH_DISAGREEMENT_STOPS:
        found.append(f"photos disagree by {disagreement:.2f} stops")
    moved = result.get("moved_px") or 0.0
    if moved > FAR_MOVED_SHARE * max(result.get("width", 0), result.get("height", 0), 1):
        found.append(f"a photo was moved by {moved:.0f} pixels")
    headroom = result.get("headroom_stops")
    if headroom is not None and headroom < LITTLE_HEADROOM_STOPS:
        found.append("hardly any HDR: nothing much brighter than white")
    return [*found, *(n for n in map(str, result.get("notes") or []) if ROUTINE not in n)]


def worst_first(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Failed sets, then by how much is wrong: inferred area, disagreement, number of warnings; else by name."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        disagreement = (row.get("result") or {}).get("disagreement_stops") or 0.0
        # Per cent inferred over its threshold, stops over theirs: 1 each where it begins to be worth a look.
        badness = _inferred(row) / MUCH_INFERRED_PERCENT + disagreement / MUCH_DISAGREEMENT_STOPS
        return row["status"] != FAILED, not warnings_of(row), -badness, row["output"]

    return sorted(rows, key=key)


def write_contact_sheet(manifest: Path, output: str, page: Path, plan: PlanFile | None = None) -> Path:
    """The page of everything a manifest tells, and of what a plan leaves over or no longer holds.

    Raises InputError where the manifest cannot be read, OutputError where the page cannot be written.
    """
    record = Manifest(manifest)
    unplanned = set() if plan is None else set(no_longer_planned(record, plan))
    gone = {n for n in unplanned if n in record.done and size(join(output, n)) is not None}  # the others are nowhere any more
    doubts = {} if plan is None else {s.output: s.doubt for s in plan.sets}
    rows = worst_first(
        [{**r, "doubt": doubts.get(name, r.get("doubt", ""))} for name, r in record.finished.items() if name not in unplanned]
    )
    failed = sum(r["status"] == FAILED for r in rows)
    warned = sum(bool(warnings_of(r)) for r in rows) - failed
    summary = f"{counted(len(rows), 'set')}: {failed} failed, {warned} with warnings, {len(rows) - failed - warned} without"
    summary += f"; {len(gone)} no longer in the plan" if gone else ""
    rows += [{**record.finished[name], GONE: True} for name in sorted(gone)]
    shown = rows[:MOST_PICTURES]
    cards = "\n".join(_card(row, manifest, output, page) for row in shown)
    more = len(rows) - len(shown)
    left_out = f"<p>{counted(more, 'more set')} {'is' if more == 1 else 'are'} in {html.escape(manifest.name)}.</p>" if more else ""
    left_out += "" if plan is None else _leftovers(plan)
    parts = {"@TITLE@": TITLE, "@SUMMARY@": summary, "@CARDS@": cards, "@LEFT@": left_out}
    content = re.sub("|".join(parts), lambda mark: parts[mark[0]], _PAGE)  # at once: a file may be called @CARDS@
    with replacing(page, force=True) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="replace")
    return page


def check_report(page: Path, *, force: bool) -> None:
    """Raise InputError where something that is no report of a batch has its name."""
    try:
        with page.open("rb") as stream:
            ours = TITLE.encode() in stream.read(1000)
    except OSError:
        return
    if not ours and not force:
        raise InputError(
            f"{page} exists and is no report of a batch: move it away, or --force to replace it, or give another output folder"
        )


def _leftovers(plan: PlanFile) -> str:
    """Files that are in no set, by their reasons."""
    if not plan.leftovers:
        return ""
    lines = []
    for alike in by_reason(plan.leftovers):
        lines += [f"<li>{html.escape(printable(place))}: {html.escape(printable(why))}</li>" for place, why in alike[:MOST_ALIKE]]
        more = len(alike) - MOST_ALIKE
        lines += [f"<li>and {counted(more, 'file')} more for the same reason</li>"] if more > 0 else []
    return f"<details><summary>{counted(len(plan.leftovers), 'file')} left over</summary><ul>{''.join(lines)}</ul></details>"


def _inferred(row: Mapping[str, Any]) -> float:
    provenance = (row.get("result") or {}).get("provenance") or {}
    return float(provenance.get("inferred_percent") or 0.0)


def _card(row: Mapping[str, Any], manifest: Path, output: str, page: Path) -> str:
    name = html.escape(row["output"])
    notes = [NO_LONGER_PLANNED] if row.get(GONE) else warnings_of(row)
    state = "gone" if row.get(GONE) else "failed" if row["status"] == FAILED else "warned" if notes else "fine"
    told = "".join(f"<li>{html.escape(n)}</li>" for n in notes[:6]) + (f"<li>{len(notes) - 6} more</li>" if len(notes) > 6 else "")
    photos = ", ".join(html.escape(str(p.get("place", "")).rsplit("/", 1)[-1]) for p in row["photos"])
    picture = '<div class="none">no picture</div>'
    if row["status"] != FAILED:
        try:
            data = base64.b64encode(preview_of(manifest, row["output"]).read_bytes()).decode()
            picture = (
                f'<a href="{_link(row["output"], output, page)}"><img alt="{name}" loading="lazy" src="data:image/jpeg;base64,{data}"></a>'
            )
        except OSError:
            pass
    return (
        f'<article class="{state}">{picture}<h2>{name}</h2>{_numbers(row)}'
        f"{f'<ul>{told}</ul>' if told else ''}<p class=photos>{photos}</p></article>"
    )


def _numbers(row: Mapping[str, Any]) -> str:
    result = row.get("result")
    if not result:
        return ""
    where = result["provenance"]
    headroom = result.get("headroom_stops")
    pairs = [
        ("headroom", "none" if headroom is None else f"{headroom:.1f} stops"),
        ("highlights", f"+{where['highlight_stops']:.1f} stops"),
        ("shadows", f"+{where['shadow_stops']:.1f} stops"),
        ("inferred", f"{where['inferred_percent']:.2f} %"),
    ]
    return "<dl>" + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs) + "</dl>"


def _link(name: str, output: str, page: Path) -> str:
    """To the result: relative where the page lies in the output folder."""
    if is_url(output):
        return html.escape(join(output, name))
    folder = Path(output).resolve()
    return quote(os.fsencode(name)) if folder == page.resolve().parent else html.escape("file://" + quote(os.fsencode(folder / name)))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
@TITLE@
<style>
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --ink: #1b1b1b; --soft: #666; --bad: #b3261e; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) {
  :root { --back: #141414; --card: #1f1f1f; --ink: #eee; --soft: #a5a5a5; --bad: #ff8a80; --warn: #e9b44c; }
}
body { margin: 0; padding: 16px; background: var(--back); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: baseline; margin-bottom: 16px; }
h1 { font-size: 20px; margin: 0; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; align-items: start; }
article { background: var(--card); border-radius: 8px; overflow: hidden; border-top: 4px solid transparent; }
article.failed { border-color: var(--bad); } article.warned { border-color: var(--warn); }
img, .none { display: block; width: 100%; aspect-ratio: 3 / 2; object-fit: contain; background: #808080; }
.none { display: grid; place-items: center; color: #fff; }
h2 { font-size: 15px; margin: 8px 12px 4px; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5em, 1fr)); gap: 2px 14px; margin: 0 12px 8px; font-size: 14px; }
dl div { display: flex; justify-content: space-between; gap: 0 8px; flex-wrap: wrap; } dt { color: var(--soft); }
dd { margin: 0 0 0 auto; font-variant-numeric: tabular-nums; }
ul { margin: 0 12px 8px; padding-left: 18px; overflow-wrap: anywhere; } .failed ul { color: var(--bad); } .warned ul { color: var(--warn); }
.photos { margin: 0 12px 12px; color: var(--soft); font-size: 13px; overflow-wrap: anywhere; }
article.gone { opacity: 0.6; } details { margin: 16px 0; overflow-wrap: anywhere; }
body:has(#warned:checked) article.fine { display: none; }
</style>
<header><h1>@SUMMARY@</h1><label><input type="checkbox" id="warned"> only those with warnings</label></header>
<main>
@CARDS@
</main>
@LEFT@
</html>
"""
