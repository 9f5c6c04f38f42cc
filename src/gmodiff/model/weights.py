"""Weights in files: safetensors, half precision when they ship, with the shape of the network and its history in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gmodiff.errors import FileFormatError, OutputError
from gmodiff.model.regressor import Regressor, Shape

Network = TypeVar("Network", bound=nn.Module)

FORMAT = "gmodiff-regressor-2"
"""The first had weights and residuals of each channel."""


def write_weights(network: Regressor, path: Path, facts: dict[str, Any], *, half: bool = False) -> None:
    """Write all weights; facts are plain values kept beside them. half: as float16, for shipping."""
    header = {"format": FORMAT, "shape": json.dumps(network.shape.as_dict()), "facts": json.dumps(facts)}
    write_tensors(network.state_dict(), path, header, half=half)


def read_weights(path: Path) -> tuple[Regressor, dict[str, Any]]:
    """The network, float32, ready to use, and the facts beside it.

    Raises FileFormatError for a file that is not one of ours, is cut short, or lacks a weight.
    """
    return read_network(path, FORMAT, lambda shape: Regressor(Shape.from_dict(shape)), "a compact regressor")


def read_network(path: Path, wanted: str, build: Callable[[dict[str, Any]], Network], what: str) -> tuple[Network, dict[str, Any]]:
    """A network, float32, ready to use, and the facts beside it.

    wanted: format of the file.   build: from the shape in its header to a network.   what: that is, in words.
    Raises FileFormatError for a file that is not of that format, is cut short, or lacks a weight.
    """
    tensors, header = read_tensors(path, wanted)
    try:
        network = build(json.loads(header["shape"]))
        network.load_state_dict(tensors)
        facts: dict[str, Any] = json.loads(header.get("facts", "{}"))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: not the weights of {what} ({str(error).splitlines()[0]})") from None
    return network.eval(), facts


def digest(network: nn.Module) -> str:
    """16 hex digits of the weights as they ship, in half precision: the same whatever file or graph holds them."""
    found = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(values.detach().cpu().to(torch.float16).contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str], *, half: bool) -> None:
    """Write tensors and a header of text, whole or not at all. half: as float16."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = {k: v.detach().cpu().to(torch.float16 if half else torch.float32).contiguous() for k, v in tensors.items()}
    unfinished = path.with_name(f".{path.name}")
    try:
        save_file(kept, unfinished, header)
        readable_by_all(unfinished)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def readable_by_all(path: Path) -> None:
    """As new files are for whoever runs this: safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_tensors(path: Path, wanted: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """float32 tensors and the header. Raises FileFormatError where the file is cut short, or its format is not the wanted one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stored:
            header: dict[str, str] = stored.metadata() or {}
            if header.get("format") != wanted:
                raise FileFormatError(f"{path}: {_kind(header.get('format'))}, expected {_kind(wanted)}")
            return {k: stored.get_tensor(k).float() for k in stored.keys()}, header  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FileFormatError(
            f"{path}: not a weights file ({str(error).splitlines()[0]}); expected .safetensors as gmodiff train writes them"
        ) from None


def stored_format(path: Path) -> str | None:
    """The format that a weights file says it has; None where it says none or cannot be read."""
    from safetensors import SafetensorError

    try:
        return stored_header(path).get("format")
    except (OSError, SafetensorError):
        return None


def stored_header(path: Path) -> dict[str, str]:
    """The text in the header of a .safetensors file. Raises what safetensors does: OSError, SafetensorError."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        return dict(stored.metadata() or {})


def _kind(written: str | None) -> str:
    """What a format is of, in words: "gmodiff-refiner-1" is a refiner's."""
    if written is None or not written.startswith("gmodiff-"):
        return "weights of another program"
    kind = written.removeprefix("gmodiff-").rpartition("-")[0]
    return f"weights of a {'noise reducer' if kind == 'noise' else kind} ({written})"
