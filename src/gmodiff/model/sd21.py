"""Stage 3 of the paper at its published size: one diffusion step of Stable Diffusion 2.1 that refines the regressor's gain map.

    z   = E(2 G_hat - 1),  z_c = E_c(2 L0 - 1)           means of the latents, never samples, times the VAE's scaling factor
    eps = UNet([z, z_c], t = 499, context)                context = MLP([mask tokens, c_L])
    x0  = (z - sqrt(1 - abar_t) eps) / sqrt(abar_t)       one step, no noise added
    G   = D(x0; features of G_hat, context)               a gated skip before each up block of the decoder

Sections 3.2 to 3.4 of the paper; what its text leaves open is as in the authors' program and listed in docs/full-model.md. Everything is
deterministic. With float32 on a processor this is the reference; half precision, tiles and moving parts on and off a GPU change
rounding and, above the sizes named here, the blends between tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gmodiff.errors import FileFormatError
from gmodiff.model.dareg import STRIDE, DaReg, DaRegShape, network_input
from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, alphas_cumprod, predicted_x0
from gmodiff.model.released import UNUSED, Released, Weights, account, check_whole, folded_part
from gmodiff.model.sd21_backbone import LATENT_CHANNELS, Backbone, model_classes

LATENT_PX = 8
"""Pixels a side of one latent."""
UNET_TILE, UNET_OVERLAP = 96, 32
"""Latents a side of the UNet's tiles, and by how much they overlap, where there are more than UNET_TILE**2 of them (as released)."""
UNET_TILE_VARIANCE = 0.01
"""Variance of the Gaussian that weighs a tile, in squares of its side (as released)."""
VAE_WHOLE_PX = 2_000_000
"""Pixels up to which the VAE sees the picture whole, as the release always does; the papers' scenes of 1500x1000 are below."""
VAE_TILE_PX, VAE_OVERLAP_PX = 1024, 256
"""Side of the VAE's tiles in larger pictures, and the width over which they are blended."""
PUBLISHED = DaRegShape()


class Refined(NamedTuple):
    """gain: (1, 3, H, W), 0..1, the refined gain map.   regressed: the same before refinement.   mask: (1, 1, H, W), 0..1."""

    gain: Tensor
    regressed: Tensor
    mask: Tensor


class OneStep:
    """The diffusion step, apart from the network that predicts noise (DDPM, Ho et al. 2020, equation 15 solved for x0).

    Raises ValueError for a schedule of another length than STEPS, in which the same step is another share of noise.
    """

    def __init__(self, scheduler: Mapping[str, Any], timestep: int = ONE_STEP_AT) -> None:
        steps = scheduler.get("num_train_timesteps", STEPS)
        if steps != STEPS:
            raise ValueError(f"num_train_timesteps is {steps}, expected {STEPS}")
        self.timestep = timestep
        self.alpha_bar = alphas_cumprod(float(scheduler["beta_start"]), float(scheduler["beta_end"]), STEPS)[timestep]

    def x0(self, z: Tensor, eps: Tensor) -> Tensor:
        """The latent that z is a noisy version of, if eps is its noise."""
        return predicted_x0(z, eps, self.alpha_bar)


