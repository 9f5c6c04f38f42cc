"""What is no photo, is damaged, too small or too large is refused in one clear line."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.icc import profile_bytes
from gmodiff.photo import read_photo
from gmodiff.radiometry import SRGB
from photo_files import GOLDEN, RAMP8, RAMP16, exif_bytes, jpeg_bytes, pillow_bytes, png16, ramp, refusal, save, write_tiff


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path)
    with pytest.raises(InputError):
        read_photo("a\0b.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert "regular file" in refusal(tmp_path / "pipe.jpg")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "a.jpg", jpeg_bytes(RAMP8))

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, I am a text\n" * 20, b"\xff\xd8\xff", b"GIF89a" + bytes(50), b"II*\0", bytes(1000)])
def test_files_that_are_no_photos_are_refused(tmp_path: Path, data: bytes) -> None:
    refusal(save(tmp_path, "a.jpg", data))


def all_kinds(folder: Path) -> dict[str, bytes]:
    files = {
        "a.jpg": jpeg_bytes(RAMP8, exif_bytes(), profile_bytes(SRGB)),
        "progressive.jpg": pillow_bytes(RAMP8, "JPEG", progressive=True),
        "a.png": pillow_bytes(RAMP8, "PNG", icc_profile=profile_bytes(SRGB)),
        "deep.png": png16(RAMP16),
        "a.webp": pillow_bytes(RAMP8, "WEBP"),
        "a.avif": pillow_bytes(RAMP8, "AVIF"),
        "a.tif": write_tiff(folder / "t.tif", RAMP16, "uint16", compression="zip").read_bytes(),
        "float.tif": write_tiff(folder / "f.tif", ramp(48, 64).astype(np.float32), "float").read_bytes(),
        "a.heic": (GOLDEN / "rotated.heic").read_bytes(),
    }
    return files


def test_truncated_photos_are_refused_not_grey(tmp_path: Path) -> None:
    for name, data in all_kinds(tmp_path).items():
        assert read_photo(save(tmp_path, name, data)).encoded.shape[2] == 3
        for keep in (0.3, 0.6, 0.95):
            refusal(save(tmp_path, name, data[: int(len(data) * keep)]))


def test_png_says_what_is_damaged(tmp_path: Path) -> None:
    png = png16(RAMP16)
    assert "has no end" in refusal(save(tmp_path, "a.png", png[:-12]))
    assert "checksum" in refusal(save(tmp_path, "b.png", png[:100] + bytes([png[100] ^ 1]) + png[101:]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8), st.floats(0, 1), st.binary(min_size=1, max_size=4))
def test_damage_gives_a_photo_or_our_error(tmp_path: Path, which: int, where: float, junk: bytes) -> None:
    name, data = list(_KINDS_CACHE.setdefault("files", all_kinds(tmp_path)).items())[which]
    at = int(where * len(data))
    path = save(tmp_path, name, data[:at] + junk + data[at + len(junk) :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            photo = read_photo(path, max_pixels=1_000_000)
        except GMODiffError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert photo.encoded.dtype in (np.uint8, np.uint16)


_KINDS_CACHE: dict[str, dict[str, bytes]] = {}


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 100), (100000, 10)])
def test_photos_too_small_to_align_are_refused(tmp_path: Path, width: int, height: int) -> None:
    assert f"{width}x{height}, too small" in refusal(save(tmp_path, "a.png", pillow_bytes(np.zeros((height, width, 3), np.uint8), "PNG")))


def test_decompression_bombs_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    assert "10000000000 pixels" in refusal(save(tmp_path, "bomb.png", b"\x89PNG\r\n\x1a\n" + body))
    for name, data in all_kinds(tmp_path).items():
        assert "--max-pixels" in refusal(save(tmp_path, name, data), max_pixels=48 * 64 - 1)
        read_photo(save(tmp_path, name, data), max_pixels=48 * 64)


def test_pillows_own_limit_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # refuses from 4000, warns from 2000; the photos have 3072
    for name, data in all_kinds(tmp_path).items():
        read_photo(save(tmp_path, name, data))


def test_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    path = save(tmp_path, "two\nlines.jpg", b"no photo at all")
    with pytest.raises(FileFormatError) as caught:
        read_photo(path)
    assert "\n" not in str(caught.value)
