"""`gmodiff convert`: the two released files, with or without their backbone, as one safetensors file and a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gmodiff import __version__
from gmodiff.errors import InputError, MissingDependencyError
from gmodiff.full_model import released_card
from gmodiff.model_card import CARD_FORMAT, CARD_SUFFIX, sha256
from gmodiff.writer import check_writable, replacing

WEIGHTS_SUFFIX = ".safetensors"


def convert(weights: str | Path, output: str | Path, *, backbone: str, fold: bool = False, force: bool = False) -> dict[str, Any]:
    """Write OUTPUT.safetensors and its card OUTPUT.json, and return the card.

    weights: folder with the two released files.   backbone: folder or hub id of Stable Diffusion 2.1 base; every key is checked against it.
    fold: the backbone goes into the file too, with the adapters added to it; otherwise it is needed again when the model is used.
    Both files are made beside their place and moved there when they are complete. Raises InputError, FileFormatError, OutputError or
    MissingDependencyError, each saying what to do.
    """
    target = Path(output)
    if target.suffix not in (WEIGHTS_SUFFIX, CARD_SUFFIX):
        raise InputError(f"-o {target}: expected a name ending in {WEIGHTS_SUFFIX}")
    target, card_path = target.with_suffix(WEIGHTS_SUFFIX), target.with_suffix(CARD_SUFFIX)
    folder = Path(weights)
    check_writable([], others=[target, card_path], force=force, inputs=[p for p in folder.glob("*") if p.is_file()])
    try:
        from gmodiff.model.released import DAREG_FILE, GMODIFF_FILE, read_released
        from gmodiff.model.sd21 import assemble
        from gmodiff.model.sd21_backbone import open_backbone
        from gmodiff.model.sd21_files import save_adapters, save_folded
    except ImportError as error:
        raise MissingDependencyError(f'converting needs {error.name or "torch"}: pip install "gmodiff[sd21]"') from None
    released = read_released(folder)
    system = assemble(open_backbone(backbone), released)  # also what proves that they belong together
    with replacing(target, force) as unfinished:
        if fold:
            save_folded(system, unfinished)
        else:
            save_adapters(released, unfinished)
        card = released_card({target.name: sha256(unfinished)}, backbone)
        facts = {
            "format": CARD_FORMAT, "name": card.name, "about": card.about, "kind": card.kind,
            "sha256": dict(card.sha256), "max_frames": card.max_frames,
            "stride": card.stride, "halo_px": card.halo_px, "gain_limit": card.gain_limit, **card.facts, "holds_backbone": fold,
            "parameters": sum(p.numel() for p in system.parameters()),
            "made_from": {name: sha256(folder / name) for name in (DAREG_FILE, GMODIFF_FILE)}, "made_by": f"gmodiff {__version__}",
        }  # fmt: skip
        with replacing(card_path, force) as unfinished_card:
            unfinished_card.write_text(json.dumps(facts, indent=2) + "\n")
    return facts
