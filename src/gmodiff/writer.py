"""HDRImage to a file, by suffix; nothing half-written, nothing overwritten by accident.

A file is made beside its place under a hidden name and moved there when it is complete. Ultra HDR, AVIF, PNG and JPEG XL hold
the rendition, EXR, .hdr and TIFF the radiance; each says in its metadata which.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmodiff import __version__, floatfiles, pq
from gmodiff.errors import InputError, OutputError
from gmodiff.exif import clean_block, read_exif
from gmodiff.gainmap import GainMap, GainMapMetadata, Triple, apply_log2_gain, log2_gain
from gmodiff.hdrgm import alternate_colour, facts_text, facts_xmp, network_facts
from gmodiff.icc import profile_bytes
from gmodiff.image import HDRImage
from gmodiff.radiometry import luminance_weights, srgb_decode
from gmodiff.ultrahdr import join

SUFFIXES: Mapping[str, str] = {
    ".jpg": "Ultra HDR JPEG",
    ".jpeg": "Ultra HDR JPEG",
    ".avif": "AVIF, 10-bit PQ",
    ".png": "PNG, 16-bit PQ",
    ".jxl": "JPEG XL, PQ",
    ".exr": "OpenEXR, half float",
    ".hdr": "Radiance RGBE",
    ".tif": "TIFF, float",
    ".tiff": "TIFF, float",
}
"""What can be written, by suffix."""

COMPACT_SCALE, COMPACT_MAP_QUALITY = 4, 88
"""The compact preset: a map of a quarter of the size per axis, one channel, as phones write it."""

PROVENANCE_COLOURS = ((64, 64, 64), (0, 114, 178), (230, 159, 0))
"""Dark grey: measured in the reference; blue: measured in an aligned frame; orange: inferred. Apart for colour-blind eyes too."""

_SOFTWARE = f"GMODiff {__version__}"
_MAX_JPEG_SIDE = 65500

StrPath = str | os.PathLike[str]


def write(image: HDRImage, path: StrPath, *, quality: int = 95, compact: bool = False, strip: bool = False, force: bool = False) -> None:
    """Write a picture; the suffix says how (see SUFFIXES).

    quality: 1 to 100, of the JPEG base and map, AVIF and JPEG XL. compact: Ultra HDR with a quarter-size one-channel map and
    4:2:0 base. strip: leave out the photo's EXIF. force: replace an existing file.
    Raises OutputError where the file cannot be put there, InputError where the picture lacks what the format needs,
    MissingDependencyError where an optional encoder is not installed. No partial file stays behind, even after Ctrl-C.
    """
    target = Path(path)
    if not 1 <= quality <= 100:
        raise InputError(f"quality {quality}: expected 1 to 100")
    suffix = _checked_suffix(target)
    check_writable([target], force=force)
    exif = None if strip or image.exif is None else clean_block(image.exif, image.radiance.shape[1], image.radiance.shape[0])
    taken = read_exif(exif).datetime if exif else ""
    facts = _facts(image, rendition=suffix in (".jpg", ".jpeg", ".avif", ".png", ".jxl"))
    with replacing(target, force) as temporary:
        if suffix in (".jpg", ".jpeg"):
            temporary.write_bytes(_ultra_hdr(image, target, quality, compact, exif, facts))
        elif suffix == ".png":
            xmp = facts_xmp(facts, _SOFTWARE)
            temporary.write_bytes(pq.png_bytes(image, exif=exif, xmp=xmp, description=facts["Content"]))
        elif suffix == ".avif":
            temporary.write_bytes(pq.avif_bytes(image, quality=quality, exif=exif, xmp=facts_xmp(facts, _SOFTWARE)))
        elif suffix == ".jxl":
            pq.write_jxl(image, temporary, quality=quality, exif=exif, xmp=facts_xmp(facts, _SOFTWARE))
        elif suffix == ".exr":
            floatfiles.write_exr(image, temporary, description=facts_text(facts), software=_SOFTWARE, taken=taken)
        elif suffix == ".hdr":
            floatfiles.write_hdr(image, temporary, description=facts_text(facts), software=_SOFTWARE)
        else:
            floatfiles.write_tiff(image, temporary, description=facts_text(facts), software=_SOFTWARE, taken=taken)


def write_provenance(provenance: NDArray[np.uint8], path: StrPath, *, force: bool = False) -> None:
    """(H, W) labels 0, 1, 2 as a palette PNG: its stored codes are the labels, its colours PROVENANCE_COLOURS."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise OutputError(f"{target}: the provenance map is a PNG; give it a name ending in .png")
    check_writable([], others=[target], force=force)
    picture = Image.frombytes("P", provenance.shape[::-1], np.ascontiguousarray(provenance).data)
    picture.putpalette([v for colour in PROVENANCE_COLOURS for v in colour])
    with replacing(target, force) as temporary:
        picture.save(temporary, "PNG")


