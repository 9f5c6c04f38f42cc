"""Files by path or by URL: what a batch reads and writes, here or wherever fsspec reaches (s3://, sftp://, memory:// ...).

A file appears at its place whole or not at all: local ones are synced and moved there, object stores show an upload when it is
complete, and elsewhere it is uploaded under a hidden name and moved.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gmodiff.errors import InputError, MissingDependencyError, OutputError

HIDDEN = ".gmodiff-batch"
"""The folder beside results where a batch keeps what is its own."""

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "memory")
"""Protocols whose uploads appear when they are complete."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(place: str) -> bool:
    """s3://bucket/name and the like; not C:\\folder."""
    return _URL.match(place) is not None


def stem(place: str) -> str:
    """The file name without its suffix."""
    return Path(name(place)).stem


def name(place: str) -> str:
    """The file name."""
    return re.split(r"[/\\]" if is_url(place) or os.sep == "\\" else "/", place.rstrip("/"))[-1]


def folder_name(place: str) -> str:
    """The name of the folder a file is in; "" where there is none."""
    parts = [p for p in re.split(r"[/\\]" if os.sep == "\\" else "/", _URL.sub("", place)) if p not in ("", ".")]
    return parts[-2] if len(parts) > 1 else ""


def join(folder: str, relative: str) -> str:
    """A place inside a folder."""
    return f"{folder.rstrip('/')}/{relative}" if is_url(folder) else str(Path(folder) / relative)


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises MissingDependencyError or InputError with one line."""
    try:
        import fsspec
    except ImportError:
        raise MissingDependencyError(f"{url}: URLs need fsspec: pip install 'gmodiff[cluster]'") from None
    try:
        found, path = fsspec.core.url_to_fs(url)
        return found, path
    except ImportError as error:
        raise MissingDependencyError(f"{url}: {_line(error)}") from None
    except Exception as error:  # whatever a file system raises that cannot be reached
        raise InputError(f"{url}: cannot be reached ({_line(error)})") from None


def list_url(url: str) -> list[tuple[str, str]]:
    """(URL, stamp) of every file below a URL, by name; of itself where it is a file. Raises InputError."""
    system, path = file_system(url)
    try:
        found = system.find(path, detail=True)
    except Exception as error:
        raise InputError(f"{url}: cannot be listed ({_line(error)})") from None
    if not found:
        raise InputError(f"{url}: there is no such file, and no folder with files in it")
    return [(_url_of(key, path, url), _stamp(info)) for key, info in sorted(found.items())]


def _url_of(key: str, path: str, url: str) -> str:
    """The URL of what a listing calls key, below url, which it calls path: some file systems leave the host out of both."""
    if key == path:
        return url
    protocol, rest = url[: url.index("://") + 3], url[url.index("://") + 3 :]
    folder = path.rstrip("/") + "/"
    if rest.strip("/") and key.startswith(folder):
        return f"{protocol}{rest.rstrip('/')}/{key.removeprefix(folder)}"
    return protocol + (key if protocol == "file://" else key.lstrip("/"))


def stamp(place: str) -> str:
    """What changes when a file does, without reading it: length and time, or what the store says of its version. "" if it is gone."""
    try:
        if not is_url(place):
            status = os.stat(place)
            return f"{status.st_size}-{status.st_mtime_ns}"
        system, path = file_system(place)
        return _stamp(system.info(path))
    except (OSError, ValueError):
        return ""


_VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "modify", "LastModified", "last_modified", "created")
"""What file systems call the time or version of a file."""


def _stamp(info: dict[str, Any]) -> str:
    version = next((str(info[k]) for k in _VERSIONS if info.get(k)), "")
    return f"{info.get('size', 0)}-{version}"


def size(place: str) -> int | None:
    """Bytes of a file; None where there is none. Raises InputError where that cannot be told: nothing may be replaced then."""
    try:
        if not is_url(place):
            return os.stat(place).st_size
        system, path = file_system(place)
        return int(system.info(path)["size"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except Exception as error:  # a store that does not answer, or does not let us look
        raise InputError(f"{place}: cannot be looked at ({_line(error)})") from None


def absolute(place: str) -> str:
    """A local path whole, so that it means the same in every folder; of file:// URLs too. Other URLs as they are."""
    if place.lower().startswith("file://"):
        return os.path.abspath(place[len("file://") :])
    return place if is_url(place) else os.path.abspath(place)


@contextmanager
def fetched(places: list[str]) -> Iterator[list[Path]]:
    """Local files with the content of places: themselves, or downloads that go away at the end. Raises InputError."""
    if not any(map(is_url, places)):  # nothing to fetch, and no folder that a killed worker would leave behind
        yield [Path(p) for p in places]
        return
    with TemporaryDirectory(prefix="gmodiff-") as folder:
        local = []
        for i, place in enumerate(places):
            if not is_url(place):
                local.append(Path(place))
                continue
            system, path = file_system(place)
            target = Path(folder) / str(i) / name(place)  # names stay, since messages call files by them; folders keep equal ones apart
            target.parent.mkdir()
            try:
                system.get_file(path, str(target))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise OutputError(f"{folder}: no space left on the disk for a download") from None
                raise InputError(f"{place}: cannot be read ({_line(error)})") from None
            except Exception as error:
                raise InputError(f"{place}: cannot be read ({_line(error)})") from None
            local.append(target)
        yield local


def read_head(place: str, count: int) -> bytes:
    """The first bytes of a URL. Raises InputError."""
    system, path = file_system(place)
    try:
        return bytes(system.cat_file(path, 0, count))
    except Exception as error:
        raise InputError(f"{place}: cannot be read ({_line(error)})") from None


def sha256(path: Path) -> str:
    """Of a local file's content. Raises InputError."""
    from gmodiff import model_card  # loads numpy, which a worker may only do when it has its cores

    try:
        return model_card.sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def deliver(made: Path, place: str, *, fresh: bool = False) -> None:
    """Move a finished local file to its place, whole or not at all, replacing what is there. Raises OutputError.

    fresh: nothing was there when it was looked at, so what is there now is somebody's.
    """
    if fresh and size(place) is not None:
        raise OutputError(f"{place}: a file of that name appeared meanwhile; move it away, or --force to replace it")
    try:
        if not is_url(place):
            target = Path(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            with made.open("rb+") as file:
                os.fsync(file.fileno())
            try:
                os.replace(made, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                beside = target.with_name(f".{target.stem[:80]}-{secrets.token_hex(6)}{target.suffix}")
                try:
                    shutil.copyfile(made, beside)
                    with beside.open("rb+") as file:
                        os.fsync(file.fileno())
                    os.replace(beside, target)
                finally:
                    beside.unlink(missing_ok=True)
            sync_folder(target.parent)
            return
        system, path = file_system(place)
        parent, _, last = path.rpartition("/")
        if parent:
            system.makedirs(parent, exist_ok=True)
        if place.split("://")[0].lower() in OBJECT_STORES:
            system.put_file(str(made), path)
            return
        hidden = f"{parent}/.{secrets.token_hex(6)}-{last}"
        try:
            system.put_file(str(made), hidden)
            system.mv(hidden, path)
        except BaseException:
            if system.exists(hidden):
                system.rm_file(hidden)
            raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        why = "no space left on the disk; free some, or write elsewhere" if full else f"cannot be written ({_line(error)})"
        raise OutputError(f"{place}: {why}") from error
    except OutputError:
        raise
    except Exception as error:  # every store has errors of its own
        raise OutputError(f"{place}: cannot be written ({_line(error)})") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows has no handles of folders
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:160] or type(error).__name__
