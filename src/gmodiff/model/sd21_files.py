"""The full-size system in one safetensors file: the released checkpoint as it is, or the whole system with its adapters folded in.

The first needs its backbone beside it, as the released files do, and is small; the second needs nothing else. Both give the numbers that
the released files give. The header says which it is, and holds what is not a tensor: module lists and ranks, or configurations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.dareg import DaRegShape
from gmodiff.model.released import Released, Weights, released_from, what_is_there
from gmodiff.model.sd21 import Sd21, assemble, from_folded
from gmodiff.model.sd21_backbone import open_backbone, read_safetensors
from gmodiff.model.weights import readable_by_all, stored_header

FORMAT = "gmodiff-sd21-1"
FOLDED, ADAPTERS = "folded", "adapters"


def save_folded(system: Sd21, path: Path) -> None:
    """Every weight of the system, float32. path is written as it goes: give a temporary one."""
    _save(dict(system.state_dict()), path, {"holds": FOLDED, "configs": json.dumps(system.configs)})


def save_adapters(released: Released, path: Path, facts: Mapping[str, Any] | None = None) -> None:
    """What the two released files hold, as stored there. facts: plain values to keep beside them."""
    weights: dict[str, Tensor] = {}
    for part, stored in {"dareg": released.dareg, "proj": released.proj, **released.parts}.items():
        weights |= {f"{part}/{k}": v for k, v in stored.items()}
    lists = {"modules": json.dumps({k: list(v) for k, v in released.modules.items()}), "ranks": json.dumps(dict(released.ranks))}
    _save(weights, path, {"holds": ADAPTERS, **lists, **({} if facts is None else {"facts": json.dumps(facts)})})


def read_sd21(path: Path, backbone: str | None, shape: DaRegShape | None = None) -> Sd21:
    """The system from a file of either kind.

    backbone: as `open_backbone`; needed by a file of adapters, and refused beside a folded one. Raises InputError for that, FileFormatError
    for a file that is cut short, of another kind, or lacks a weight.
    """
    header = _header(path)
    if header.get("format") != FORMAT or header.get("holds") not in (FOLDED, ADAPTERS):
        raise FileFormatError(f"{path}: weights of {header.get('format', 'another program')!r}, expected {FORMAT!r}; see gmodiff convert")
    folded = header["holds"] == FOLDED
    if folded and backbone is not None:
        raise InputError(f"--backbone {backbone}: {path.name} holds the backbone already; leave --backbone out")
    if not folded and backbone is None:
        raise InputError(f"{path.name} holds the adapters alone: give --backbone PATH_OR_HUB_ID, or convert again with --fold-lora")
    facts = {k: _fact(header, k, path) for k in (("configs",) if folded else ("modules", "ranks"))}
    weights = read_safetensors(path)
    if folded:
        return from_folded(facts["configs"], weights, str(path), shape)
    assert backbone is not None
    return assemble(open_backbone(backbone), _released(weights, facts, str(path)), shape)


def read_adapters(path: Path) -> tuple[Released, dict[str, Any]]:
    """What `save_adapters` wrote, and the facts beside it. Raises FileFormatError for a file that is cut short or of another kind."""
    header = _header(path)
    if header.get("format") != FORMAT or header.get("holds") != ADAPTERS:
        kind = "with its adapters folded in" if header.get("holds") == FOLDED else f"of {header.get('format', 'another program')!r}"
        raise FileFormatError(f"{path}: weights {kind}, expected adapters ({FORMAT!r}): a run of sd21-onestep, or a released folder")
    lists = {k: _fact(header, k, path) for k in ("modules", "ranks")}
    return _released(read_safetensors(path), lists, str(path)), _facts(header, path)


def read_facts(path: Path) -> dict[str, Any]:
    """The plain values beside weights of ours of any kind (.safetensors); none where there are none."""
    return _facts(_header(path), path)


def _facts(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    return _fact(header, "facts", path) if "facts" in header else {}


def _fact(header: Mapping[str, str], name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(header[name])
    except (KeyError, ValueError) as error:
        raise FileFormatError(f"{path}: its header is broken ({error}); convert it again") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: its header is broken ({name} are no values by name); convert it again")
    return value


def _released(weights: Weights, facts: Mapping[str, Any], source: str) -> Released:
    parts: dict[str, dict[str, Tensor]] = {"dareg": {}, "proj": {}, "unet": {}, "vae": {}, "vae_c": {}}
    for key, value in weights.items():
        part, _, name = key.partition("/")
        if part not in parts or not name:
            raise FileFormatError(f"{source}: unexpected {key}; convert it again")
        parts[part][name] = value
    dareg, proj = parts.pop("dareg"), parts.pop("proj")
    ranks = {f"rank_{part}": rank for part, rank in facts["ranks"].items()}
    stored = {f"state_dict_{part}": values for part, values in parts.items()}
    return released_from(dareg, {**facts["modules"], **ranks, **stored, "proj": proj}, source, source)


def _save(weights: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    from safetensors.torch import save_file

    seen: set[int] = set()
    for key, value in weights.items():
        # Both encoders share what no adapter touches; a file holds it once for each.
        weights[key] = value.detach().clone() if value.data_ptr() in seen else value.detach().contiguous()
        seen.add(value.data_ptr())
    save_file(weights, path, {"format": FORMAT, **facts})
    readable_by_all(path)


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError

    try:
        return stored_header(path)
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, SafetensorError, ValueError):
        raise FileFormatError(f"{path}: {what_is_there(path) or 'not whole'}; copy or convert it again") from None
