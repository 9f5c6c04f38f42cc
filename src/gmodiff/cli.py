"""The command `gmodiff`. Each subcommand imports what it needs when it runs, so that --help stays instant."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmodiff import __version__
from gmodiff.batch.command import batch
from gmodiff.errors import GMODiffError, InputError
from gmodiff.evaluate.command import evaluate, report
from gmodiff.train.command import train
from gmodiff.web.command import serve

if TYPE_CHECKING:
    from gmodiff.image import Bracket
    from gmodiff.model_card import Card

BAD_INPUT, INTERRUPTED = 2, 130
MIN_HEADROOM, MAX_HEADROOM = 0.25, 6.0  # as tonemap.render, which takes longer to import than to be told


def main() -> None:
    """Run the command: 0 when done, 2 for anything the user can mend (one line on stderr), 130 after Ctrl-C."""
    try:
        command(prog_name="gmodiff", standalone_mode=False)
    except GMODiffError as error:
        click.echo(f"gmodiff: {_as_typed(str(error), sys.argv[1:])}", err=True)
        sys.exit(BAD_INPUT)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        message = " ".join(error.format_message().split())
        asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else "gmodiff"
        click.echo(f"gmodiff: {message} (see {asked} --help)", err=True)
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        click.echo("gmodiff: stopped; files that were not finished have been removed", err=True)
        sys.exit(INTERRUPTED)
    except MemoryError:
        click.echo("gmodiff: not enough memory for photos of this size: close other programs, or merge smaller copies", err=True)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        sys.exit(0)


def _as_typed(message: str, words: list[str]) -> str:
    """A message of the library that begins with the name of an argument, as in "tile 5: expected ...", with the option's name instead."""
    asked: click.Command | None = command
    for word in words:
        if not isinstance(asked, click.Group):
            break
        asked = asked.commands.get(word)
    options = {o for p in asked.params for o in p.opts} if asked is not None else set()
    named = _ARGUMENT.match(message)
    return f"--{message}" if named and f"--{named[1]}" in options else message