def check_writable(
    paths: Sequence[StrPath], *, force: bool = False, others: Sequence[StrPath] = (), inputs: Sequence[StrPath] = ()
) -> None:
    """Raise what writing would raise, before any work is done.

    paths: pictures, whose suffix must be known and whose encoder installed. others: further files, of any suffix.
    inputs: files that are being read, which no output may replace, not even with force.
    """
    for path in map(Path, paths):
        if _checked_suffix(path) == ".avif":
            pq.need_imagecodecs()
    read = {_identity(Path(p)) for p in inputs}
    seen: set[str] = set()
    for path in map(Path, (*paths, *others)):
        try:
            _check_place(path, force, read, seen)
        except OSError as reason:
            raise _output_error(path, reason) from reason
        except ValueError as reason:  # a zero byte in the name
            raise OutputError(f"{str(path)!r} is not a file name: {reason}") from reason
    for folder in {Path(os.path.realpath(p)).parent for p in (*paths, *others)}:
        if not folder.is_dir():
            raise OutputError(f"folder {folder} {'is a file' if folder.exists() else 'does not exist; create it first'}")
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as reason:
            raise _output_error(folder, reason) from reason


def _check_place(path: Path, force: bool, read: set[str], seen: set[str]) -> None:
    identity = _identity(path)
    if identity in read:
        raise OutputError(f"{path} is one of the files being read: name another output, or leave it out of the photos if it is a result")
    if identity in seen:
        raise OutputError(f"{path} is named twice as an output")
    seen.add(identity)
    _refuse_folder(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} exists and is not a regular file")
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; --force (in Python force=True) replaces it")


