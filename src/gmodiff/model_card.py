"""What a model is: a card (what made it, its limits, the hash of its weights) and a function from named arrays to named arrays.

The pipeline never knows what runs behind it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from gmodiff.errors import FileFormatError, InputError
from gmodiff.radiometry import F32

FULL_MODEL = "sd21"
"""Name of the full-size model, and what the cards of files converted from it say they are."""
KINDS = ("regressor", "refiner", FULL_MODEL)
REFINER_ANSWER = "change"
"""What a refiner was trained to answer: the change that denoising makes, put on the estimate. Cards and weights that do not say so are
older, and were trained for decode(x0) alone."""
CARD_SUFFIX = ".json"
CARD_FORMAT = "gmodiff-card-1"
REFINER_SUFFIX = "-refiner"
NOISE_SUFFIX = "-noise"
"""Of the name of a regressor's files, those of the network that reduces noise beside it; they have no card of their own."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Card:
    """What a model is.

    name, about: for people.   sha256: file name to the hash of its content.   max_frames: most frames of a bracket that it takes.
    stride: sides of its input are multiples of it.   halo_px: how far around a pixel it has to see.
    kind: "regressor"; "refiner", which works beside one; or FULL_MODEL, which does both.
    facts: everything else the file says: data, licences, hours, hardware, scores, recipe.
    """

    name: str
    about: str
    sha256: Mapping[str, str]
    max_frames: int
    stride: int
    halo_px: int
    gain_limit: float
    kind: str = "regressor"
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the weights, of which files that a model made tell."""
        return hashlib.sha256(json.dumps(dict(self.sha256), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def state(self) -> str:
        """All that the card says that decides answers, so that whoever keeps some knows when to ask again: the fingerprint, a point, and 8
        digits of threshold, reach and limits.
        """
        noise = self.facts.get("noise") or {}
        limits = [self.max_frames, self.stride, self.halo_px, self.gain_limit, self.facts.get("threshold")]
        limits += [noise.get("stride"), noise.get("halo_px")]
        return f"{self.fingerprint}.{hashlib.sha256(json.dumps(limits, sort_keys=True).encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """Name and fingerprint, as files are signed: two models may have one name. The name alone where the card names no weights."""
        return f"{self.name} {self.fingerprint}" if self.sha256 else self.name

    @staticmethod
    def read(path: Path) -> Card:
        """Raises FileFormatError where the file is not a card of ours."""
        try:
            stored = json.loads(path.read_text())
            if not isinstance(stored, dict):
                raise ValueError("no JSON object")
            if stored.pop("format") != CARD_FORMAT:
                raise ValueError("another format")
            known = {k: stored.pop(k) for k in ("name", "about", "sha256", "max_frames", "stride", "halo_px", "gain_limit")}
            card = Card(**known, kind=stored.pop("kind", "regressor"), facts=stored)
            if card.kind not in KINDS:
                raise ValueError(f"kind {card.kind!r}: this version knows {', '.join(KINDS)}")
            if card.kind == "refiner":
                threshold = stored["threshold"]
                if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < 1:
                    raise ValueError(f"threshold is {threshold!r}, expected a number from 0 up to 1")
                if not isinstance(stored["guide"], str):
                    raise ValueError(f"guide is {stored['guide']!r}, expected the hash of a regressor's weights")
            beside = stored.get("noise")
            if beside is not None:
                if not isinstance(beside, dict):
                    raise ValueError(f"noise is {beside!r}, expected what is known of a noise reducer")
                sizes = [beside[k] for k in ("stride", "halo_px")]
                if card.kind != "regressor" or not all(type(n) is int and n > 0 for n in sizes) or sizes[1] % sizes[0]:
                    raise ValueError("a noise reducer of no regressor, or its stride or halo_px out of range")
            if card.kind == "refiner" and stored.get("answer") != REFINER_ANSWER:
                raise FileFormatError(f"{path}: a refiner of an older version, which answered otherwise: train it again")
            whole = (card.max_frames, card.stride, card.halo_px)
            if not (isinstance(card.sha256, dict) and all(type(n) is int and n > 0 for n in whole) and card.max_frames > 2):
                raise ValueError("max_frames, stride or halo_px out of range")
            number = isinstance(card.gain_limit, (int, float))
            if card.halo_px % card.stride or not number or not 0 < card.gain_limit < 10:
                raise ValueError("halo_px is no multiple of stride, or gain_limit out of range")
            return card
        except OSError as error:
            raise FileFormatError(
                f"{path}: cannot be read ({error.strerror}); expected a model card (.json), see gmodiff train export"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise FileFormatError(f"{path}: not a model card of this program ({why}); export or copy it again") from None


class Model(Protocol):
    """A network, ready to run."""

    @property
    def card(self) -> Card:
        """What it is."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it, in words."""
        ...

    def __call__(self, inputs: Arrays) -> dict[str, F32]:
        """Arrays by name; see `model.on_arrays` for the compact model's."""
        ...


def rest(model: Model) -> None:
    """Let a model go of its working memory, if it can: anything that answers as a model does will do."""
    let_go = getattr(model, "rest", None)
    if let_go is not None:
        let_go()


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_weights(path: Path, card: Card) -> None:
    """Raise FileFormatError unless a file's content is what the card says, InputError where it is not there."""
    wanted = card.sha256.get(path.name)
    if wanted is None:
        named = ", ".join(sorted(card.sha256)) or "no file"
        raise InputError(
            f"{path.with_suffix(CARD_SUFFIX)}: this runtime needs {path.name} beside it, and the card names {named}: "
            "give card and files the names they were made with"
        )
    try:
        found = sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); the weights of model {card.name} belong there") from None
    if found != wanted:
        raise FileFormatError(
            f"{path}: not the weights that the card of model {card.name} names (sha256 {found[:12]}, expected {wanted[:12]}): "
            "install or copy it again"
        )
