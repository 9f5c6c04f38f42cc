"""The command `gmodiff`, its full-size system at the size of its stand-in: python small_sd21_command.py FOLDER train sd21-onestep ...

Every process leaves what it trained in FOLDER as rank0.pt, rank1.pt ...
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gmodiff.cli import main
from gmodiff.model import sd21, sd21_backbone
from gmodiff.train import loop
from gmodiff.train.recipes import RECIPES
from sd21_standin import SHAPE, WIDTH


def kept(folder: Path):
    """`stages.begin`, whose stage is written at the end, whatever process it is in."""
    begin, leave = loop.begin, loop.Team.leave

    def beginning(*given):
        stage = begin(*given)

        def leaving(team):
            learned = {n: p.detach() for n, p in stage.named_parameters() if p.requires_grad}
            torch.save(learned, folder / f"rank{os.environ.get('RANK', '0')}.pt")
            leave(team)

        loop.Team.leave = leaving
        return stage

    return beginning


if __name__ == "__main__":
    sd21.PUBLISHED, sd21_backbone.CONTEXT_WIDTH = SHAPE, WIDTH
    for name in ("sd21-regressor", "sd21-mask", "sd21-onestep"):
        RECIPES[name] = replace(RECIPES[name], full=SHAPE)
    loop.begin = kept(Path(sys.argv.pop(1)))
    main()
