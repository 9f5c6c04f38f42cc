"""What one step costs against fifty: the full-size system, and a latent diffusion of the same size that starts from noise.

    python benchmarks/full_model_cost.py                                       # operations alone, no weights: 1500x1000 and 12 megapixels
    python benchmarks/full_model_cost.py --measure 512 --device cuda           # and seconds and memory of a 512x512 crop, random weights
    options: --evaluations 100 (of the UNet that are really run; fewer are scaled up, and said so) --precision float16

One step: the regressor, both encoders, the UNet once, the decoder with its skips, as `model.sd21` runs them, tiles included. Fifty steps:
the same UNet 50 times with classifier-free guidance, that is, 100 evaluations, one encoder for the condition and the decoder. Operations
are counted by torch on tensors without content, two for a multiplication and an addition. Random weights cost what trained ones do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from gmodiff.evaluate.cost import measured  # noqa: E402
from gmodiff.model import sd21  # noqa: E402

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "sample_size": 64,
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "scaling_factor": 0.18215,
}  # fmt: skip
SCHEDULER: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""Sizes of Stable Diffusion 2.1 base."""
STEPS, GUIDED = 50, 2


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of a call on tensors without content."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def counted(system: sd21.Sd21, height: int, width: int) -> dict[str, float]:
    """Operations of each part for a picture; of tiles, one is counted, since they are alike."""
    height, width = (-(-s // 32) * 32 for s in (height, width))

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(1, *shape, device="meta")

    pixels = height * width
    whole = pixels <= sd21.VAE_WHOLE_PX
    tile = sd21.vae_side(height, width)
    rows, columns = min(tile, height), min(tile, width)
    overlap = sd21.VAE_OVERLAP_PX // sd21.LATENT_PX
    count = len(list(sd21._grid(height // 8, width // 8, tile // 8, overlap)))
    frame, latent, tokens = empty(3, rows, columns), empty(4, rows // 8, columns // 8), empty(pixels // 1024, 1024)
    features = system.gain_encoder(frame)[1]
    encoder = operations(lambda: system.gain_encoder(frame)) * count
    decoder = operations(lambda: system.gain_decoder(latent, features, tokens)) * count
    small = height * width // 64 <= sd21.UNET_TILE**2
    side = (height // 8, width // 8) if small else (sd21.UNET_TILE, sd21.UNET_TILE)
    tiles = len(list(sd21._grid(height // 8, width // 8, sd21.UNET_TILE, sd21.UNET_OVERLAP))) if not small else 1
    step = torch.empty(1, device="meta", dtype=torch.long)
    unet = operations(lambda: system.unet(empty(8, *side), step, encoder_hidden_states=tokens)) * tiles
    regressor = operations(lambda: system.dareg(*(empty(6, height, width) for _ in range(3))))
    regressor += operations(lambda: system.context(empty(1, height, width), tokens))
    return {
        "regressor": regressor,
        "encoders": encoder * (2 if whole else 3),  # in tiles, features are made once more beside the decoder
        "UNet": unet,
        "decoder": decoder,
    }


def print_operations(system: sd21.Sd21, sizes: list[tuple[int, int]]) -> None:
    """A table in Markdown, in units of 10**12."""
    print("| pixels | regressor | encoders | UNet | decoder | one step | 50 steps, guided | UNet alone | whole |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for width, height in sizes:
        parts = {k: v / 1e12 for k, v in counted(system, height, width).items()}
        one = sum(parts.values())
        many = STEPS * GUIDED * parts["UNet"] + parts["encoders"] / 2 + parts["decoder"]
        cells = [f"{v:.1f}" for v in (*parts.values(), one, many)]
        print(f"| {width}x{height} | {' | '.join(cells)} | {STEPS * GUIDED}x | {many / one:.1f}x |")


def measure(side: int, device: str, precision: str, evaluations: int) -> None:
    """Seconds and memory of a square crop, random weights."""
    with torch.device("meta"):
        system = sd21.Sd21(UNET, VAE, SCHEDULER)
    place, dtype = torch.device(device), getattr(torch, precision)
    system = system.to(dtype).to_empty(device=place)
    for tensor in (*system.parameters(), *system.buffers()):
        if tensor.is_floating_point():
            tensor.detach().uniform_(-0.03, 0.03).abs_() if tensor.ndim == 1 else tensor.detach().uniform_(-0.03, 0.03)
    system = sd21.ready(system).place(place, dtype)
    frames, exposures = torch.rand(3, 3, side, side), torch.tensor([1.0, 4.0, 16.0])
    latents = torch.rand(1, 8, side // 8, side // 8, device=place)
    context = torch.rand(1, (side // 32) ** 2, 1024, device=place, dtype=dtype)

    def unet(times: int) -> None:
        with torch.no_grad():
            for _ in range(times):
                system._noise(latents, context, 1, lambda f: None)

    def timed(work: Callable[[], object]) -> tuple[float, float, float | None]:
        """Seconds on the clock, of this process's processors, and MB of main memory."""
        if place.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        own = time.process_time()
        _, seconds, megabytes = measured(lambda: (work(), torch.cuda.synchronize() if place.type == "cuda" else None))
        if place.type == "cuda":
            megabytes = torch.cuda.max_memory_allocated() / 1e6
        return seconds, time.process_time() - own, megabytes

    system.refine(frames[..., :64, :64], exposures)  # what is set up once
    one, loop = timed(lambda: system.refine(frames, exposures)), timed(lambda: unet(evaluations))
    scale = STEPS * GUIDED / evaluations
    print(f"\n{side}x{side} pixels on {device}, {precision}, {torch.get_num_threads()} thread(s), random weights")
    print("| | seconds | of it processor | MB |")
    print("|---|---:|---:|---:|")
    print(f"| one step, whole system | {one[0]:.2f} | {one[1]:.2f} | {one[2] or float('nan'):.0f} |")
    print(f"| UNet once | {loop[0] / evaluations:.2f} | {loop[1] / evaluations:.2f} | {loop[2] or float('nan'):.0f} |")
    how = "run" if scale == 1 else f"scaled from {evaluations}"
    print(f"| UNet {STEPS * GUIDED} times ({how}) | {loop[0] * scale:.1f} | {loop[1] * scale:.1f} | |")
    print(f"\nUNet of 50 guided steps over the whole of one step, processor time: {loop[1] * scale / one[1]:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=int, metavar="PX", help="side of the crop to run, a multiple of 32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--evaluations", type=int, default=STEPS * GUIDED)
    arguments = parser.parse_args()
    with torch.device("meta"):
        system = sd21.Sd21(UNET, VAE, SCHEDULER).eval()
    print(f"operations, 10**12; {sum(p.numel() for p in system.parameters()) / 1e6:.0f} million parameters")
    print_operations(system, [(arguments.measure,) * 2] if arguments.measure else [(1500, 1000), (4000, 3000)])
    if arguments.measure:
        measure(arguments.measure, arguments.device, arguments.precision, arguments.evaluations)


if __name__ == "__main__":
    main()
