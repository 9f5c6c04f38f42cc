"""A small stand-in for Stable Diffusion 2.1 and the released checkpoint, and the system computed from them in the plainest way.

The reference is diffusers' own modules with the adapters beside them, unfolded, and hooks for the skips: nothing of `model.sd21`. Its
mistakes can be chosen, so that a test shows that it would see them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.dareg import DaReg, DaRegShape
from gmodiff.model.sd21_backbone import model_classes

SHAPE = DaRegShape(widths=(8, 8, 12, 16, 32), encoder=(1, 1, 1, 1), decoder=(1, 1, 1, 1), mask=4)
WIDTH = SHAPE.widths[-1]
RANK = 4
UNET = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4,
    "block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "sample_size": 64,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4, 4, 4], "cross_attention_dim": WIDTH, "norm_num_groups": 4, "use_linear_projection": True,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 12, 16, 16], "layers_per_block": 1, "latent_channels": 4,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon",
}  # fmt: skip
SKIPS = [(16, 16), (12, 16), (8, 16), (8, 12)]
EXPOSURES = torch.tensor([1.0, 4.0, 16.0])


def frames(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with some noise, 0..1."""
    noise = torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(seed))
    small = functional.avg_pool2d(noise, 5, stride=1, padding=2)
    return (0.5 + 2 * (small - 0.5) + 0.1 * (noise - 0.5)).clamp(0, 1)


def tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """Drawn from a generator seeded by its key; sizes such that everything in the system matters."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    last = key.rsplit(".", 1)[-1]
    if "lora_B" in key:
        values *= 0.1
    elif last == "running_var":
        values = 1 + 0.1 * np.abs(values)
    elif last in ("beta", "gamma", "bias", "running_mean"):
        values *= 0.1
    elif len(shape) == 1:
        values = 1 + 0.1 * values
    else:
        values /= np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def filled(shapes: Mapping[str, Tensor], salt: str) -> dict[str, Tensor]:
    return {k: tensor(f"{salt}/{k}", tuple(v.shape)) for k, v in shapes.items()}


def write_backbone(folder: Path, unet: dict | None = None, vae: dict | None = None, scheduler: dict | None = None) -> Path:
    """A diffusers folder."""
    autoencoder, conditioned = model_classes()
    for part, config, kind in (("unet", unet or UNET, conditioned), ("vae", vae or VAE, autoencoder)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            shapes = kind.from_config(config).state_dict()
        save_file(filled(shapes, part), folder / part / "diffusion_pytorch_model.safetensors")
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler or SCHEDULER))
    return folder


def checkpoint(backbone: Path) -> dict:
    """What gmodiff.pkl holds: adapters on every convolution and projection, some modules named twice, as in the release."""
    unet, vae = ({k: v.shape for k, v in load_file(backbone / p / "diffusion_pytorch_model.safetensors").items()} for p in ("unet", "vae"))
    unet["conv_in.weight"] = torch.Size([8, 8, 3, 3])
    modules = {k.removesuffix(".weight"): s for k, s in unet.items() if k.endswith(".weight") and len(s) > 1 and "time_emb" not in k}
    down = [m for m in modules if "down_blocks" in m or m == "conv_in"]
    up = [m for m in modules if "up_blocks" in m or m == "conv_out"]
    other = [m for m in modules if m not in {*down, *up}]
    skips = {}
    for n, (inputs, outputs) in enumerate(SKIPS, start=1):
        skips |= {
            f"decoder.skip_conv_{n}.conv1.weight": (outputs, inputs, 1, 1),
            f"decoder.skip_conv_{n}.mlp.0.weight": (outputs, WIDTH), f"decoder.skip_conv_{n}.mlp.0.bias": (outputs,),
            f"decoder.skip_conv_{n}.mlp.2.weight": (outputs, outputs), f"decoder.skip_conv_{n}.mlp.2.bias": (outputs,),
        }  # fmt: skip
    shapes = {**vae, **skips}
    on_vae = [k.removesuffix(".weight") for k, s in shapes.items() if k.endswith(".weight") and len(s) > 1 and "post_quant" not in k]
    encoder = [m for m in on_vae if m.startswith(("encoder", "quant"))]
    decoder = [m for m in on_vae if m.startswith("decoder")]

    def lora(names: list[str], sizes: Mapping, adapter: str) -> dict[str, tuple[int, ...]]:
        keys = {}
        for m in names:
            outputs, *inputs = sizes[f"{m}.weight"]
            keys[f"{m}.lora_A.{adapter}.weight"] = (RANK, *inputs)
            keys[f"{m}.lora_B.{adapter}.weight"] = (outputs, RANK, *[1] * (len(inputs) - 1))
        return keys

    sizes = {
        "unet": {"conv_in.base_layer.weight": (8, 8, 3, 3), "conv_in.base_layer.bias": (8,), **lora(down, unet, "default_encoder"),
                 **lora(up, unet, "default_decoder"), **lora(other, unet, "default_others")},
        "vae": {**{".base_layer.".join(k.rsplit(".", 1)): s for k, s in skips.items()},
                **lora(encoder, shapes, "default_encoder"), **lora(decoder, shapes, "default_decoder")},
        "vae_c": {**lora(encoder, shapes, "default_encoder"),
                  **{f"decoder.skip_conv_{n}.weight": (o, i, 1, 1) for n, (i, o) in enumerate(SKIPS, start=1)}},
    }  # fmt: skip
    return {
        "unet_lora_encoder_modules": down, "unet_lora_decoder_modules": up, "unet_lora_others_modules": other,
        "vae_lora_encoder_modules": [*encoder, *encoder[:3]], "vae_lora_decoder_modules": [*decoder, *decoder],
        "vae_c_lora_encoder_modules": [*encoder, "quant_conv", "quant_conv"],
        "rank_unet": RANK, "rank_vae": RANK, "rank_vae_c": RANK,
        **{f"state_dict_{p}": {k: tensor(f"{p}/{k}", s) for k, s in keys.items()} for p, keys in sizes.items()},
        "proj": filled(projection(WIDTH).state_dict(), "proj"),
    }  # fmt: skip


def write_released(folder: Path, backbone: Path) -> Path:
    folder.mkdir(exist_ok=True)
    dareg = filled(DaReg(SHAPE).state_dict(), "dareg")
    torch.save({"state_dict": {f"module.{k}": v for k, v in dareg.items()}}, folder / "dareg_mask.pth")
    torch.save(checkpoint(backbone), folder / "gmodiff.pkl")
    return folder


def projection(width: int) -> nn.Module:
    net = nn.Module()
    hidden = width // 4
    net.mask_encoder = nn.Sequential(
        nn.PixelUnshuffle(8), nn.Conv2d(64, hidden, 3, 2, 1), nn.BatchNorm2d(hidden), nn.ReLU(),
        nn.Conv2d(hidden, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip
    net.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return net


class Reference:
    """The system from the files, the plain way."""

    MISTAKES = ("alpha", "order", "bgr", "skips", "timestep", "zero padding", "sides", "one adapter", "statistics")

    def __init__(self, backbone: Path, released: Path, shape: DaRegShape) -> None:
        autoencoder, conditioned = model_classes()
        self.stored = torch.load(released / "gmodiff.pkl", weights_only=True)
        dareg = torch.load(released / "dareg_mask.pth", weights_only=True)["state_dict"]
        self.dareg = DaReg(shape).eval()
        self.dareg.load_state_dict({k.removeprefix("module."): v for k, v in dareg.items()})
        self.width = shape.widths[-1]

        def load(part: str, kind: type) -> nn.Module:
            config = json.loads((backbone / part / "config.json").read_text())
            net = kind.from_config(config)
            net.load_state_dict(load_file(backbone / part / "diffusion_pytorch_model.safetensors"))
            return net.eval()

        self.unet, self.vae, self.vae_c = load("unet", conditioned), load("vae", autoencoder), load("vae", autoencoder)
        head, old = self.stored["state_dict_unet"], self.unet.conv_in
        self.unet.conv_in = nn.Conv2d(8, old.out_channels, 3, padding=1)
        self.unet.conv_in.load_state_dict({k: head[f"conv_in.base_layer.{k}"] for k in ("weight", "bias")})
        self.scheduler = json.loads((backbone / "scheduler" / "scheduler_config.json").read_text())
        self.projection = projection(self.width).eval()
        self.projection.load_state_dict(self.stored["proj"])
        for norm in (m for m in self.projection.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 0.0  # statistics of pictures are not kept

    def adapt(self, net: nn.Module, part: str, rank: int, alpha: float, skip: str = "") -> list:
        """Adapters as hooks: out + alpha / rank * B(A(x))."""
        stored, hooks = self.stored[f"state_dict_{part}"], []
        for key, down in stored.items():
            if ".lora_A." not in key or "skip_conv" in key or (skip and skip in key):
                continue
            module = net.get_submodule(key.partition(".lora_A.")[0])
            up = stored[key.replace("lora_A", "lora_B")]
            hooks.append(module.register_forward_hook(lambda m, a, out, d=down, u=up: out + alpha / rank * lora(m, a[0], d, u)))
        return hooks

    @torch.no_grad()
    def __call__(self, frames: Tensor, exposures: Tensor, mistake: str = "") -> Tensor:
        height, width = frames.shape[-2:]
        alpha = 16.0 if mistake == "alpha" else 8.0
        rank = self.stored["rank_unet"]
        frames = frames.flip(1) if mistake == "bgr" else frames
        padding = (0, -width % 32, 0, -height % 32)
        frames = functional.pad(frames, padding) if mistake == "zero padding" else functional.pad(frames, padding, mode="replicate")
        light = frames**2.2 / exposures[:, None, None, None]
        six = torch.cat([frames, light] if mistake == "sides" else [light, frames], dim=1)
        gain, mask, prior = self.dareg(six[:1], six[1:2], six[2:])
        self.projection.train(mistake != "statistics")  # as the release has it
        tokens = self.projection.mask_encoder(mask).flatten(2).permute(0, 2, 1)
        pair = [prior, tokens] if mistake == "order" else [tokens, prior]
        context = self.projection.mlp(torch.cat(pair, dim=-1))
        hooks = [
            *self.adapt(self.unet, "unet", rank, alpha, "default_others" if mistake == "one adapter" else ""),
            *self.adapt(self.vae, "vae", rank, alpha),
            *self.adapt(self.vae_c, "vae_c", rank, alpha),
        ]
        features = []
        hooks += [b.register_forward_pre_hook(lambda m, a: features.append(a[0])) for b in self.vae.encoder.down_blocks]
        scale = self.vae.config.scaling_factor
        z = self.vae.encode(gain * 2 - 1).latent_dist.mean * scale
        z_c = self.vae_c.encode(frames[:1] * 2 - 1).latent_dist.mean * scale
        eps = self.unet(torch.cat([z, z_c], dim=1), torch.tensor([499]), encoder_hidden_states=context).sample
        s = self.scheduler
        betas = torch.linspace(s["beta_start"] ** 0.5, s["beta_end"] ** 0.5, s["num_train_timesteps"], dtype=torch.float64) ** 2
        abar = torch.cumprod(1 - betas, 0)[399 if mistake == "timestep" else 499].float()
        x0 = (z - (1 - abar).sqrt() * eps) / abar.sqrt()
        if mistake != "skips":
            for n, block in enumerate(self.vae.decoder.up_blocks, start=1):
                skip = self.skip(n, features[-n], context, alpha)
                hooks.append(block.register_forward_pre_hook(lambda m, a, skip=skip: (a[0] + skip, *a[1:])))
        decoded = self.vae.decode(x0 / scale).sample.clamp(-1, 1)
        for hook in hooks:
            hook.remove()
        return ((decoded + 1) / 2)[..., :height, :width]

    def skip(self, n: int, feature: Tensor, context: Tensor, alpha: float) -> Tensor:
        stored, rank = self.stored["state_dict_vae"], self.stored["rank_vae"]

        def layer(name: str, x: Tensor) -> Tensor:
            key = f"decoder.skip_conv_{n}.{name}"
            base, bias = stored[f"{key}.base_layer.weight"], stored.get(f"{key}.base_layer.bias")
            down, up = (stored[f"{key}.lora_{h}.default_decoder.weight"] for h in "AB")
            apply = functional.conv2d if base.ndim == 4 else functional.linear
            return apply(x, base, bias) + alpha / rank * apply(apply(x, down), up)

        gate = torch.sigmoid(layer("mlp.2", torch.relu(layer("mlp.0", context.mean(dim=1)))))
        return layer("conv1", feature) * gate[..., None, None]


def lora(module: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    if down.ndim == 2:
        return functional.linear(functional.linear(x, down), up)
    return functional.conv2d(functional.conv2d(x, down, stride=module.stride, padding=module.padding), up)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Every weight, to the bit."""
    found = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, found[key]), key