_ARGUMENT = re.compile(r"([a-z-]+) ('[^']*' |'[^']*': |\[[^\]]*\] |[^\s:']+(, [^\s:']+)*: )")
"""An argument's name and its value, in quotes, in brackets or up to a colon; not the beginning of any other sentence."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gmodiff")
def command() -> None:
    """Turn a bracket of ordinary photos into a true HDR photo, without inventing what was measured."""


def _numbers(_: click.Context, parameter: click.Parameter, text: str | None) -> list[float] | None:
    if text is None:
        return None
    example = "-2,0,2" if parameter.name == "ev" else "1/400,1/100,1/25"
    try:
        return [float(Fraction(part)) if "/" in part else float(part) for part in text.replace(",", " ").split()]
    except (ValueError, ZeroDivisionError):
        raise InputError(f"--{parameter.name} {text!r}: expected one number per photo, separated by commas, as in {example}") from None


@command.command(short_help="Merge a bracket of photos into an HDR photo.")
@click.argument("photos", nargs=-1, metavar="PHOTO...")
@click.option("-o", "--output", "outputs", multiple=True, metavar="FILE",
              help="Where to write; may be repeated. The suffix says what: .jpg (Ultra HDR), .avif .png .jxl (HDR rendition), "
                   ".exr .hdr .tif (scene-linear radiance). Default: the first photo's name with _hdr.jpg, here.")  # fmt: skip
@click.option("--ev", callback=_numbers, metavar="N,N,...",
              help="Exposure of each photo in stops, brighter = higher, in the order given: -2,0,2.")  # fmt: skip
@click.option("--exposures", callback=_numbers, metavar="N,N,...",
              help="Relative exposure of each photo in the order given: 1,4,16, or shutter times, 1/400,1/100,1/25.")  # fmt: skip
@click.option("--reference", metavar="NAME|N", help="The photo that decides where things are: its file name, or its place (1 = first).")
@click.option("--response", default="auto", show_default=True, metavar="CURVE",
              help="Camera response: auto, estimate, srgb, gamma2.2, linear, or a file from --save-response.")  # fmt: skip
@click.option("--save-response", metavar="FILE", help="Keep the response that was used, for this camera's next bracket (.json).")
@click.option("--no-align", is_flag=True, help="The photos are registered already; leave every pixel where it is.")
@click.option("--model", default="compact", show_default=True, metavar="NAME",
              help="Network that estimates what the reference photo did not measure: compact, none (the classical merge), "
                   "sd21 (the paper's full size; bring its weights), or the card (.json) of another; see gmodiff models.")  # fmt: skip
@click.option("--backbone", metavar="PATH|HUB_ID", help="Of sd21: Stable Diffusion 2.1 base, a diffusers folder or a hub's OWNER/NAME.")
@click.option("--weights", metavar="FOLDER", help="Of sd21: where dareg_mask.pth and gmodiff.pkl are.")
@click.option("--precision", type=click.Choice(["auto", "float32", "float16", "bfloat16"]), default="auto", show_default=True,
              help="Of sd21; auto: float32 on the processor, float16 on a GPU.")  # fmt: skip
@click.option("--offload", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
              help="Of sd21 on a GPU: parts wait in main memory until it is their turn; auto: where the GPU is small.")  # fmt: skip
@click.option("--runtime", type=click.Choice(["auto", "openvino", "onnxruntime", "torch"]), default="auto", show_default=True,
              help="What runs the network.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="Where the runtime computes: cpu, cuda, GPU ...")
@click.option("--exact", is_flag=True, help="Run the network in float32; slower, and the same to 0.05 dB.")
@click.option("--estimate-size", type=click.Choice(["auto", "full", "half"]), default="auto", show_default=True,
              help="How large the network sees the picture; auto: about 3 megapixels, or full size if that is less.")  # fmt: skip
@click.option("--tile", type=int, metavar="PX",
              help="Side of the network's tiles, 512 or more: less memory.")  # fmt: skip
@click.option("--refine", type=float, default=0.0, show_default=True, metavar="0..1",
              help="How much of the refiner's detail goes in where the network doubts its estimate; for models that have one.")  # fmt: skip
@click.option(
    "--keep-noise", is_flag=True, help="Do not reduce noise where the reference measured; photos below about ISO 1200 keep it anyway."
)
@click.option("--look", type=click.Choice(["camera", "linear"]), default="camera", show_default=True,
              help="The HDR picture: the photo's own look with its highlights given back, or scene-linear light.")  # fmt: skip
@click.option("--headroom", type=float, default=3.0, show_default=True, metavar="STOPS",
              help="Most that the HDR picture may rise above SDR white.")  # fmt: skip
@click.option("--base", type=click.Choice(["tonemap", "reference"]), default="tonemap", show_default=True,
              help="The SDR picture: highlights compressed into it, or the reference photo itself.")  # fmt: skip
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="JPEG and AVIF quality.")
@click.option("--compact", is_flag=True, help="Smaller Ultra HDR: gain map at a quarter of the size per side, one channel.")
@click.option("--strip", is_flag=True, help="Leave out camera, lens, time and place (EXIF).")
@click.option("--provenance", metavar="FILE", help="Also write a picture of where the light came from (.png).")
@click.option("--max-pixels", type=click.IntRange(min=1), default=250_000_000, show_default=True, help="Refuse larger photos.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print exposures, disagreement and alignment of each photo.")
def merge(
    photos: tuple[str, ...],
    outputs: tuple[str, ...],
    ev: list[float] | None,
    exposures: list[float] | None,
    reference: str | None,
    response: str,
    save_response: str | None,
    no_align: bool,
    model: str,
    backbone: str | None,
    weights: str | None,
    precision: str,
    offload: str,
    runtime: str,
    device: str,
    exact: bool,
    estimate_size: str,
    tile: int | None,
    refine: float,
    keep_noise: bool,
    look: str,
    headroom: float,
    base: str,
    quality: int,
    compact: bool,
    strip: bool,
    provenance: str | None,
    max_pixels: int,
    force: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Merge 2 to 16 photos of one scene, taken at different exposures, into one HDR photo.

    \b
      gmodiff merge IMG_1.jpg IMG_2.jpg IMG_3.jpg -o scene.jpg
      gmodiff merge *.NEF -o scene.jpg -o scene.exr
      gmodiff merge a.tif b.tif c.tif --ev -2,0,2 -o scene.avif

    Exposures come from --exposures or --ev, else the photos' EXIF, else an exposure.txt beside them (log2 of relative
    exposures, one a line in order of file name), else from the pixels.
    """
    started = time.monotonic()
    folders = [p for p in photos if Path(p).is_dir()]
    if folders:
        raise InputError(
            f"{folders[0]} is a folder: give its photos, or sort and merge what it holds with gmodiff batch {folders[0]} -o OUT/"
        )
    if len(photos) < 2:
        raise InputError(f"a bracket needs 2 to 16 photos, got {len(photos)}: gmodiff merge A.jpg B.jpg C.jpg -o scene.jpg")
    if not MIN_HEADROOM <= headroom <= MAX_HEADROOM:
        raise InputError(f"--headroom {headroom:g}: expected {MIN_HEADROOM:g} to {MAX_HEADROOM:g} stops")
    if not 0 <= refine <= 1:
        raise InputError(f"--refine {refine:g}: expected 0 (nothing) to 1")
    targets = [Path(o) for o in outputs] or [Path(f"{Path(photos[0]).stem}_hdr.jpg")]
    from gmodiff.writer import check_writable

    extra = [Path(p) for p in (provenance, save_response) if p is not None]
    for name, path, suffix in (("provenance", provenance, ".png"), ("save-response", save_response, ".json")):
        if path is not None and Path(path).suffix.lower() != suffix:
            raise InputError(f"--{name} {path}: give it a name ending in {suffix}")
    check_writable(targets, force=force, others=extra, inputs=[Path(p) for p in photos])

    from gmodiff.bracket import read_bracket, save_response_file
    from gmodiff.networks import load_network, refuse_idle
    from gmodiff.pipeline import reconstruct
    from gmodiff.runtime import NO_MODEL
    from gmodiff.summary import summary
    from gmodiff.writer import write, write_provenance

    if model == NO_MODEL:
        given = {"--runtime": runtime != "auto", "--device": device != "auto", "--exact": exact,
                 "--estimate-size": estimate_size != "auto", "--tile": tile is not None, "--refine": refine > 0,
                 "--backbone": backbone is not None, "--weights": weights is not None, "--precision": precision != "auto",
                 "--offload": offload != "auto", "--keep-noise": keep_noise}  # fmt: skip
        refuse_idle(given)
    with _Reporter(quiet or as_json) as report:
        report("load", 0.0)
        network, estimates = load_network(
            model,
            runtime=runtime,
            device=device,
            exact=exact,
            backbone=backbone,
            weights=weights,
            precision=precision,
            offload=offload,
            estimate_size=estimate_size,
            tile=tile,
            refine=refine,
            keep_noise=keep_noise,
        )
        bracket = read_bracket(
            photos,
            exposures=exposures,
            ev=ev,
            reference=reference,
            response=response,
            max_pixels=max_pixels,
            progress=report,
        )
        image = reconstruct(bracket, estimates, align=not no_align, look=look, base=base, headroom=headroom, progress=report)
        for n, target in enumerate(targets):
            report("write", n / len(targets))
            write(image, target, quality=quality, compact=compact, strip=strip, force=force)
        if provenance is not None and image.provenance is not None:
            write_provenance(image.provenance, provenance, force=force)
        if save_response is not None:
            save_response_file(bracket.response, save_response, force=force)
        report("write", 1.0)
    result = summary(bracket, image, network, outputs=targets, seconds=time.monotonic() - started)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        _print_result(result, bracket, verbose)


