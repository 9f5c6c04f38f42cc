"""The authors' two files: `dareg_mask.pth` and `gmodiff.pkl`, read without running anything in them, every key accounted for.

A torch file is a pickle, and a pickle is a program. These are read with `weights_only=True`: tensors, numbers, text, and nothing that
runs. What the files must hold follows from the lists of module names in `gmodiff.pkl` and from the shapes of the backbone, so a key that
is missing, unexpected or of another shape is named rather than skipped.

The adapters are LoRA (Hu et al. 2021, section 4.1): W + alpha / rank * B A. They are added to the weights when these are loaded; nothing
of them is left to slow the network down.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.dareg import DaReg, DaRegShape
from gmodiff.model.weights import read_tensors, write_tensors

DAREG_FILE, GMODIFF_FILE = "dareg_mask.pth", "gmodiff.pkl"
LORA_ALPHA = 8.0
"""alpha of every adapter. The release sets the rank alone and leaves alpha to peft, whose LoraConfig has 8; at rank 16 the scale is 0.5."""

ADAPTERS: Mapping[str, Mapping[str, str]] = {
    "unet": {
        "unet_lora_encoder_modules": "default_encoder",
        "unet_lora_decoder_modules": "default_decoder",
        "unet_lora_others_modules": "default_others",
    },
    "vae": {"vae_lora_encoder_modules": "default_encoder", "vae_lora_decoder_modules": "default_decoder"},
    "vae_c": {"vae_c_lora_encoder_modules": "default_encoder"},
}
"""Part of the system to its lists of modules, and what keys call the adapter of each list."""

UNUSED = "decoder.skip_conv_"
"""The second VAE was saved with skip convolutions that its encoder never runs: keys that begin so may be there, and are left out."""

_LISTED = 3
"""Keys named of each kind in one message; the others are counted."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Released:
    """What the two files hold, as stored.

    dareg, proj: state dicts of the regressor and of the context.   parts: "unet", "vae", "vae_c" to what is stored beside the backbone.
    modules: name of a list to the modules it names, each once.   ranks: part to its LoRA rank.   source, dareg_source: files, for messages.
    """

    dareg: Weights = field(repr=False)
    proj: Weights = field(repr=False)
    parts: Mapping[str, Weights] = field(repr=False)
    modules: Mapping[str, tuple[str, ...]] = field(repr=False)
    ranks: Mapping[str, int]
    source: str
    dareg_source: str

    def adapters(self, part: str) -> dict[str, tuple[str, ...]]:
        """Adapter of one part to the modules it is on."""
        return {adapter: self.modules[listed] for listed, adapter in ADAPTERS[part].items()}


def read_released(folder: Path, option: str = "--weights") -> Released:
    """Read FOLDER/dareg_mask.pth and FOLDER/gmodiff.pkl. option: what the user named the folder with.

    Raises InputError where the folder or a file is not there, FileFormatError where a file is cut short, holds code, or is something else.
    """
    if not folder.is_dir():
        raise InputError(f"{option} {folder}: not a folder; expected the one that holds {DAREG_FILE} and {GMODIFF_FILE}")
    paths = [folder / DAREG_FILE, folder / GMODIFF_FILE]
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise InputError(f"{option} {folder}: {' and '.join(missing)} not there; put both released files into one folder")
    dareg = _unpickled(paths[0])
    if "state_dict_unet" in dareg:
        if "state_dict" in _unpickled(paths[1]):
            raise FileFormatError(f"{option} {folder}: {DAREG_FILE} and {GMODIFF_FILE} are exchanged; give each the other's name")
        raise FileFormatError(f"{paths[0]}: holds what belongs into {GMODIFF_FILE}; put the released regressor in its place")
    if not isinstance(dareg.get("state_dict"), dict):
        raise FileFormatError(f"{paths[0]}: no state_dict in it, but {_named(dareg)}; expected the released regressor with its mask head")
    stored = _unpickled(paths[1])
    if isinstance(stored.get("state_dict"), dict) and "state_dict_unet" not in stored:
        raise FileFormatError(f"{paths[1]}: holds a regressor, as {DAREG_FILE} does; put the released checkpoint in its place")
    return released_from(dareg["state_dict"], stored, str(paths[0]), str(paths[1]))


DAREG_FORMAT = "gmodiff-dareg-1"


