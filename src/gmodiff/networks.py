"""A network as a command or a batch asks for it, by options: loaded, with its refiner, ready to estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gmodiff.errors import InputError
from gmodiff.estimate import Estimates, Estimator, check_tile
from gmodiff.model_card import FULL_MODEL, Model
from gmodiff.refine import Refinement
from gmodiff.runtime import NO_MODEL, check_model, load_card, load_model, load_refiner

SHRINK = {"auto": None, "full": 1, "half": 2}
"""How much smaller a side the network sees the picture, by the name of the choice; None: by the number of its pixels."""


def refuse_idle(given: Mapping[str, bool]) -> None:
    """Raise InputError where options of the network are given (option to whether it is) and the model is none."""
    idle = [option for option, is_given in given.items() if is_given]
    if idle:
        raise InputError(f"{', '.join(idle)}: of the network, and --model is none: leave this out, or leave --model out")


class Network(NamedTuple):
    """The model, whose card names it, and what `reconstruct` is given; both None for the classical merge."""

    model: Model | None
    estimates: Estimates | None


def check_network(name: str, *, tile: int | None = None, refine: float = 0.0, keep_noise: bool = False) -> None:
    """What can be said of a network by name without loading it: raises what `check_model` does, and InputError for a tile too small.

    The rest as `load_network`.
    """
    check_model(name, refined=refine > 0, keep_noise=keep_noise)
    card = load_card(name)
    if tile is not None and card.kind != FULL_MODEL:
        check_tile((tile, tile), card)


def load_network(
    name: str, *, estimate_size: str = "auto", tile: int | None = None, refine: float = 0.0, keep_noise: bool = False, **options: Any
) -> Network:
    """A network by name, or none.

    estimate_size: auto, full or half.   tile: side in pixels, or None.   refine: the refiner's share, 0..1.
    keep_noise: as `Estimator`.   options: of `load_model`.
    Raises InputError for what does not go together, and what `load_model` and `load_refiner` raise.
    """
    if name == NO_MODEL:
        return Network(None, None)
    model = load_model(name, **options)
    own = getattr(model, "estimator", None)  # the full-size model is fed in another way
    if own is None:
        refiner = load_refiner(name, runtime=options.get("runtime", "auto"), device=options.get("device", "auto")) if refine != 0 else None
        refinement = None if refiner is None else Refinement(refiner, refine)
        size = None if tile is None else (tile, tile)
        return Network(model, Estimator(model, size, SHRINK[estimate_size], refinement, keep_noise))
    if estimate_size == "half":
        raise InputError(f"--estimate-size {estimate_size}: model {name} sees every pixel; merge smaller copies, or leave this out")
    if refine != 0:
        raise InputError(f"--refine {refine:g}: model {name} refines everything by itself; leave this out")
    return Network(model, own(tile))
