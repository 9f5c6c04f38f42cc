"""The command `gmodiff batch`; everything heavy is imported when it runs."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmodiff.batch.storage import is_url
from gmodiff.batch.watcher import Watcher
from gmodiff.batch.wording import MOST_ALIKE, by_reason, counted, printable, some_of
from gmodiff.errors import InputError, OutputError

if TYPE_CHECKING:
    from gmodiff.batch.one_set import Settings
    from gmodiff.batch.plan_file import PlanFile
    from gmodiff.batch.run import Outcomes
    from gmodiff.batch.workers import Stop

SOME_FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
"""Exit codes: pictures were made, but some sets failed; after Ctrl-C; after SIGTERM."""


def _bytes(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([MG])i?B?", text.strip(), re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise InputError(f"--memory {text!r}: expected a size with its unit, as 8G or 500M")
    return int(float(found[1]) * {"M": 1e6, "G": 1e9}[found[2].upper()])


def _local_file(_: click.Context, option: click.Parameter, text: str | None) -> Path | None:
    if text is not None and is_url(text):
        raise InputError(f"--{option.name} {text}: expected a file of this machine, which can grow line by line")
    return None if text is None else Path(text)


@click.command(short_help="Merge a card full of brackets, here or on a cluster.")
@click.argument("cards", nargs=-1, metavar="CARD...")
@click.option("-o", "--output", metavar="FOLDER|URL", help="Where the pictures, the manifest and the report go.")
@click.option("--list", "lists", multiple=True, metavar="FILE", help="Also take the paths and URLs in this text file, one a line.")
@click.option("--frames", type=int, metavar="N", help="Every bracket has N photos. Default: found from the photos' metadata.")
@click.option("--pattern", metavar="TEXT", help="Brackets by file name: a glob as '{set}_*.jpg', or a regular expression with one group.")
@click.option("--name", "template", metavar="TEMPLATE", show_default="{stem}_{count}.jpg",
              help="Name of each picture; the suffix says what it is. Fields: {stem} {count} {number} {folder} {date}.")  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and end; with --json as JSON, which can be edited and given as CARD.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Sets made at once. Default: by cores and free memory.")
@click.option("--memory", callback=_bytes, metavar="SIZE", help="Memory that all workers may take, as 8G. Default: most of what is free.")
@click.option("--again", is_flag=True, help="Make everything anew, also what is done and up to date.")
@click.option("--force", is_flag=True, help="Replace files in the output folder that are not of this batch.")
@click.option("--manifest", callback=_local_file, type=click.Path(dir_okay=False), metavar="FILE",
              help="The manifest. Default: batch.jsonl in the output folder; needed where that is a URL.")  # fmt: skip
@click.option("--cluster", metavar="ADDRESS", help="Let the workers of this dask scheduler make the sets (tcp://HOST:8786).")
@click.option(
    "--model", default="compact", show_default=True, metavar="NAME", help="As of gmodiff merge: compact, none, or a card (.json)."
)
@click.option("--runtime", type=click.Choice(["auto", "openvino", "onnxruntime", "torch"]), default="auto", show_default=True,
              help="What runs the network.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Where the runtime computes.")
@click.option("--exact", is_flag=True, help="Run the network in float32.")
@click.option("--estimate-size", type=click.Choice(["auto", "full", "half"]), default="auto", show_default=True,
              help="How large the network sees the picture.")  # fmt: skip
@click.option("--tile", type=int, metavar="PX", help="Side of the network's tiles, 512 or more: less memory.")
@click.option("--refine", type=click.FloatRange(0, 1), default=0.0, show_default=True, metavar="0..1", help="How much the refiner adds.")
@click.option("--keep-noise", is_flag=True, help="Do not reduce noise where the reference measured.")
@click.option("--response", default="auto", show_default=True, metavar="CURVE", help="Camera response, as of gmodiff merge.")
@click.option("--no-align", is_flag=True, help="The photos are registered already.")
@click.option("--look", type=click.Choice(["camera", "linear"]), default="camera", show_default=True, help="The HDR picture.")
@click.option("--headroom", type=click.FloatRange(0.25, 6), default=3.0, show_default=True, metavar="STOPS",
              help="Most that the HDR picture may rise above SDR white.")  # fmt: skip
@click.option("--base", type=click.Choice(["tonemap", "reference"]), default="tonemap", show_default=True, help="The SDR picture.")
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="JPEG and AVIF quality.")
@click.option("--compact", is_flag=True, help="Smaller Ultra HDR.")
@click.option("--strip", is_flag=True, help="Leave out EXIF.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=250_000_000, show_default=True, help="Refuse larger photos.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was done, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def batch(
    cards: tuple[str, ...],
    output: str | None,
    lists: tuple[str, ...],
    frames: int | None,
    pattern: str | None,
    template: str | None,
    dry_run: bool,
    workers: int | None,
    memory: int | None,
    again: bool,
    force: bool,
    manifest: Path | None,
    cluster: str | None,
    as_json: bool,
    quiet: bool,
    no_align: bool,
    **options: Any,
) -> None:
    """Find the brackets in folders, files, lists and URLs, and merge each into an HDR photo.

    \b
      gmodiff batch CARD/ --dry-run                                   # which photos belong together, and what is left over
      gmodiff batch CARD/ -o OUT/                                     # all of them; run it again to go on, or for what is new
      gmodiff batch CARD/ --dry-run --json > plan.json                # to edit; then: gmodiff batch plan.json -o OUT/
      gmodiff batch s3://card/ -o s3://out/ --manifest out.jsonl --cluster tcp://host:8786

    Writes each picture whole or not at all, a line about it to OUT/batch.jsonl, and at the end OUT/batch.html: the pictures, the worst
    first. Photos are never changed. Exit code 1: some sets failed, the others are made.
    """
    if output is None and not dry_run:
        raise InputError("-o FOLDER: say where the pictures go, or --dry-run to see the plan")
    from gmodiff.batch.plan_file import check_names, check_template

    settings = _settings(no_align=no_align, **options)  # bad ones are refused before a card of thousands is looked through
    if template is not None:
        check_template(template)
    try:
        plan = _plan(cards, lists, frames, pattern, template, output, quiet or as_json)
    except KeyboardInterrupt:
        click.echo("gmodiff: stopped while looking at photos; nothing was begun", err=True)
        sys.exit(INTERRUPTED)
    if dry_run:
        click.echo(json.dumps(plan.as_dict(), indent=1) if as_json else plan.as_text())
        check_names(plan.sets)  # afterwards, since the table shows what to do about it
        return
    check_names(plan.sets)
    assert output is not None

    from gmodiff.batch.contact_sheet import check_report, write_contact_sheet
    from gmodiff.batch.run import manifest_of, report_of, run_batch

    place = manifest_of(output, manifest)
    check_report(report_of(output, manifest), force=force)
    with _heard(quiet) as stop, _Shown(quiet or as_json) as shown:
        _note_leftovers(plan, shown)
        done = run_batch(
            plan,
            output,
            settings,
            manifest=manifest,
            workers=workers,
            memory=memory,
            cluster=cluster,
            again=again,
            force=force,
            watcher=shown,
            stop=stop,
        )
    page = write_contact_sheet(place, output, report_of(output, manifest), plan)
    _told(done, plan, place, page, as_json, quiet)
    left = f"{counted(len(done.left), 'set')} {'is' if len(done.left) == 1 else 'are'} left, run again to go on"
    if done.disk_full:
        undone = len(done.left) + len(done.failed)
        raise OutputError(f"{done.disk_full}; {counted(undone, 'set')} {'is' if undone == 1 else 'are'} not made, run again to go on")
    if stop.drop or (stop.finish and done.left):
        dropped = "; what was not finished has been removed" if done.dropped and cluster is None else ""
        dropped = "; a set that a worker of the cluster is making may still appear" if done.dropped and cluster is not None else dropped
        click.echo(f"gmodiff: stopped; {left}{dropped}", err=True)
        sys.exit(TERMINATED if stop.terminated else INTERRUPTED)
    if done.failed:
        sys.exit(SOME_FAILED)


def _note_leftovers(plan: PlanFile, shown: Watcher) -> None:
    """How much is not merged, and what of it may be damaged photos."""
    if plan.leftovers:
        shown.note(f"{counted(len(plan.leftovers), 'file')} left over; --dry-run says why")
    if plan.hidden:
        shown.note(f"{counted(plan.hidden, 'hidden file')} passed over")
    reasons = dict(plan.leftovers)
    for alike in by_reason((place, reasons[place]) for place in plan.unreadable):
        for place, why in alike[:MOST_ALIKE]:
            shown.note(f"cannot be read: {printable(place)}: {printable(why)}")
        if len(alike) > MOST_ALIKE:
            shown.note(f"cannot be read: {counted(len(alike) - MOST_ALIKE, 'file')} more for the same reason")
    doubtful = [s for s in plan.sets if s.doubt]
    for one in doubtful[:MOST_ALIKE]:
        shown.note(f"{printable(one.output)} may lack a photo: {printable(one.doubt)}")
    if len(doubtful) > MOST_ALIKE:
        shown.note(f"{counted(len(doubtful) - MOST_ALIKE, 'more set')} may lack a photo; --dry-run says which")


@contextmanager
def _heard(quiet: bool) -> Iterator[Stop]:
    """What Ctrl-C and SIGTERM ask for: the first Ctrl-C ends after the sets at hand, the second and SIGTERM drop them."""
    from gmodiff.batch.workers import Stop

    stop = Stop()

    def interrupted(*_: object) -> None:
        stop.drop = stop.finish
        stop.finish = True
        if not quiet:
            text = "dropping the sets at hand" if stop.drop else "finishing the sets at hand; Ctrl-C again drops them"
            os.write(2, f"\ngmodiff: {text}\n".encode())  # the interrupted code may be inside a write to stderr itself

    def terminated(*_: object) -> None:
        stop.terminated = stop.drop = stop.finish = True

    before = [(s, signal.signal(s, handler)) for s, handler in ((signal.SIGINT, interrupted), (signal.SIGTERM, terminated))]
    try:
        yield stop
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _plan(
    cards: tuple[str, ...],
    lists: tuple[str, ...],
    frames: int | None,
    pattern: str | None,
    template: str | None,
    output: str | None,
    quiet: bool,
) -> PlanFile:
    from gmodiff.batch.card import read_card, read_list
    from gmodiff.batch.plan_file import TEMPLATE, plan_of, read_plan
    from gmodiff.grouping import group, name_pattern

    sources = [*cards, *(line for file in lists for line in read_list(file))]
    if not sources:
        raise InputError("nothing to look through: gmodiff batch CARD/ -o OUT/")
    plans = [c for c in cards if c.lower().endswith(".json")]
    if plans:
        given = {"--frames": frames, "--pattern": pattern, "--name": template}
        idle = [option for option, value in given.items() if value is not None]
        if len(sources) > 1 or idle:
            raise InputError(f"{plans[0]} is a plan, which says everything: give it alone, without {', '.join(idle) or 'other places'}")
        return read_plan(Path(plans[0]))
    if pattern is not None:
        name_pattern(pattern)
    skip = [output] if output is not None and os.path.realpath(output) not in {os.path.realpath(s) for s in sources} else []
    card = read_card(sources, skip=skip, progress=None if quiet else _counted())
    return plan_of(group(card.shots, frames=frames, pattern=pattern), card, template or TEMPLATE)


def _counted() -> Callable[[int, int], None] | None:
    """Counts photos on a terminal, since a card of thousands takes a while."""
    if not sys.stderr.isatty():
        return None

    def told(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            click.echo(f"\rlooking at photos: {done} of {total}" + ("\n" if done == total else ""), err=True, nl=False)

    return told


def _settings(*, no_align: bool, **options: Any) -> Settings:
    """The options as settings, with the state of the network and of its refiner, so that new ones count as a change."""
    from gmodiff.batch.one_set import Settings
    from gmodiff.model_card import FULL_MODEL
    from gmodiff.networks import check_network, refuse_idle
    from gmodiff.runtime import NO_MODEL, state_of

    for option, expected in (("headroom", "0.25 to 6 stops"), ("refine", "0 to 1")):
        if math.isnan(options[option]):
            raise InputError(f"--{option} nan: expected {expected}")
    model = options["model"]
    if model == FULL_MODEL:
        raise InputError(f"--model {model}: needs its weights named; give the card that gmodiff convert --fold-lora makes of them")
    if model == NO_MODEL:
        refuse_idle({"--refine": options["refine"] > 0, "--keep-noise": options["keep_noise"]})
    weights = ""
    if model != NO_MODEL:  # what is wrong with it is said once, not for every set; what runs it is the workers' matter
        weights = state_of(model, refined=options["refine"] > 0)
        check_network(model, tile=options["tile"], refine=options["refine"], keep_noise=options["keep_noise"])
    return Settings(align=not no_align, weights=weights, **options)


def _told(done: Outcomes, plan: PlanFile, manifest: Path, page: Path, as_json: bool, quiet: bool) -> None:
    if as_json:
        facts = {"made": done.made, "kept": done.kept, "failed": done.failed, "left": done.left, "seconds": round(done.seconds, 1)}
        facts |= {"doubtful": {s.output: s.doubt for s in plan.sets if s.doubt}, "no_longer_planned": done.unplanned}
        facts |= {"errors": done.errors, "workers": done.workers, "manifest": str(manifest), "report": str(page)}
        facts |= {"leftovers": [{"photo": p, "why": w} for p, w in plan.leftovers], "hidden": plan.hidden}
        click.echo(json.dumps(facts, indent=1))
    elif not quiet:
        failed = f", {len(done.failed)} failed" if done.failed else ""
        kept = f", {len(done.kept)} up to date already" if done.kept else ""
        doubtful = sum(bool(s.doubt) for s in plan.sets)
        lacking = f" ({doubtful} may lack a photo)" if doubtful else ""
        click.echo(f"{counted(len(done.made), 'set')} made{kept}{failed}{lacking} in {_duration(done.seconds)}; look through {page}")
        if done.unplanned:
            pictures = f"{counted(len(done.unplanned), 'earlier picture')} {'is' if len(done.unplanned) == 1 else 'are'}"
            click.echo(f"{pictures} no longer in the plan, kept and marked so there: {printable(some_of(done.unplanned))}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class _Shown(Watcher):
    """Progress on stderr: on a terminal a bar with rate and time left, failures above it as they come; else a line a set."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None
        self._task: Any = None
        self._total = self._done = self._failed = self._workers = 0
        self._began = time.monotonic()

    def __enter__(self) -> _Shown:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("Merging"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begins(self, total: int, kept: int, workers: int) -> None:
        """See `batch.Watcher`."""
        self._total, self._workers, self._began = total, workers, time.monotonic()
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total)
        up_to_date = f", {kept} up to date already" if kept else ""
        self.note(f"{counted(total, 'set')} to make{up_to_date}" + (f", {counted(workers, 'worker')}" if workers and total else ""))

    def ended(self, output: str, row: Any) -> None:
        """See `batch.Watcher`."""
        self._done += 1
        failed = row["status"] == "failed"
        self._failed += failed
        if failed:
            self._error(f"failed: {printable(output)}: {printable(row['error'])}")
        elif self._bar is None and not self._quiet:
            click.echo(f"{self._done}/{self._total} {printable(output)} {row.get('seconds') or 0:.1f} s; {self._pace()}", err=True)
        self.tick(0)

    def tick(self, running: int) -> None:
        """See `batch.Watcher`."""
        if self._bar is not None and self._task is not None:
            failed = f", [red]{self._failed} failed[/red]" if self._failed else ""
            at_hand = f", {running} at hand" if running else ""
            self._bar.update(self._task, completed=self._done, description=f"{self._pace()}{at_hand}{failed}")

    def _error(self, text: str) -> None:
        if self._bar is not None:
            self.note(text)
        else:
            click.echo(text, err=True)  # however quiet: it is an error

    def note(self, text: str) -> None:
        """See `batch.Watcher`."""
        if self._bar is not None:
            self._bar.console.print(printable(text), markup=False, highlight=False)
        elif not self._quiet:
            click.echo(printable(text), err=True)

    def _pace(self) -> str:
        """Sets a minute so far, and the time that the rest takes at that rate."""
        took = time.monotonic() - self._began
        if not self._done or took <= 0:
            return "rate not known yet"
        rate = self._done / took
        return f"{60 * rate:.1f} sets/min, {_duration((self._total - self._done) / rate)} left"