def read_dareg(path: Path, shape: DaRegShape) -> tuple[DaReg, dict[str, Any]]:
    """A published regressor from a run of ours (.safetensors) or a released file (.pth), and the facts beside it.

    Raises FileFormatError where keys or shapes are not those of `shape`.
    """
    network = DaReg(shape)
    if path.suffix == ".safetensors":
        weights, header = read_tensors(path, DAREG_FORMAT)
        facts: dict[str, Any] = json.loads(header.get("facts", "{}"))
    else:
        content = _unpickled(path)
        if not isinstance(content.get("state_dict"), dict):
            raise FileFormatError(f"{path}: no state_dict in it, but {_named(content)}; expected a released regressor")
        weights, facts = _tensors(content["state_dict"], str(path)), {}
    network.load_state_dict(check_whole(weights, network.state_dict(), str(path)))
    return network, facts


def write_dareg(network: DaReg, path: Path, facts: dict[str, Any]) -> None:
    """Weights and facts (.safetensors)."""
    write_tensors(network.state_dict(), path, {"format": DAREG_FORMAT, "facts": json.dumps(facts)}, half=False)


def released_from(dareg: Mapping[str, Any], stored: Mapping[str, Any], dareg_source: str, source: str) -> Released:
    """The same from dictionaries already in memory: the regressor's state dict and the content of gmodiff.pkl."""
    lists = [name for part in ADAPTERS.values() for name in part]
    wanted = {*lists, *(f"rank_{p}" for p in ADAPTERS), *(f"state_dict_{p}" for p in ADAPTERS), "proj"}
    missing, unexpected = sorted(wanted - set(stored)), sorted(set(map(str, stored)) - wanted)
    if missing or unexpected:
        raise FileFormatError(
            f"{source}: not the released GMODiff checkpoint, or another version of it; get it from its authors "
            f"({_differences(missing, unexpected, [])})"
        )
    ranks = {part: stored[f"rank_{part}"] for part in ADAPTERS}
    if not all(type(r) is int and r > 0 for r in ranks.values()):
        raise FileFormatError(f"{source}: LoRA ranks {ranks}, expected whole numbers above 0")
    modules = {}
    for name in lists:
        if not isinstance(stored[name], (list, tuple)) or not all(isinstance(m, str) for m in stored[name]):
            raise FileFormatError(f"{source}: {name} is no list of module names")
        modules[name] = tuple(dict.fromkeys(m.removeprefix("module.") for m in stored[name]))
    return Released(
        dareg=_tensors(dareg, dareg_source),
        proj=_tensors(stored["proj"], f"{source} (proj)"),
        parts={part: _tensors(stored[f"state_dict_{part}"], f"{source} (state_dict_{part})") for part in ADAPTERS},
        modules=modules,
        ranks=ranks,
        source=source,
        dareg_source=dareg_source,
    )


def account(expected: Mapping[str, Collection[int]], found: Weights, source: str) -> None:
    """Raise FileFormatError, naming every kind of difference, unless found has exactly the expected keys and shapes."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    shapes = [
        f"{k} {list(v.shape)} instead of {list(expected[k])}"
        for k, v in found.items()
        if k in expected and tuple(v.shape) != tuple(expected[k])
    ]
    if missing or unexpected or shapes:
        what = "weights of another size or backbone" if shapes else "weights of another model or version"
        raise FileFormatError(f"{source}: {what}; give files that belong together ({_differences(missing, unexpected, shapes)})")


def check_whole(weights: Weights, expected: Weights, source: str) -> dict[str, Tensor]:
    """weights in the float32 that `expected`, a module's own state dict, describes."""
    account({k: v.shape for k, v in expected.items()}, weights, source)
    return {k: v.to(expected[k].dtype) for k, v in weights.items()}


