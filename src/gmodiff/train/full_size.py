"""Training of the full-size system as published: regressor, mask, and one step on Stable Diffusion 2.1 with adapters (sections 3.3, 3.4).

The photos of a scene become what the released program takes: short frame, reference and long frame, encoded with a gamma of 2.2, exposures
relative to the short frame's, chosen as `full_estimate` chooses them in use. Runs leave the files
that the released program has in the same layout, `dareg_mask.pth` after the mask and `gmodiff.pkl` after one step:
`gmodiff merge --model sd21 --backbone BACKBONE --weights RUN` uses both.

Only what learns is kept in checkpoints; the backbone is read again when a run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from gmodiff.datasets.scene import fingerprint
from gmodiff.errors import GMODiffError, InputError
from gmodiff.evaluate.perceptual import PiqMetric
from gmodiff.full_estimate import three_of
from gmodiff.model.dareg import GAMMA, DaReg, Regressed, network_input
from gmodiff.model.regressor import mu_gain, radiance_from_mu_gain
from gmodiff.model.released import (
    ADAPTERS,
    DAREG_FILE,
    GMODIFF_FILE,
    LORA_ALPHA,
    UNUSED,
    Released,
    account,
    check_whole,
    low_rank,
    read_dareg,
    read_released,
    released_from,
    write_dareg,
)
from gmodiff.model.sd21 import Sd21, untrained
from gmodiff.model.sd21_backbone import LATENT_CHANNELS, open_backbone
from gmodiff.model.sd21_files import read_adapters, save_adapters
from gmodiff.train.crops import Batch
from gmodiff.train.losses import ERROR_ABSOLUTE, PAPER_LUMINANCE, average_precision, compress, mask_loss, psnr_mu, pyramid_loss
from gmodiff.train.recipes import Recipe
from gmodiff.train.stage import Parts, Stage
from gmodiff.writer import replacing

WITHOUT_ADAPTERS = ("time_emb", "post_quant_conv")
"""Parts of module names that the released lists leave out; every other convolution and projection carries an adapter."""


def begin_full_size(recipe: Recipe, start: Path | None, regressor: Path | None, backbone: str | None) -> Stage:
    """See `stages.begin`.

    start: a regressor's weights (needed by the mask, else to go on with); for one step, an earlier run's, or a released file with the other
    beside it.   regressor: with its mask, for one step; None: the one in `start`.   backbone: as `open_backbone`.
    """
    torch.manual_seed(recipe.seed)
    if recipe.stage == "sd21-onestep":
        return _begin_one_step(recipe, start, regressor, backbone)
    if recipe.stage == "sd21-mask" and start is None:
        raise InputError("sd21-mask is trained on a finished regressor: give its run or weights with --from")
    dareg, facts = (DaReg(recipe.full), {}) if start is None else read_dareg(start, recipe.full)
    return (FullMaskStage if recipe.stage == "sd21-mask" else FullEstimateStage)(recipe, facts, dareg)


def _begin_one_step(recipe: Recipe, start: Path | None, regressor: Path | None, backbone: str | None) -> FullOneStepStage:
    """Raises InputError where something is missing, or was trained on another backbone or with another rank; FileFormatError for weights
    of another shape.
    """
    if backbone is None or (regressor is None and start is None):
        raise InputError(
            "sd21-onestep stands on a regressor with its mask and on a backbone: give --regressor RUN and --backbone PATH "
            "(or --from an earlier run, which holds its regressor)"
        )
    begun, before = (None, {}) if start is None else _begun(start, recipe)
    if regressor is not None:
        dareg, facts = read_dareg(regressor, recipe.full)
        if "steps" in facts and "sd21-mask" not in facts["steps"]:
            raise InputError(f"--regressor {regressor} has no trained mask: gmodiff train sd21-mask makes it")
        before = _history(facts, before)
    else:
        assert begun is not None
        dareg = DaReg(recipe.full)
        dareg.load_state_dict(check_whole(begun.dareg, dareg.state_dict(), f"--from {begun.dareg_source}"))
    opened = open_backbone(backbone)
    digest = opened.digest()
    if before.get("backbone", digest) != digest:
        raise InputError(f"--from {start} was trained on backbone {before['backbone']}; --backbone {backbone} is {digest}: give that one")
    stage = FullOneStepStage(recipe, before, untrained(opened, dareg))
    stage.rests_on = {"backbone": digest}
    if begun is not None:
        stage.take(begun)
        if start is not None and start.suffix != ".safetensors":
            both = {name: start.with_name(name) for name in (DAREG_FILE, GMODIFF_FILE)}
            stage.rests_on = {"backbone": digest, "start": fingerprint("", both)}
    return stage


def _history(regressor: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """Facts of a regressor, and what a run of sd21-onestep adds to them; its own regressor's are not taken over."""
    counted = ("steps", "spent", "data", "hardware", "recipes")
    others = {k: v for k, v in start.items() if k not in (*counted, "recipe")}
    own = {k: {s: v for s, v in start.get(k, {}).items() if s == "sd21-onestep"} for k in counted}
    return others | regressor | {k: regressor.get(k, {}) | own[k] for k in counted if k in regressor or own[k]}