def _print_result(result: dict[str, Any], bracket: Bracket, verbose: bool) -> None:
    where = result["provenance"]
    for target in result["outputs"]:
        size = Path(target).stat().st_size / 1e6
        scene = Path(target).suffix.lower() in (".exr", ".hdr", ".tif", ".tiff")
        holds = (
            f"scene-linear, all but 0.01 % up to {result['brightest_stops']:.1f} stops above the reference's white"
            if scene
            else f"HDR shown up to {result['headroom_stops']:.1f} stops above SDR white"
        )
        click.echo(f"{target}: {result['width']}x{result['height']}, {holds}, {size:.1f} MB")
    exposures = " ".join(f"{f['stops']:+.1f}" for f in result["frames"])
    known = [v for v in result["disagreement_stops"] if v is not None]
    agreement = ""
    if known:
        agreement = f", photos agree to {max(known):.2f} stops" if max(known) < 0.25 else f", photos disagree by {max(known):.2f} stops"
    refined = " refined by the pixels" if result["exposure_source"] == "exif" else ""
    network = "" if result["model"] is None else f", network {result['model']['name']}"
    if result["model"] is not None and result["model"]["refine"]:
        network += f" refined {result['model']['refine']:g}"
    if result["model"] is not None and result["model"]["noise_reduced"]:
        network += ", noise reduced"
    click.echo(f"exposures {exposures} ({result['exposure_source']}{refined}), response {result['response']}{agreement}{network}")
    click.echo(
        f"{where['measured_percent']:.1f} % measured in {result['reference']}, {where['aligned_percent']:.1f} % in the other photos, "
        f"{where['inferred_percent']:.2f} % inferred; {where['highlight_stops']:.1f} stops of highlights recovered "
        f"({result['seconds']:.1f} s)"
    )
    for note in result["notes"]:
        click.echo(f"note: {note}", err=True)
    if verbose:
        network = result["model"]
        click.echo("  no network: measured samples only" if network is None else f"  network {network['name']}, {network['runtime']}")
        pairs = list(zip(bracket.frames, bracket.frames[1:], strict=False))
        for (a, b), now, srgb in zip(pairs, result["disagreement_stops"], result["disagreement_srgb_stops"], strict=False):
            if now is None:
                click.echo(f"  {a.name} / {b.name}: too few pixels in common to compare")
            else:
                click.echo(f"  {a.name} / {b.name}: disagree by {now:.3f} stops" + (f" (as sRGB: {srgb:.3f})" if srgb is not None else ""))
        for line in result["alignment"]:
            click.echo(f"  {line['name']}: {line['motion']}")


