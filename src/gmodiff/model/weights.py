"""Weights of the compact regressor in a file: safetensors, half precision, with the shape of the network and its history in the header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from gmodiff.errors import FileFormatError, OutputError
from gmodiff.model.regressor import Regressor, Shape

FORMAT = "gmodiff-regressor-1"


def write_weights(network: Regressor, path: Path, facts: dict[str, Any], *, half: bool = False) -> None:
    """Write all weights; facts are plain values kept beside them. half: as float16, for shipping."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept = {k: v.detach().cpu().to(torch.float16 if half else torch.float32).contiguous() for k, v in network.state_dict().items()}
    header = {"format": FORMAT, "shape": json.dumps(network.shape.as_dict()), "facts": json.dumps(facts)}
    unfinished = path.with_name(f".{path.name}")
    try:
        save_file(kept, unfinished, header)
        unfinished.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path}: cannot be written ({error})") from None
    finally:
        unfinished.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_weights(path: Path) -> tuple[Regressor, dict[str, Any]]:
    """The network, float32, ready to use, and the facts beside it.

    Raises FileFormatError for a file that is not one of ours, is cut short, or lacks a weight.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise FileFormatError(f"{path}: weights of {header.get('format', 'another program')!r}, expected {FORMAT!r}")
            network = Regressor(Shape.from_dict(json.loads(header["shape"])))
            network.load_state_dict({k: stored.get_tensor(k).float() for k in stored.keys()})  # noqa: SIM118
            facts = json.loads(header.get("facts", "{}"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(f"{path}: not the weights of a compact regressor ({str(error).splitlines()[0]})") from None
    return network.eval(), facts