def folded_part(
    backbone: Weights,
    own: Mapping[str, Collection[int]],
    stored: Weights,
    adapters: Mapping[str, Iterable[str]],
    rank: int,
    source: str,
    *,
    unused: str | None = None,
) -> dict[str, Tensor]:
    """One part of the system as plain float32 weights, adapters folded in.

    backbone: the part's own weights.   own: names and shapes of parameters that the checkpoint brings, instead of the backbone's or new.
    stored: the part's state dict.   adapters: to the modules each is on.   unused: keys of `stored` that begin so are left out.
    Raises FileFormatError where a listed module is not in the backbone, or keys are not exactly those that follow.
    """
    kept = {k: v for k, v in stored.items() if unused is None or not k.startswith(unused)}
    shapes: dict[str, Collection[int]] = {**{k: v.shape for k, v in backbone.items()}, **own}
    listed = {m for modules in adapters.values() for m in modules}
    foreign = sorted(m for m in listed if f"{m}.weight" not in shapes)
    if foreign:
        raise FileFormatError(
            f"{source}: made for another backbone; give that one ({len(foreign)} adapters on modules that this one lacks: {_few(foreign)})"
        )

    def key_of(parameter: str) -> str:
        """Where a parameter of its own is stored: peft moves what it adapts one level down."""
        module, _, leaf = parameter.rpartition(".")
        return f"{module}.base_layer.{leaf}" if module in listed else parameter

    expected: dict[str, Collection[int]] = {key_of(name): shape for name, shape in own.items()}
    for adapter, modules in adapters.items():
        for module in modules:
            outputs, *inputs = shapes[f"{module}.weight"]
            flat = [1] * (len(inputs) - 1)
            expected[f"{module}.lora_A.{adapter}.weight"] = [rank, *inputs]
            expected[f"{module}.lora_B.{adapter}.weight"] = [outputs, rank, *flat]
    account(expected, kept, source)

    result = {k: v.float() for k, v in backbone.items()} | {name: kept[key_of(name)].float() for name in own}
    for adapter, modules in adapters.items():
        for module in modules:
            down, up = (kept[f"{module}.lora_{half}.{adapter}.weight"].float() for half in "AB")
            result[f"{module}.weight"] = result[f"{module}.weight"] + LORA_ALPHA / rank * low_rank(down, up)
    return result


def low_rank(down: Tensor, up: Tensor) -> Tensor:
    """B A: (rank, in) and (out, rank) to (out, in); for convolutions (rank, in, k, k) and (out, rank, 1, 1) to (out, in, k, k)."""
    return torch.einsum("or,r...->o...", up.flatten(1), down)


# ---- reading ----------------------------------------------------------------------------------------------------------------


def load_tensors(path: Path) -> Any:
    """A torch file's content, nothing in it run. Raises FileFormatError for code, a cut-off or another kind of file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of unusual files ends in an error below, or is of no consequence
            return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from None
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no pickle can end in any error there is
        what = what_is_there(path)
        if what is None and isinstance(error, pickle.UnpicklingError) and "eights only load failed" in str(error):
            raise FileFormatError(
                f"{path}: refused, it holds more than weights, and reading that would run code; download it again from its authors"
            ) from None
        raise FileFormatError(f"{path}: {what or 'half downloaded'}; download it again") from None


def what_is_there(path: Path) -> str | None:
    """What a file that cannot be read is, in place of weights; None: perhaps a part of them."""
    with path.open("rb") as file:
        first = file.read(256)
    if not first:
        return "empty"
    if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:2].lower() in (b"<!", b"<h", b"<?"):
        return "a web page, not the file (perhaps a page that asks to log in, or says what went wrong)"
    if first.startswith(b"version https://git-lfs"):
        return "a pointer of git-lfs, not the file (git lfs pull fetches it)"
    if first.lstrip()[:1] == b"{" or not any(byte > 126 or byte < 9 for byte in first):
        return None if _may_be_a_pickle(first) else "a text, not the file"
    return None


def _may_be_a_pickle(first: bytes) -> bool:
    """Whether text begins as the oldest pickles do, which are text."""
    return first[:1] in b"(c]}IlFSV"


def _unpickled(path: Path) -> dict[str, Any]:
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: holds one {type(content).__name__}, expected a dictionary of weights")
    return content


def _tensors(stored: Any, source: str) -> dict[str, Tensor]:
    """A state dict without the prefix that a multi-GPU wrapper leaves. Raises FileFormatError for what is not finite tensors by name."""
    if not isinstance(stored, dict):
        raise FileFormatError(f"{source}: holds one {type(stored).__name__} where weights by name are expected")
    plain: dict[str, Tensor] = {}
    twice, no_tensor, not_finite = [], [], []
    for key, value in stored.items():
        name = str(key)
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name in plain:
            twice.append(name)
        elif not isinstance(value, Tensor):
            no_tensor.append(name)
        elif not _finite(value):
            not_finite.append(name)
        else:
            plain[name] = value
    kinds = [("there twice", twice), ("not a tensor", no_tensor), ("not finite", not_finite)]
    wrong = "; ".join(f"{what}: {_few(names)}" for what, names in kinds if names)
    if wrong:
        raise FileFormatError(f"{source}: weights that are {wrong}; download it again")
    return plain


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or math.isfinite(float(value.detach().sum(dtype=torch.float64)))


def _differences(missing: Collection[str], unexpected: Collection[str], shapes: Collection[str]) -> str:
    kinds: list[tuple[str, Collection[str]]] = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    return "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in kinds if names)


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown


def _named(stored: Mapping[Any, Any]) -> str:
    return _few([str(k) for k in stored]) or "nothing"