def _identity(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _refuse_folder(path: Path) -> None:
    if os.path.isdir(path):  # says False of impossible names too, which are refused later
        raise OutputError(f"{path} is a folder; expected the name of a file in it, such as {path / 'scene.jpg'}")


def _checked_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    _refuse_folder(path)
    if suffix not in SUFFIXES:
        kinds = ", ".join(f"{s} ({what})" for s, what in SUFFIXES.items() if s not in (".jpeg", ".tiff"))
        raise OutputError(f"{path}: cannot write {suffix or 'a file without a suffix'}; supported are {kinds}")
    return suffix


@contextmanager
def replacing(target: Path, force: bool) -> Iterator[Path]:
    """A fresh hidden file beside target, moved onto it at the end, or removed if anything goes wrong, Ctrl-C included.

    Raises OutputError where the disk refuses, or where target appeared meanwhile and force is False.
    """
    place = Path(os.path.realpath(target))  # a link stays a link: the file behind it is replaced
    temporary = place.with_name(f".{place.stem[:80]}-{secrets.token_hex(6)}{place.suffix}")
    try:
        try:
            with temporary.open("xb"):
                pass
            yield temporary
            if not force and place.exists():
                raise OutputError(f"{target} appeared while the picture was being made; --force (in Python force=True) replaces it")
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as reason:
        raise _output_error(target, reason) from reason
    except OutputError as reason:
        if str(target) in str(reason):
            raise
        raise OutputError(f"{target}: {reason}") from reason


def _output_error(where: Path, reason: OSError) -> OutputError:
    if reason.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return OutputError(f"{where}: no space left on the disk; free some, or write elsewhere")
    if reason.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(f"{where}: not writable ({os.strerror(reason.errno).lower()}); write elsewhere")
    if reason.errno == errno.ENAMETOOLONG:
        return OutputError(f"{where}: the name is too long for this disk")
    return OutputError(f"{where}: cannot be written: {reason.strerror or reason}")


def _facts(image: HDRImage, *, rendition: bool) -> dict[str, str]:
    """What the file says of itself: scene-linear radiance or the rendition of a look, where its light came from, and what networks did."""
    if rendition and image.look is not None:
        content = f"rendition: {image.look.name}"
    elif image.content == "scene":
        content = "scene-linear radiance"
    else:
        look = image.metadata.get("look")
        content = f"rendition: {look}" if look else "rendition"
    facts = {"Content": content}
    if image.provenance is not None:
        total = image.provenance.size
        aligned, inferred = (int(np.count_nonzero(image.provenance == label)) for label in (1, 2))
        shares = {"Measured": total - aligned - inferred, "Aligned": aligned, "Inferred": inferred}
        facts |= {f"{name}Percent": f"{100 * count / total:.3f}" for name, count in shares.items()}
    return facts | network_facts(image.metadata)


# ---- Ultra HDR ----------------------------------------------------------------------------------------------------------


def _ultra_hdr(image: HDRImage, target: Path, quality: int, compact: bool, exif: bytes | None, facts: Mapping[str, str]) -> bytes:
    base, gain_map = image.base, image.gain_map
    if base is None or gain_map is None:
        raise InputError(f"{target}: Ultra HDR needs an SDR base and a gain map, and this picture has none; write .exr, .avif or .png")
    height, width = base.shape[:2]
    if max(height, width) > _MAX_JPEG_SIDE:
        raise InputError(f"{target}: JPEG holds at most {_MAX_JPEG_SIDE} pixels per side, this picture is {width}x{height}; write .exr")
    map_quality = quality
    map_icc = None
    if not gain_map.metadata.use_base_colour_space:
        alternate = alternate_colour(image.metadata)
        if alternate is None:
            raise InputError(f"{target}: this picture's gain map works in another colour space, which is not known; write .exr")
        map_icc = profile_bytes(alternate)
    elif compact:
        gain_map = compact_map(base, gain_map, luminance_weights(image.base_colour))
        map_quality = min(quality, COMPACT_MAP_QUALITY)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(_jpeg, base, quality, compact)
        second = pool.submit(_jpeg, gain_map.codes, map_quality, False)
        base_jpeg, map_jpeg = first.result(), second.result()
    icc = profile_bytes(image.base_colour)
    return join(base_jpeg, map_jpeg, gain_map.metadata, exif=exif, icc=icc, map_icc=map_icc, facts=facts, creator=_SOFTWARE)


def compact_map(base: NDArray[np.uint8], gain_map: GainMap, weights: NDArray[np.float32]) -> GainMap:
    """The gain of luminance as a one-channel map of a quarter of the size per axis, averaged over areas.

    weights: (3,) of luminance in the base's primaries. The range is that of the new map.
    """
    height, width = base.shape[:2]
    size = (max(1, round(width / COMPACT_SCALE)), max(1, round(height / COMPACT_SCALE)))

    def shrink(pixels: NDArray[Any]) -> NDArray[np.float32]:
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32).reshape(size[1], size[0], -1) / np.float32(255)

    old = gain_map.metadata
    # Averages of 8-bit codes, not of light: the eye, and the gain's logarithm, see them so; and it is 40 times less to average.
    light = np.asarray(srgb_decode(shrink(base)), np.float32)
    shown = apply_log2_gain(light, old.log2_gain(shrink(gain_map.codes)), old)
    below, above = old.base_offset[1], old.alternate_offset[1]
    gain = log2_gain((light @ weights)[..., None], (shown @ weights)[..., None], below, above)
    low, high = float(gain.min()), float(gain.max())
    new = GainMapMetadata(
        minimum=_same(low),
        maximum=_same(max(high, low + 1e-3)),
        base_offset=_same(below),
        alternate_offset=_same(above),
        base_headroom=old.base_headroom,
        alternate_headroom=old.alternate_headroom,
    )
    return GainMap(new.quantise(gain), new)


def _same(value: float) -> Triple:
    return value, value, value


def _jpeg(pixels: NDArray[np.uint8], quality: int, subsample: bool) -> bytes:
    """A plain JPEG of (H, W, 3) or (H, W, 1) uint8, colour at full resolution unless subsample."""
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if subsample else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    stored = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2] == 3 else pixels
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    try:
        done, data = cv2.imencode(".jpg", stored, options)
    except cv2.error as reason:
        raise OutputError(f"the JPEG encoder failed: {reason.err}") from reason
    if not done:
        raise OutputError("the JPEG encoder failed")
    return data.tobytes()
