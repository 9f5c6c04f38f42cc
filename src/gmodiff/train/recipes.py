"""What is trained, how, on what, and what to expect: one frozen recipe per stage. The command fills in paths and overrides."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from gmodiff.model.autoencoder import AutoencoderShape
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.regressor import Shape


@dataclass(frozen=True)
class Recipe:
    """Settings of a training stage; a checkpoint keeps them, and going on needs the same ones.

    stage: of RECIPES.   command: how it is run.   data, hours, hardware, expected: what it was tried on, what it took there
    and what came out, in words; "not run yet" where it was not.   steps: of `batch` crops of `crop_px`, `crops_per_scene` from one scene.
    scenes: different simulated brackets.   rate: largest learning rate; it rises over `warm_up` steps and falls as a cosine to 1 % of it.
    weight_decay, clip_norm: of AdamW, and of the gradient.   ema: decay of the averaged weights.   bf16: autocast in the forward pass.
    save_every: steps from checkpoint to checkpoint.   check_scenes: how many scenes never trained on are looked at each time.
    seed: of scenes, crops and initial weights.   shape: of the regressor; autoencoder, denoiser: of the refiner's parts.
    """

    stage: str
    command: str
    data: str
    hours: str
    hardware: str
    expected: str
    steps: int
    scenes: int = 1200
    batch: int = 4
    crop_px: int = 192
    crops_per_scene: int = 1
    rate: float = 6e-4
    warm_up: int = 200
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.999
    bf16: bool = False
    save_every: int = 500
    check_scenes: int = 16
    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    autoencoder: AutoencoderShape = field(default_factory=AutoencoderShape)
    denoiser: DenoiserShape = field(default_factory=DenoiserShape)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a card."""
        shapes = {"shape", "autoencoder", "denoiser"}
        used = {"shape"} if self.stage in ("regressor", "mask") else {"autoencoder", "denoiser"}
        plain = {k: v for k, v in asdict(self).items() if k not in shapes}
        return plain | {k: getattr(self, k).as_dict() for k in sorted(used)}


NOT_RUN = "not run yet"

REGRESSOR = Recipe(
    stage="regressor",
    command="gmodiff train regressor --data DATA --out RUN --cache CACHE",
    data="54 CC0 HDR panoramas and 118 open-licence photos (neither validation panoramas nor held-out photos), simulated brackets",
    hours="the shipped weights took 4.3 in all, in several runs (gmodiff models)",
    hardware="2 cores with AVX-512, no accelerator",
    expected="1.3 dB PSNR-mu above the classical merge on synthetic-val (docs/results.md; 3 dB are aimed at)",
    steps=9500,
)
MASK = Recipe(
    stage="mask",
    command="gmodiff train mask --data DATA --from RUN --out RUN_MASK --cache CACHE",
    data=REGRESSOR.data,
    hours="0.1 on two shared CPU cores",
    hardware=REGRESSOR.hardware,
    expected="average precision well above the share of doubtful pixels",
    steps=1500,
    rate=1e-3,
    seed=2,
)
AUTOENCODER = Recipe(
    stage="autoencoder",
    command="gmodiff train autoencoder --data DATA --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours=NOT_RUN,
    hardware=REGRESSOR.hardware,
    expected=NOT_RUN,
    steps=4000,
    batch=8,
    crop_px=128,
    rate=1e-3,
    seed=3,
)
PRIOR = Recipe(
    stage="prior",
    command="gmodiff train prior --data DATA --from AUTOENCODER --regressor REGRESSOR --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours=NOT_RUN,
    hardware=REGRESSOR.hardware,
    expected=NOT_RUN,
    steps=6000,
    batch=8,
    crop_px=192,
    rate=6e-4,
    seed=4,
)
ONE_STEP = Recipe(
    stage="onestep",
    command="gmodiff train onestep --data DATA --from PRIOR --regressor REGRESSOR --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours=NOT_RUN,
    hardware=REGRESSOR.hardware,
    expected=NOT_RUN,
    steps=4000,
    batch=8,
    crop_px=192,
    rate=3e-4,
    seed=5,
)
RECIPES = {r.stage: r for r in (REGRESSOR, MASK, AUTOENCODER, PRIOR, ONE_STEP)}