def _begun(start: Path, recipe: Recipe) -> tuple[Released, dict[str, Any]]:
    """Weights of an earlier run or released ones, of the recipe's rank, and the facts beside them."""
    if start.suffix == ".safetensors":
        begun, before = read_adapters(start)
    else:
        begun, before = read_released(start.parent, option="--from"), {}
    if set(begun.ranks.values()) != {recipe.rank}:
        found = ", ".join(str(r) for r in sorted(set(begun.ranks.values())))
        raise InputError(f"--from {start} has adapters of rank {found}, and --rank is {recipe.rank}: give the same, or other weights")
    return begun, before


# ---- what the published networks see ------------------------------------------------------------------------------------------


class Three(NamedTuple):
    """Short frame, reference and long frame.

    encoded: (B, 3, 3, H, W), with GAMMA.   exposures: (B, 3), relative to the short frame's.
    truth: (B, 3, H, W) radiance relative to the short frame's white.   white: (B,), the short frame's exposure relative to the reference's.
    """

    encoded: Tensor
    exposures: Tensor
    truth: Tensor
    white: Tensor


def three_frames(batch: Batch) -> Three:
    """The frames that `full_estimate` would choose of each scene, by its exposures and by what clips.

    What a frame does not cover shows the reference's light at that frame's exposure, as there.
    """
    stops = batch["stops"]
    rows = torch.arange(len(stops), device=stops.device)
    of_each = zip(stops.tolist(), batch["clipped"].tolist(), strict=True)
    chosen = torch.tensor([three_of(s, 0, c.__getitem__) for s, c in of_each], device=stops.device)
    linear, covered = (batch[k][rows[:, None], chosen] for k in ("linear", "coverage"))
    exposures = torch.exp2(stops.gather(1, chosen))
    unseen = (batch["linear"][:, :1] * exposures[..., None, None, None]).clamp(max=1)
    encoded = (covered * linear + (1 - covered) * unseen).clamp(0, 1) ** (1 / GAMMA)
    white = exposures[:, 0]
    # A batch's truth is in units of its shortest frame's white, which need not be the frame that was chosen.
    truth = batch["truth"] * (white / torch.exp2(stops.min(dim=1).values))[:, None, None, None]
    return Three(encoded, exposures / exposures[:, :1], truth, white)


def regress(dareg: DaReg, encoded: Tensor, exposures: Tensor) -> Regressed:
    """The published regressor on `three_frames`."""
    count = encoded.shape[1]
    inputs = network_input(encoded.flatten(0, 1), exposures.flatten()[:, None, None, None])
    short, middle, long = inputs.reshape(-1, count, *inputs.shape[1:]).unbind(dim=1)
    found: Regressed = dareg(short, middle, long)
    return Regressed(*(v.float() for v in found))


