"""What is trained, how, on what, and what to expect: one frozen recipe per stage. The command fills in paths and overrides."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gmodiff.model.autoencoder import AutoencoderShape
from gmodiff.model.dareg import DaRegShape
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.noise_reducer import NoiseShape
from gmodiff.model.regressor import Shape


@dataclass(frozen=True)
class Recipe:
    """Settings of a training stage; a checkpoint keeps them, and going on needs the same ones.

    stage: of RECIPES.   command: how it is run.   data, hours, hardware, expected: what the weights that ship were made on, what that took
    and what came out, in words, by runs whose steps, scenes and crops were others than these where they say so (cards tell the history);
    "not run yet" where nothing was.   steps: of `batch` crops of `crop_px`, `crops_per_scene` from one scene.
    scenes: different simulated brackets.   rate: largest learning rate; it rises over `warm_up` steps and falls as a cosine to 1 % of it.
    weight_decay, clip_norm: of AdamW, and of the gradient.   ema: decay of the averaged weights.   bf16: autocast in the forward pass.
    save_every: steps from checkpoint to checkpoint.   check_scenes: how many scenes never trained on are looked at each time.
    seed: of crops, initial weights and, of a regressor, scenes: later stages learn on those of the regressor they
    belong to.   shape: of the regressor; autoencoder, denoiser: of the refiner's parts; noise: of the noise reducer; full: of the
    published regressor.   latents: of the prior: "gain", or "light" for radiance itself, a baseline.
    rank, perceptual, adversarial: of sd21-onestep: of its adapters; "dists" or "pyramid"; weight of the adversarial term, 0 for none, as
    released.   recompute: of sd21-onestep: activations are computed again when gradients need them.
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
    full: DaRegShape = field(default_factory=DaRegShape)
    noise: NoiseShape = field(default_factory=NoiseShape)
    latents: str = "gain"
    rank: int = 16
    perceptual: str = "pyramid"
    adversarial: float = 0.0
    recompute: bool = False

    @property
    def full_size(self) -> bool:
        """Of the system as published (`train.full_size`)."""
        return self.stage.startswith("sd21-")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a card."""
        shapes, of_one_step = {"shape", "autoencoder", "denoiser", "full", "noise"}, {"rank", "perceptual", "adversarial", "recompute"}
        used = {"full"} if self.full_size else _SHAPES.get(self.stage, {"autoencoder", "denoiser"})
        left_out = shapes if self.stage == "sd21-onestep" else shapes | of_one_step
        if self.stage != "prior":
            left_out = left_out | {"latents"}
        plain = {k: v for k, v in asdict(self).items() if k not in left_out}
        return plain | {k: getattr(self, k).as_dict() for k in sorted(used)}


_SHAPES = {"regressor": {"shape"}, "mask": {"shape"}, "noise": {"noise"}}
NOT_RUN = "not run yet"

REGRESSOR = Recipe(
    stage="regressor",
    command="gmodiff train regressor --data DATA --out RUN --cache CACHE",
    data="54 CC0 HDR panoramas and 118 open-licence photos (neither validation panoramas nor held-out photos), simulated brackets",
    hours="not run yet as it stands; the weights that ship took 5.0 in seven runs of 384-pixel scenes and crops of 192 (gmodiff models)",
    hardware="2 cores with AVX-512, no accelerator",
    expected="of those runs: 1.1 dB PSNR-mu above the classical merge on real-static, 0.7 on synthetic-val (docs/results.md)",
    steps=9500,
    crop_px=320,
)
MASK = Recipe(
    stage="mask",
    command="gmodiff train mask --data DATA --from RUN --out RUN_MASK --cache CACHE",
    data=REGRESSOR.data,
    hours="0.14 for 1900 steps on two shared CPU cores",
    hardware=REGRESSOR.hardware,
    expected="average precision 0.32 where 0.17 of the pixels are doubtful (32 scenes of the training pictures, not trained on)",
    steps=1500,
    rate=1e-3,
    seed=2,
)
NOISE = Recipe(
    stage="noise",
    command="gmodiff train noise --data DATA --regressor REGRESSOR --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours="0.4 for 4000 steps on 400 scenes, in 2 processes on two shared CPU cores with AVX2",
    hardware=REGRESSOR.hardware,
    expected="0.3 dB PSNR-mu above the held estimate where the reference measured, all of it from ISO 1600 on",
    steps=4000,
    batch=8,
    crop_px=128,
    rate=1e-3,
    seed=6,
)
AUTOENCODER = Recipe(
    stage="autoencoder",
    command="gmodiff train autoencoder --data DATA --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours="1.6 for the 8900 steps of the shipped weights (three runs), in 2 processes on two shared CPU cores",
    hardware=REGRESSOR.hardware,
    expected="after 8900 steps: 36.6 dB PSNR of unseen gain maps without skips, 41.5 with",
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
    hours="0.2 for 1500 steps, in 2 processes on two CPU cores",
    hardware=REGRESSOR.hardware,
    expected="noise predicted to 0.027 mean squared error, 0.009 at the one step (1500 steps on new latents, from the denoiser of before)",
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
    hours="0.4 for 1800 steps, in 2 processes on two CPU cores",
    hardware=REGRESSOR.hardware,
    expected="after 1800 steps: 0.3 dB above the regressor alone where its answer is used (unseen scenes of the training pictures)",
    steps=4000,
    batch=8,
    crop_px=192,
    rate=3e-4,
    seed=5,
)
FULL_REGRESSOR = Recipe(
    stage="sd21-regressor",
    command="gmodiff train sd21-regressor --data DATA --out RUN --cache CACHE",
    data=REGRESSOR.data,
    hours=NOT_RUN,
    hardware="one GPU of 24 GB or more",
    expected=NOT_RUN,
    steps=100_000,
    batch=8,
    crop_px=256,
    rate=2e-4,
    weight_decay=0.0,
    save_every=2000,
    check_scenes=2,
    seed=1,
)
FULL_MASK = replace(
    FULL_REGRESSOR,
    stage="sd21-mask",
    command="gmodiff train sd21-mask --data DATA --from RUN --out RUN_MASK --cache CACHE",
    steps=20_000,
    seed=2,
)
FULL_ONE_STEP = replace(
    FULL_REGRESSOR,
    stage="sd21-onestep",
    command="gmodiff train sd21-onestep --data DATA --regressor RUN_MASK --backbone BACKBONE --out RUN --cache CACHE --bf16",
    rate=5e-5,
    weight_decay=1e-2,
    batch=4,
    seed=5,
)
"""Rates, weight decay, rank and crops as published (sections 3.3, 3.4 and 4.1); how many steps the paper does not say."""
RECIPES = {r.stage: r for r in (REGRESSOR, MASK, NOISE, AUTOENCODER, PRIOR, ONE_STEP, FULL_REGRESSOR, FULL_MASK, FULL_ONE_STEP)}