@command.command("inspect", short_help="Say what an HDR file holds.")
@click.argument("file", metavar="FILE")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option(
    "--preview",
    metavar="OUT.png",
    help="Also render what a display of --headroom stops shows, its peak as the PNG's white.",
)
@click.option("--headroom", type=float, default=None, metavar="STOPS", help="Of the previewed display. Default: all that the file holds.")
@click.option("--force", is_flag=True, help="Overwrite an existing preview.")
def inspect_file(file: str, as_json: bool, preview: str | None, headroom: float | None, force: bool) -> None:
    """Print format, size, headrooms, map range, metadata agreement and provenance of an HDR photo."""
    from gmodiff.inspection import as_text, describe
    from gmodiff.inspection import preview as render_preview

    if headroom is not None and preview is None:
        raise InputError("--headroom goes with --preview OUT.png")
    facts = describe(file)
    if preview is not None:
        render_preview(file, preview, headroom=headroom, force=force)
    click.echo(json.dumps(facts, indent=2) if as_json else as_text(facts))
    if preview is not None and not as_json:
        click.echo(f"preview: {preview}")


command.add_command(batch)
command.add_command(evaluate)
command.add_command(report)
command.add_command(train)
command.add_command(serve)


@command.command("convert", short_help="Turn the full-size model's released files into one file.")
@click.option("--weights", required=True, metavar="FOLDER", help="Where dareg_mask.pth and gmodiff.pkl are.")
@click.option(
    "--backbone", required=True, metavar="PATH|HUB_ID", help="Stable Diffusion 2.1 base: a diffusers folder, or a hub's OWNER/NAME."
)
@click.option("-o", "--output", required=True, metavar="FILE", help="What to write: NAME.safetensors, and beside it its card, NAME.json.")
@click.option("--fold-lora", is_flag=True, help="Put the backbone in too, the adapters added to it: large, and needs nothing else.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def convert_files(weights: str, backbone: str, output: str, fold_lora: bool, force: bool) -> None:
    """Check the released files against their backbone, key by key, and write them as one safetensors file with a card.

    \b
      gmodiff convert --backbone sd21-base/ --weights released/ -o sd21.safetensors
      gmodiff merge *.jpg --model sd21.json --backbone sd21-base/
    """
    from gmodiff.convert import convert

    card = convert(weights, output, backbone=backbone, fold=fold_lora, force=force)
    ((file, digest),) = card["sha256"].items()
    target = Path(output).with_name(file)
    holds = "with their backbone" if fold_lora else "without their backbone"
    click.echo(
        f"{target}: {card['parameters'] / 1e6:.1f} million parameters, {holds}, {target.stat().st_size / 1e6:.0f} MB, sha256 {digest}"
    )


@command.command(short_help="Say which networks are here, and what made them.")
@click.argument("names", nargs=-1, metavar="[CARD.json]...")
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
def models(names: tuple[str, ...], as_json: bool) -> None:
    """List the models of this package, or those of the cards given: what each was trained on, for how long, its licence, scores and the
    hash of its files.
    """
    from gmodiff.runtime import load_card, model_cards

    cards = [load_card(name) for name in names] if names else model_cards()
    if as_json:
        told = [{"name": c.name, "fingerprint": c.fingerprint, "about": c.about, "sha256": c.sha256, **c.facts} for c in cards]
        click.echo(json.dumps(told, indent=2))
        return
    lines = [line for card in cards for line in _told(card)]
    if not names:
        lines.append("sd21: the paper's full-size system, on Stable Diffusion 2.1; its weights are not here: see docs/full-model.md")
    if sys.stdout.isatty():  # whole lines for other programs
        width = shutil.get_terminal_size().columns
        lines = [_wrapped(line, width) for line in lines]
    click.echo("\n".join(lines))


def _wrapped(line: str, width: int) -> str:
    """In lines of a terminal; hashes and options stay whole, so that they can be copied."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _told(card: Card) -> Iterator[str]:
    """What a card says, line by line; cards of converted files say little of how their model was made."""
    facts = card.facts
    yield f"{card.label}: {card.about}"
    size = f"{facts['parameters'] / 1e6:.1f} million parameters, " if "parameters" in facts else ""
    yield f"  {size}up to {card.max_frames} photos, licence {facts.get('licence', 'not recorded')}"
    if "trained_by" in facts:
        yield f"  trained on {facts['trained_on']}"
        yield f"  trained by {facts['trained_by']}: {_spent(facts)}; {facts['hardware']}"
    if "noise" in facts:
        beside = facts["noise"]
        yield f"  beside it, where the reference measured, a noise reducer of {beside['parameters']} parameters: {_spent(beside)}"
    for name, scores in facts.get("scores", {}).items():
        yield f"  {name}: " + ", ".join(f"{k} {v:g}" for k, v in scores.items())
    for file, digest in card.sha256.items():
        yield f"  {file} sha256 {digest}"


def _spent(facts: Mapping[str, Any]) -> str:
    """Hours and steps of each stage."""
    return ", ".join(f"{stage} {hours:g} h ({facts['steps'].get(stage, 0)} steps)" for stage, hours in facts["hours"].items())


@command.command(short_help="Print the shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script; put it where your shell looks, for example:

    \b
      gmodiff completion bash >> ~/.bashrc
      gmodiff completion fish > ~/.config/fish/completions/gmodiff.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # click ships all three
    click.echo(kind(command, {}, "gmodiff", "_GMODIFF_COMPLETE").source())


_STAGE_WORDS = {
    "load": "Loading",
    "read": "Reading",
    "calibrate": "Measuring the camera",
    "align": "Aligning",
    "merge": "Merging",
    "estimate": "Estimating",
    "noise": "Reducing noise",
    "render": "Rendering",
    "write": "Writing",
}


class _Reporter:
    """Progress on stderr: a bar on a terminal, one quiet line a stage elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._stage = ""
        self._started = 0.0
        self._quiet = quiet

    def __enter__(self) -> _Reporter:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description:<22}"), BarColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None:  # what went wrong is said alone
            self._end_stage()

    def __call__(self, stage: str, fraction: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=_STAGE_WORDS.get(stage, stage), completed=fraction)
        elif stage != self._stage:
            self._end_stage()
            self._stage, self._started = stage, time.monotonic()

    def _end_stage(self) -> None:
        took = time.monotonic() - self._started
        if self._stage and took > 0.5 and not self._quiet:
            click.echo(f"{_STAGE_WORDS.get(self._stage, self._stage).lower()}: {took:.1f} s", err=True)
        self._stage = ""