def published_loss(gain: Tensor, truth: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L1 on the gain and in the mu-law domain (section 3.3), and the two pictures in that domain.

    gain: (B, 3, H, W).   truth: (B, 3, H, W) radiance relative to the short frame's white; the gain ends at 1.   reference: encoded.
    """
    by_gain = (gain - mu_gain(truth, reference).clamp(max=1)).abs().mean()
    found, wanted = (compress(v.clamp(max=1)) for v in (radiance_from_mu_gain(gain, reference), truth))
    return by_gain, (found - wanted).abs().mean(), found, wanted


def wrong_luminance(gain: Tensor, truth: Tensor, reference: Tensor) -> Tensor:
    """(B, 1, H, W), 1.0 where the luminance of the estimate is wrong by ERROR_ABSOLUTE or more (section 3.3)."""
    weights = torch.tensor(PAPER_LUMINANCE, device=gain.device)[:, None, None]
    apart = (radiance_from_mu_gain(gain, reference) - truth.clamp(max=1)) * weights
    return (apart.sum(dim=1, keepdim=True).abs() >= ERROR_ABSOLUTE).float()


# ---- stages 1 and 2 -------------------------------------------------------------------------------------------------------------


class FullEstimateStage(Stage):
    """Stage 1: DaReg's gain map."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], dareg: DaReg) -> None:
        super().__init__(recipe, before)
        self.dareg = dareg.train()

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        mask = {id(p) for p in self.dareg.mask_parameters()}
        return [p for p in self.dareg.parameters() if id(p) not in mask]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        found, three = self._regressed(batch)
        by_gain, by_mu, _, _ = published_loss(found.gain, three.truth, three.encoded[:, 1])
        return by_gain + by_mu, {"gain": by_gain, "mu": by_mu}

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the estimate and of the classical merge."""
        found, three = self._regressed(batch)
        estimated = radiance_from_mu_gain(found.gain, three.encoded[:, 1])
        merged = batch["merged"] * three.white[:, None, None, None]
        return {"psnr_mu": psnr_mu(estimated, three.truth), "merged_psnr_mu": psnr_mu(merged, three.truth)}

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """Our weights, and the released program's file beside them."""
        write_dareg(self.dareg, path, facts)
        if self.recipe.stage == "sd21-regressor":
            return  # the released file holds a trained mask
        with replacing(path.with_name(DAREG_FILE), force=True) as unfinished:
            torch.save({"state_dict": {k: v.cpu() for k, v in self.dareg.state_dict().items()}}, unfinished)

    def _regressed(self, batch: Batch) -> tuple[Regressed, Three]:
        # Never in bfloat16: the sigmoids at the end would round to 1 and pass no gradient back.
        three = three_frames(batch)
        return regress(self.dareg, three.encoded, three.exposures), three


class FullMaskStage(FullEstimateStage):
    """Stage 2: where the frozen estimate is wrong."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return self.dareg.mask_parameters()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        found, three = self._regressed(batch)
        wrong = wrong_luminance(found.gain.detach(), three.truth, three.encoded[:, 1])
        # The network ends in a sigmoid, as published; its logit is what the loss is stable on.
        return mask_loss(torch.logit(found.mask, eps=1e-6), wrong), {"share": wrong.mean()}

    def check(self, batch: Batch) -> dict[str, float]:
        """Average precision beside the share of doubtful pixels; and the estimate's figures."""
        found, three = self._regressed(batch)
        wrong = wrong_luminance(found.gain, three.truth, three.encoded[:, 1])
        return super().check(batch) | {"average_precision": average_precision(found.mask, wrong), "share": float(wrong.mean())}


# ---- stage 3 --------------------------------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """LoRA (Hu et al. 2021, section 4.1) as a parametrisation of a weight: W + alpha / rank * B A, B zero to begin with."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, *inputs = weight.shape
        self.rank = rank
        self.down = nn.Parameter(torch.randn(rank, *inputs) / rank)
        self.up = nn.Parameter(torch.zeros(outputs, rank, *[1] * (len(inputs) - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight in use."""
        return weight + LORA_ALPHA / self.rank * low_rank(self.down, self.up)


class FullOneStepStage(Stage):
    """Stage 3: adapters on the backbone, its new first convolution, the decoder's skips, and the context learn; all else is frozen."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], system: Sd21) -> None:
        super().__init__(recipe, before)
        self.system = system
        self._modules_of = {
            "unet_lora_encoder_modules": _adaptable(system.unet, lambda m: m.startswith(("conv_in", "down_blocks"))),
            "unet_lora_decoder_modules": _adaptable(system.unet, lambda m: m.startswith(("up_blocks", "conv_out"))),
            "unet_lora_others_modules": _adaptable(system.unet, lambda m: m.startswith("mid_block")),
            "vae_lora_encoder_modules": _adaptable(system.gain_encoder),
            "vae_lora_decoder_modules": _adaptable(system.gain_decoder),
            "vae_c_lora_encoder_modules": _adaptable(system.frame_encoder),
        }
        for listed, modules in self._modules_of.items():
            for name in modules:
                module = self._home(listed).get_submodule(name)
                parametrize.register_parametrization(module, "weight", Adapter(_weight(module), recipe.rank))
        if recipe.recompute:  # block by block: what is computed again at once is what the peak consists of
            system.unet.enable_gradient_checkpointing()
            for part in (system.gain_encoder, system.frame_encoder, system.gain_decoder):
                part.recompute = True
        self.judge = _judge() if recipe.adversarial > 0 else nn.Identity()
        self.perceptual = _dists() if recipe.perceptual == "dists" else None
        self.train()
        learned = {id(p) for p in self.learned()}
        self._kept = {n for n, p in self.named_parameters() if id(p) in learned}
        self._kept |= {n for n, b in self.named_buffers() if n.startswith("system.context.") and b.is_floating_point()}
        self._batches_before = 0

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        adapters = [p for m in self.system.modules() if isinstance(m, Adapter) for p in m.parameters()]
        skips = [p for n, p in self.system.gain_decoder.named_parameters() if "skip_conv_" in n and not _of_adapter(n)]
        head = [p for n, p in self.system.unet.conv_in.named_parameters() if not _of_adapter(n)]
        return [*adapters, *skips, *head, *self.system.context.parameters(), *self.judge.parameters()]

    def train(self, mode: bool = True) -> FullOneStepStage:
        """The regressor stays as it is."""
        super().train(mode)
        self.system.dareg.eval()
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # the overloads of nn.Module
        """What learns, and nothing of the backbone."""
        return {k: v for k, v in super().state_dict(*args, **kwargs).items() if k in self._kept}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`. Raises RuntimeError where it holds other names."""
        if set(state_dict) != self._kept:
            raise RuntimeError("weights of another network")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`. The adversarial term works on latents; its gradient is turned round on its way to the generator, so that one
        optimiser trains both (Ganin and Lempitsky 2015, section 3).
        """
        three, _, latent, gain = self._refined(batch)
        reference = three.encoded[:, 1]
        by_gain, by_mu, found, wanted = published_loss(gain, three.truth, reference)
        by_look = pyramid_loss(found, wanted) if self.perceptual is None else self.perceptual(found.clamp(0, 1), wanted.clamp(0, 1))
        loss, parts = by_gain + by_mu + by_look, {"gain": by_gain, "mu": by_mu, "look": by_look}
        if self.recipe.adversarial > 0:
            with torch.no_grad():
                true, _ = self.system.gain_encoder(mu_gain(three.truth, reference).clamp(max=1))
            real, made = self.judge(true), self.judge(_TurnedRound.apply(latent, self.recipe.adversarial))  # type: ignore[no-untyped-call]
            told_apart = functional.softplus(-real).mean() + functional.softplus(made).mean()
            loss, parts = loss + told_apart, parts | {"told_apart": told_apart}
        return loss, parts

    @torch.no_grad()
    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the regressor's estimate and of what became of it."""
        three, estimate, _, gain = self._refined(batch)
        pictures = {"estimate": estimate, "refined": gain.clamp(0, 1)}
        return {f"{k}_psnr_mu": psnr_mu(radiance_from_mu_gain(g, three.encoded[:, 1]), three.truth) for k, g in pictures.items()}

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """The adapters as `gmodiff convert` keeps them, and the released program's two files beside them."""
        stored = self.stored()
        made = facts["steps"][self.recipe.stage] - self.before.get("steps", {}).get(self.recipe.stage, 0)
        for name, values in stored["proj"].items():
            if name.endswith("num_batches_tracked"):  # what no checkpoint holds: it is the steps, however often the run was stopped
                values.fill_(self._batches_before + made)
        dareg = {k: v.cpu() for k, v in self.system.dareg.state_dict().items()}
        with replacing(path, force=True) as unfinished:
            save_adapters(released_from(dareg, stored, DAREG_FILE, GMODIFF_FILE), unfinished, facts)
        for name, content in ((DAREG_FILE, {"state_dict": dareg}), (GMODIFF_FILE, stored)):
            with replacing(path.with_name(name), force=True) as unfinished:
                torch.save(content, unfinished)

    def stored(self) -> dict[str, Any]:
        """What `gmodiff.pkl` holds (`model.released`)."""
        lists: dict[str, Any] = {name: list(modules) for name, modules in self._modules_of.items()}
        parts = {part: {k: v.detach().cpu().clone() for k, v in held.items()} for part, held in self._held().items()}
        proj = {k: v.detach().cpu().clone() for k, v in self.system.context.state_dict().items()}
        ranks = {f"rank_{part}": self.recipe.rank for part in ADAPTERS}
        return {**lists, **ranks, **{f"state_dict_{part}": values for part, values in parts.items()}, "proj": proj}

    @torch.no_grad()
    def take(self, released: Released) -> None:
        """Begin with these weights: the inverse of `stored`. The adversarial term's judge, which no file holds, begins afresh.

        Raises FileFormatError, naming the differences, unless they have exactly the keys and shapes of this stage.
        """
        for part, held in self._held().items():
            there = {k: v for k, v in released.parts[part].items() if part != "vae_c" or not k.startswith(UNUSED)}
            account({k: v.shape for k, v in held.items()}, there, f"--from {released.source} (state_dict_{part})")
            for key, values in held.items():
                values.copy_(there[key])
        context = self.system.context
        context.load_state_dict(check_whole(released.proj, context.state_dict(), f"--from {released.source} (proj)"))
        self._batches_before = max(int(v) for k, v in released.proj.items() if k.endswith("num_batches_tracked"))

    def facts(self) -> dict[str, Any]:
        """The backbone that the adapters are for, by its content."""
        return {"backbone": self.rests_on["backbone"]} if "backbone" in self.rests_on else {}

    def _held(self) -> dict[str, dict[str, Tensor]]:
        """What learns but for the context, where it is: part of the system to names as `gmodiff.pkl` has them."""
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in ADAPTERS}
        for part, adapters in ADAPTERS.items():
            for listed, adapter in adapters.items():
                for name in self._modules_of[listed]:
                    adapter_there = _adapter(self._home(listed).get_submodule(name))
                    for half, values in (("A", adapter_there.down), ("B", adapter_there.up)):
                        parts[part][f"{name}.lora_{half}.{adapter}.weight"] = values
        for part, network, begins in (("unet", self.system.unet, "conv_in."), ("vae", self.system.gain_decoder, "decoder.skip_conv_")):
            for name, values in network.state_dict().items():
                if name.startswith(begins) and not _of_adapter(name):
                    module, _, leaf = name.replace(".parametrizations.weight.original", ".weight").rpartition(".")
                    parts[part][f"{module}.base_layer.{leaf}"] = values
        return parts

    def _home(self, listed: str) -> nn.Module:
        """The network whose modules a list of the release names."""
        system = self.system
        if listed.startswith("unet"):
            unet: nn.Module = system.unet
            return unet
        if listed.startswith("vae_c"):
            return system.frame_encoder
        return system.gain_encoder if listed == "vae_lora_encoder_modules" else system.gain_decoder

    def _refined(self, batch: Batch) -> tuple[Three, Tensor, Tensor, Tensor]:
        """The frames, the estimate's gain, the latent after the step, and the gain that it decodes to, not cut."""
        system = self.system
        three = three_frames(batch)
        with torch.no_grad():
            estimate = regress(system.dareg, three.encoded, three.exposures)
        with self._autocast(three.encoded.device):
            context = system.context(estimate.mask, estimate.prior)
            z_c, _ = system.frame_encoder(three.encoded[:, 0])
            z, features = system.gain_encoder(estimate.gain)
            at = torch.full((1,), system.step.timestep, device=z.device)
            eps = system.unet(torch.cat([z, z_c], dim=1), at, encoder_hidden_states=context, return_dict=False)[0]
            latent = system.step.x0(z.float(), eps.float())
            decoded = system.gain_decoder(latent, features, context)
        return three, estimate.gain, latent, decoded.float() / 2 + 0.5


def _adaptable(network: nn.Module, chosen: Callable[[str], bool] = lambda _: True) -> tuple[str, ...]:
    """Names of the convolutions and projections that carry an adapter in the release."""

    def names() -> Iterator[str]:
        for name, module in network.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and chosen(name) and not any(w in name for w in WITHOUT_ADAPTERS):
                yield name

    return tuple(names())


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _adapter(module: nn.Module) -> Adapter:
    """On the weight of a module that carries one."""
    held = module.get_submodule("parametrizations.weight.0")
    assert isinstance(held, Adapter)
    return held


def _of_adapter(parameter: str) -> bool:
    return ".parametrizations.weight.0." in f".{parameter}"


class _TurnedRound(torch.autograd.Function):
    """The same forwards, the gradient times -weight backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None


def _judge() -> nn.Module:
    """(B, 4, h, w) latents to logits of being a true gain map's, patch by patch (Isola et al. 2017, section 3.2.2, in small)."""
    return nn.Sequential(
        nn.Conv2d(LATENT_CHANNELS, 64, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(128, 1, 3, padding=1),
    )  # fmt: skip


def perceptual_loss(choice: str) -> str:
    """ "dists" or "pyramid": what `auto` means on this machine. Raises InputError where DISTS is asked for and its weights are not here."""
    if choice == "pyramid":
        return choice
    try:
        PiqMetric("dists")
    except GMODiffError:
        if choice == "dists":
            raise
        return "pyramid"
    return "dists"


def _dists() -> Callable[[Tensor, Tensor], Tensor]:
    """DISTS (Ding et al. 2020) with gradients."""
    metric = PiqMetric("dists").network.requires_grad_(False)

    def loss(found: Tensor, wanted: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value: Tensor = metric.to(found.device)(found, wanted)
        return value

    return loss