class Context(nn.Module):
    """What the UNet attends to in place of text: MLP([mask tokens, c_L]), one token per 32x32 pixels (section 3.3).

    Batch norm takes the statistics of the picture at hand, as the released program does, which never leaves training mode here, and as
    its published figures were made.   stored_statistics: those in the checkpoint instead, as networks in use do (docs/full-model.md);
    always for a picture of one token, which has none of its own.
    """

    def __init__(self, width: int, *, stored_statistics: bool = False) -> None:
        super().__init__()
        self.stored_statistics = stored_statistics
        hidden = width // 4
        self.mask_encoder = nn.Sequential(
            nn.PixelUnshuffle(8),
            nn.Conv2d(64, hidden, 3, stride=2, padding=1), nn.BatchNorm2d(hidden), nn.ReLU(),
            nn.Conv2d(hidden, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, mask: Tensor, prior: Tensor) -> Tensor:
        """(B, 1, H, W) mask and (B, n, width) prior to (B, n, width)."""
        x = mask
        for layer in self.mask_encoder:
            of_its_own = not self.stored_statistics and not self.training and x[:, 0].numel() > 1  # in training the layer does it itself
            if isinstance(layer, nn.BatchNorm2d) and of_its_own:
                x = functional.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
            else:
                x = layer(x)
        tokens: Tensor = self.mlp(torch.cat([x.flatten(2).transpose(1, 2), prior], dim=-1))
        return tokens


class Recomputing(nn.Module):
    """A part of a VAE. recompute: in training, nothing inside its blocks is kept for the gradients (Chen et al. 2016, section 3)."""

    recompute: bool = False

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        """One block's answer."""
        if self.recompute and torch.is_grad_enabled():
            found: Tensor = checkpoint(block, x, use_reentrant=False)
            return found
        answer: Tensor = block(x)
        return answer


class Encoder(Recomputing):
    """The encoding half of a VAE, which also gives what its decoder's skips need."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.scale = float(vae.config.scaling_factor)

    def forward(self, picture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W), 0..1, to the mean latent times the scale (B, 4, H/8, W/8), and the features in front of each down block."""
        parts = self.encoder
        x = parts.conv_in(2 * picture - 1)
        features = []
        for block in parts.down_blocks:
            features.append(x)
            x = self.through(block, x)
        x = parts.conv_out(parts.conv_act(parts.conv_norm_out(self.through(parts.mid_block, x))))
        return self.quant_conv(x)[:, :LATENT_CHANNELS] * self.scale, features


class GatedSkip(nn.Module):
    """A 1x1 convolution of an encoder's feature, each channel weighed by a gate that the context's mean decides (section 3.4)."""

    def __init__(self, inputs: int, outputs: int, context: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(context, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
        if not self.conv1.weight.is_meta:
            nn.init.constant_(self.conv1.weight, 1e-5)  # training starts from the plain VAE

    def forward(self, feature: Tensor, context: Tensor) -> Tensor:
        """(B, inputs, h, w) and (B, n, context) to (B, outputs, h, w)."""
        gate = torch.sigmoid(self.mlp(context.mean(dim=1)))
        weighed: Tensor = self.conv1(feature) * gate[:, :, None, None]
        return weighed


class Decoder(Recomputing):
    """The decoding half of a VAE with a gated skip in front of each up block."""

    def __init__(self, vae: Any, context: int) -> None:
        super().__init__()
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.scale = float(vae.config.scaling_factor)
        for n, (inputs, outputs) in enumerate(skip_widths(vae.config.block_out_channels), start=1):
            setattr(self.decoder, f"skip_conv_{n}", GatedSkip(inputs, outputs, context))

    def forward(self, latent: Tensor, features: Sequence[Tensor], context: Tensor) -> Tensor:
        """(B, 4, h, w) scaled latent, features as `Encoder` gives them, (B, n, width) context, to (B, 3, 8h, 8w), about -1..1."""
        parts = self.decoder
        x = self.through(parts.mid_block, parts.conv_in(self.post_quant_conv(latent / self.scale)))
        for n, (block, feature) in enumerate(zip(parts.up_blocks, reversed(features), strict=True), start=1):
            x = self.through(block, x + getattr(parts, f"skip_conv_{n}")(feature, context))
        decoded: Tensor = parts.conv_out(parts.conv_act(parts.conv_norm_out(x)))
        return decoded


def skip_widths(block_widths: Sequence[int]) -> list[tuple[int, int]]:
    """(inputs, outputs) of the decoder's skips, deepest first: for Stable Diffusion 512-512, 256-512, 128-512, 128-256."""
    a, b, c, d = block_widths
    return [(c, d), (b, d), (a, c), (a, b)]


class Sd21(nn.Module):
    """The whole system. `device` is where it computes; with `offload` its parts are there only while they are needed."""

    def __init__(
        self, unet: Mapping[str, Any], vae: Mapping[str, Any], scheduler: Mapping[str, Any], shape: DaRegShape | None = None
    ) -> None:
        super().__init__()
        autoencoder_class, unet_class = model_classes()
        shape = PUBLISHED if shape is None else shape
        width = shape.widths[-1]
        self.dareg, self.context = DaReg(shape), Context(width)
        self.unet = unet_class.from_config({**unet, "in_channels": 2 * LATENT_CHANNELS})
        whole = autoencoder_class.from_config(dict(vae))
        self.gain_encoder, self.gain_decoder = Encoder(whole), Decoder(whole, width)
        self.frame_encoder = Encoder(autoencoder_class.from_config(dict(vae)))
        self.step = OneStep(scheduler)
        self.configs = {"unet": dict(unet), "vae": dict(vae), "scheduler": dict(scheduler)}
        self.device, self.offload = torch.device("cpu"), False

    def place(self, device: torch.device, dtype: torch.dtype, *, offload: bool = False) -> Sd21:
        """Where and in which precision to compute. offload: keep the weights in main memory and bring each part when it is its turn."""
        self.device, self.offload = device, offload
        self.to("cpu" if offload else device, dtype)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of the activations."""
        return next(self.context.mlp.parameters()).dtype

    @torch.no_grad()
    def refine(
        self,
        frames: Tensor,
        exposures: Tensor,
        *,
        vae_tile_px: int | None = None,
        unet_batch: int = 1,
        visiting: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Refined:
        """The gain map of a bracket, on the processor in float32, of the frames' size.

        frames: (3, 3, H, W), encoded, 0..1, RGB: short, middle, long.   exposures: (3,), relative to the short frame's.
        vae_tile_px: side of the VAE's tiles; None: whole up to VAE_WHOLE_PX pixels, then VAE_TILE_PX.   unet_batch: tiles at once.
        visiting: what the regressor works on stays in main memory and visits the device strip by strip: slower, less of the device's
        memory, the same numbers up to rounding.
        """
        height, width = frames.shape[-2:]
        advance = _Advance(progress)
        padding = (0, -width % STRIDE, 0, -height % STRIDE)
        home = torch.device("cpu") if visiting else self.device
        frames = functional.pad(frames.to(home, torch.float32), padding, mode="replicate")
        tile = vae_tile_px or vae_side(*frames.shape[-2:])
        inputs = [network_input(frames[n : n + 1], exposures[n].to(frames)).to(self.dtype) for n in range(3)]
        short = frames[:1].to(self.device, self.dtype, copy=True)  # a view would keep all frames
        del frames
        with self._there(self.dareg):
            regressed = self.dareg(*inputs)
        del inputs
        gain = regressed.gain.to(self.device)
        with self._there(self.context):
            context = self.context(regressed.mask.to(self.device), regressed.prior.to(self.device))
        advance.to(_REGRESSED)
        mask = regressed.mask.float().cpu()
        del regressed
        with self._there(self.frame_encoder):
            z_c, _ = self._encoded(self.frame_encoder, short, tile, advance.between(_REGRESSED, _FRAME_ENCODED))
        del short
        with self._there(self.gain_encoder):
            z, features = self._encoded(self.gain_encoder, gain, tile, advance.between(_FRAME_ENCODED, _ENCODED))
        with self._there(self.unet):
            eps = self._noise(torch.cat([z, z_c], dim=1), context, unet_batch, advance.between(_ENCODED, _DENOISED))
        x0 = self.step.x0(z, eps)
        decoding = (self.gain_decoder,) if features is not None else (self.gain_decoder, self.gain_encoder)
        with self._there(*decoding):
            refined = self._decoded(x0, gain, features, context, tile, advance.between(_DENOISED, 1.0))
        advance.to(1.0)
        refined = refined.clamp(-1, 1) / 2 + 0.5
        return Refined(refined[..., :height, :width].cpu(), gain.float()[..., :height, :width].cpu(), mask[..., :height, :width])

    @contextmanager
    def _there(self, *parts: nn.Module) -> Iterator[None]:
        if not self.offload:
            yield
            return
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part in parts:
                part.to("cpu")

    def _encoded(self, encoder: Encoder, picture: Tensor, tile: int, done: Callable[[float], None]) -> tuple[Tensor, list[Tensor] | None]:
        """Float32 latents of the picture; its features too where it fits one tile."""
        if tile >= max(picture.shape[-2:]):
            latent, features = encoder(picture)
            done(1.0)
            return latent.float(), features
        height, width = (s // LATENT_PX for s in picture.shape[-2:])
        canvas = _Canvas(LATENT_CHANNELS, height, width, self.device)
        grid = list(_grid(height, width, tile // LATENT_PX, VAE_OVERLAP_PX // LATENT_PX))
        for n, (rows, columns) in enumerate(grid, start=1):
            latent, _ = encoder(picture[..., _pixels(rows), _pixels(columns)])
            canvas.add(latent.float(), rows, columns, _feathered(rows, height, VAE_OVERLAP_PX // LATENT_PX, self.device),
                       _feathered(columns, width, VAE_OVERLAP_PX // LATENT_PX, self.device))  # fmt: skip
            done(n / len(grid))
        return canvas.mean(), None

    def _noise(self, latents: Tensor, context: Tensor, batch: int, done: Callable[[float], None]) -> Tensor:
        """Float32 noise that the UNet sees in (1, 8, h, w) latents, tile by tile where there are many."""
        height, width = latents.shape[-2:]
        if height * width <= UNET_TILE**2:
            eps = self._unet(latents, context)
            done(1.0)
            return eps
        side = min(UNET_TILE, height, width)
        grid = list(_grid(height, width, side, min(UNET_OVERLAP, side // 2)))
        canvas = _Canvas(LATENT_CHANNELS, height, width, self.device)
        # Rows are weighed around half a latent below the tile's middle, columns around the middle itself: as released.
        down, across = (_gaussian(side, middle, self.device) for middle in (side / 2, (side - 1) / 2))
        for first in range(0, len(grid), batch):
            tiles = grid[first : first + batch]
            found = self._unet(torch.cat([latents[..., r, c] for r, c in tiles]), context.expand(len(tiles), -1, -1))
            for eps, (rows, columns) in zip(found, tiles, strict=True):
                canvas.add(eps, rows, columns, down, across)
            done((first + len(tiles)) / len(grid))
        return canvas.mean()

    def _unet(self, latents: Tensor, context: Tensor) -> Tensor:
        step = torch.tensor([self.step.timestep], device=latents.device)
        found = self.unet(latents.to(self.dtype), step, encoder_hidden_states=context, return_dict=False)[0]
        return found.float()  # type: ignore[no-any-return]

    def _decoded(
        self, latent: Tensor, gain: Tensor, features: list[Tensor] | None, context: Tensor, tile: int, done: Callable[[float], None]
    ) -> Tensor:
        """(1, 3, H, W) float32, about -1..1. Where the encoder worked in tiles its features were not kept: each tile makes its own."""
        if features is not None:
            decoded: Tensor = self.gain_decoder(latent.to(self.dtype), features, context).float()
            return decoded
        height, width = latent.shape[-2:]
        canvas = _Canvas(3, height * LATENT_PX, width * LATENT_PX, self.device)
        grid = list(_grid(height, width, tile // LATENT_PX, VAE_OVERLAP_PX // LATENT_PX))
        for n, (rows, columns) in enumerate(grid, start=1):
            down, across = _pixels(rows), _pixels(columns)
            _, here = self.gain_encoder(gain[..., down, across])
            decoded = self.gain_decoder(latent[..., rows, columns].to(self.dtype), here, context).float()
            canvas.add(decoded, down, across, _feathered(down, canvas.height, VAE_OVERLAP_PX, self.device),
                       _feathered(across, canvas.width, VAE_OVERLAP_PX, self.device))  # fmt: skip
            done(n / len(grid))
        return canvas.mean()


_REGRESSED, _FRAME_ENCODED, _ENCODED, _DENOISED = 0.2, 0.35, 0.5, 0.65
"""About how much of the time has passed when each part is done."""


class _Advance:
    """Progress of the whole from progress of its parts."""

    def __init__(self, progress: Callable[[float], None] | None) -> None:
        self._progress = progress

    def to(self, fraction: float) -> None:
        if self._progress is not None:
            self._progress(fraction)

    def between(self, begin: float, end: float) -> Callable[[float], None]:
        return lambda fraction: self.to(begin + (end - begin) * fraction)


# ---- tiles ------------------------------------------------------------------------------------------------------------------


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin that overlap and cover a size; the last ends with it."""
    if size <= tile:
        return [0]
    count = 1 + math.ceil((size - tile) / (tile - overlap))
    return [min(n * (tile - overlap), size - tile) for n in range(count)]


def _grid(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


def _pixels(latents: slice) -> slice:
    return slice(latents.start * LATENT_PX, latents.stop * LATENT_PX)


def _gaussian(side: int, middle: float, device: torch.device) -> Tensor:
    place = torch.arange(side, device=device, dtype=torch.float32)
    return torch.exp(-((place - middle) ** 2) / (side**2 * 2 * UNET_TILE_VARIANCE))


def _feathered(part: slice, size: int, overlap: int, device: torch.device) -> Tensor:
    """(length,) weights: 1, falling in a line over the overlap at sides where another tile goes on."""
    length = part.stop - part.start
    place = torch.arange(length, device=device, dtype=torch.float32) + 0.5
    weight = torch.ones(length, device=device)
    if part.start > 0:
        weight = torch.minimum(weight, place / overlap)
    if part.stop < size:
        weight = torch.minimum(weight, (length - place) / overlap)
    return weight


class _Canvas:
    """Weighted mean of overlapping tiles."""

    def __init__(self, channels: int, height: int, width: int, device: torch.device) -> None:
        self.height, self.width = height, width
        self._sum = torch.zeros(1, channels, height, width, device=device)
        self._weight = torch.zeros(height, width, device=device)

    def add(self, tile: Tensor, rows: slice, columns: slice, down: Tensor, across: Tensor) -> None:
        weight = down[:, None] * across[None, :]
        self._sum[..., rows, columns] += tile * weight
        self._weight[rows, columns] += weight

    def mean(self) -> Tensor:
        return self._sum / self._weight


# ---- weights ----------------------------------------------------------------------------------------------------------------


def assemble(backbone: Backbone, released: Released, shape: DaRegShape | None = None) -> Sd21:
    """The system from a backbone and the released checkpoint, float32, adapters folded in, ready to use.

    Raises FileFormatError where keys or shapes are not exactly those that belong together.
    """
    with torch.device("meta"):
        system = _of_backbone(backbone, shape)
    source = released.source
    skips = _account_backbone(system, backbone)
    head = {f"conv_in.{k}": v for k, v in system.unet.conv_in.state_dict().items()}
    unet = folded_part(
        {k: v for k, v in backbone.unet.items() if k not in head},
        _shapes(head),
        released.parts["unet"],
        released.adapters("unet"),
        released.ranks["unet"],
        f"{source} (state_dict_unet)",
    )
    vae = folded_part(
        backbone.vae, _shapes(skips), released.parts["vae"], released.adapters("vae"), released.ranks["vae"], f"{source} (state_dict_vae)"
    )
    encoding = _encoding(backbone.vae)
    vae_c = folded_part(
        encoding,
        {},
        released.parts["vae_c"],
        released.adapters("vae_c"),
        released.ranks["vae_c"],
        f"{source} (state_dict_vae_c)",
        unused=UNUSED,
    )
    system.dareg.load_state_dict(check_whole(released.dareg, system.dareg.state_dict(), released.dareg_source), assign=True)
    system.context.load_state_dict(check_whole(released.proj, system.context.state_dict(), f"{source} (proj)"), assign=True)
    system.unet.load_state_dict(unet, assign=True)
    system.gain_encoder.load_state_dict({k: vae[k] for k in encoding}, assign=True)
    system.gain_decoder.load_state_dict({k: v for k, v in vae.items() if k not in encoding}, assign=True)
    system.frame_encoder.load_state_dict(vae_c, assign=True)
    return ready(system)


def vae_side(height: int, width: int) -> int:
    """Side of the VAE's tiles for a picture, where nobody asks for another: that of the whole picture up to VAE_WHOLE_PX pixels."""
    return VAE_TILE_PX if height * width > VAE_WHOLE_PX else max(height, width)


def untrained(backbone: Backbone, dareg: DaReg) -> Sd21:
    """The system before stage 3: a trained regressor, and a backbone whose UNet does not look at the short frame yet. Float32.

    Raises FileFormatError where the backbone's keys or shapes are not those of its configuration.
    """
    system = _of_backbone(backbone, dareg.shape)
    _account_backbone(system, backbone)
    system.dareg.load_state_dict(dareg.state_dict())
    unet = {k: v.float() for k, v in backbone.unet.items()}
    unet["conv_in.weight"] = torch.cat([unet["conv_in.weight"], torch.zeros_like(unet["conv_in.weight"])], dim=1)
    system.unet.load_state_dict(unet)
    encoding = {k: v.float() for k, v in _encoding(backbone.vae).items()}
    system.gain_encoder.load_state_dict(encoding)
    system.frame_encoder.load_state_dict(encoding)
    system.gain_decoder.load_state_dict({k: v.float() for k, v in backbone.vae.items() if k not in encoding}, strict=False)  # no skips
    return system


def _of_backbone(backbone: Backbone, shape: DaRegShape | None) -> Sd21:
    with _buildable(f"--backbone {backbone.name}: its configurations are of no system that can be built", "copy or download them again"):
        return Sd21(backbone.unet_config, backbone.vae_config, backbone.scheduler_config, shape)


BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError)
"""What configurations end in that are of no system: a name or a block that is not there, a list for a number, groups of no channels."""


@contextmanager
def _buildable(said: str, advice: str) -> Iterator[None]:
    """Within, a system is made of configurations that somebody else wrote."""
    try:
        yield
    except BROKEN as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise FileFormatError(f"{said} ({why}); {advice}") from None


def _account_backbone(system: Sd21, backbone: Backbone) -> dict[str, Tensor]:
    """Raise FileFormatError unless the backbone has the keys and shapes of its configuration.

    Returns the decoder's skips, which it lacks.
    """
    with torch.device("meta"):
        plain = model_classes()[1].from_config(dict(backbone.unet_config))
    account(_shapes(plain.state_dict()), backbone.unet, f"--backbone {backbone.name}, unet")
    vae = {**_parameters(system.gain_encoder), **_parameters(system.gain_decoder)}
    skips = {k: v for k, v in vae.items() if ".skip_conv_" in k}
    account(_shapes({k: v for k, v in vae.items() if k not in skips}), backbone.vae, f"--backbone {backbone.name}, vae")
    return skips


def _encoding(vae: Weights) -> dict[str, Tensor]:
    """What of a VAE its encoder needs."""
    return {k: v for k, v in vae.items() if k.split(".")[0] in ("encoder", "quant_conv")}


def from_folded(configs: Mapping[str, Mapping[str, Any]], weights: Weights, source: str, shape: DaRegShape | None = None) -> Sd21:
    """The system from its own state dict, as `Sd21.state_dict` gives it, and the configurations it was made with."""
    with _buildable(f"{source}: no configuration of a system that can be built", "convert it again"), torch.device("meta"):
        system = Sd21(configs["unet"], configs["vae"], configs["scheduler"], shape)
    system.load_state_dict(check_whole(weights, system.state_dict(), source), assign=True)
    return ready(system)


def ready(system: Sd21) -> Sd21:
    """Out of training, in evaluation; weights in memory of their own, since where they lie decides how they are added up."""
    for parameter in system.parameters():
        parameter.data = parameter.data.clone()
    return system.requires_grad_(False).eval()


def _parameters(part: nn.Module) -> dict[str, Tensor]:
    return dict(part.state_dict())


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {k: v.shape for k, v in weights.items()}
