"""How close the merge comes to the truth: simulated brackets of the validation scenes in ../shared/data/hdr, several methods side by side.

    python benchmarks/merge_quality.py                     # 1500x1000, about 10 minutes on two cores
    python benchmarks/merge_quality.py --size 256          # native crops, the setting of the first trial, about 2 minutes
    options: --scenes autoshop_01,... --motions still,people --methods gmodiff,... --out results/quality.jsonl

Pictures. The panoramas are 1024x512. A view of 1500x1000 is the panorama at its own resolution, wrapped round horizontally and
mirrored at its lower edge: nothing is enlarged, so every edge is as sharp as in a photo, and nothing is invented; parts of the scene
appear twice. `--size 256` cuts four crops per scene instead.
Exposure. The reference frame clips 10 % of the pixels in at least one channel; frames are two stops apart.
Camera. Response: held-out measured cameras in turn (the prior in src/gmodiff knows the others), one curve for the three channels; ISO
100, 400 and 1600 in turn; lens blur 0.4 px, vignetting 15 %, demosaicing blur, 8 bits, JPEG quality 95, 4:2:0.
Motion. still: none. handheld: shake of 12 px (4 in crops). people: handheld, and three objects that hide what is behind them, smeared
with exposure time. leaves: handheld, and a third of the picture in non-rigid motion of 2.5 px (1.2 in crops).
Metrics. PSNR-mu (mu = 5000) and PSNR-l with prediction and truth divided by the radiance at which the short frame clips and cut to
0..1; over all pixels, where things move, and where the reference is clipped. Nothing is aligned in exposure, except Mertens, which
has no radiance: its picture, sRGB decoded, is given the scale that suits it best, so its figures flatter it.
Methods. reference: that frame alone. debevec: OpenCV MergeDebevec with the true response. debevec-mtb: after AlignMTB. mertens:
after AlignMTB. gmodiff: this project's merge told the true response. gmodiff-auto: this project as it is used, response fitted
from the bracket. gmodiff-auto-scaled: the same times one factor, which no bracket can show: how far above the clipping threshold
white lies. oracle: the best weighted mean of frames without any motion, by someone who knows the truth: the ceiling.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
from numpy.typing import NDArray

from gmodiff.calibrate import calibrate
from gmodiff.image import Bracket
from gmodiff.moving_scene import Motion
from gmodiff.pipeline import reconstruct
from gmodiff.radiometry import SRGB, CameraResponse, luminance_weights, srgb_decode
from gmodiff.simulate import Camera, Simulation, blur, render_bracket, simulate

Array = NDArray[np.float32]
ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
STOPS = (-2.0, 0.0, 2.0)
CLIPPED_SHARE = 0.10
MU = 5000.0
ISOS = (100, 400, 1600)
MOTIONS = ("still", "handheld", "people", "leaves")
HELD_OUT = ("PENTAX K100D", "Canon EOS REBEL T2i", "Canon EOS 5D Mark II", "Canon PowerShot S45")
"""Cameras whose curves src/gmodiff/response_prior.json was not made from (benchmarks/make_response_prior.py)."""


# ---- scenes -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One simulated bracket, described well enough to make it again."""

    scene: str
    motion: str
    crop: int
    size: tuple[int, int]
    seed: int
    camera: str
    iso: int


def held_out_responses() -> dict[str, CameraResponse]:
    """Camera name to response: of each held-out camera, the median over its brackets and channels, 0 at black and 1 at white.

    The measured curves run from encoded 0.03 to 0.975; beyond, they go on with the exponent (d log linear / d log encoded) of their ends.
    """
    stored = json.loads((DATA / "responses" / "curves.json").read_text())
    encoded = np.asarray(stored["encoded"])
    position = np.log2(encoded)
    middle = int(np.abs(encoded - 0.5).argmin())
    grid = np.linspace(0.0, 1.0, 1025)[1:]
    found = {}
    for camera in HELD_OUT:
        # Each channel was anchored at its noisiest place, the upper end; at mid-grey the channels of a camera coincide.
        channels = [np.asarray(c["log2_linear"][k]) for c in stored["curves"] if c["camera"] == camera for k in "rgb"]
        curve = np.median([c - c[middle] for c in channels], axis=0)
        log2_linear = np.interp(np.log2(grid), position, curve)
        low = np.clip((curve[3] - curve[0]) / (position[3] - position[0]), 0.5, 2.0)
        high = np.clip((curve[-1] - curve[-5]) / (position[-1] - position[-5]), 1.0, 6.0)
        log2_linear += low * np.minimum(np.log2(grid) - position[0], 0) + high * np.maximum(np.log2(grid) - position[-1], 0)
        found[camera] = CameraResponse.from_samples(np.concatenate([[0], grid]), np.concatenate([[0], np.exp2(log2_linear)]), camera)
    return found


def cases(
    all_scenes: list[str], scenes: list[str], motions: list[str], size: tuple[int, int], crops: int, cameras: list[str]
) -> Iterator[Case]:
    """Every scene with every motion; camera and ISO go round so that each scene meets several, whichever are chosen."""
    for scene in scenes:
        for motion in motions:
            for crop in range(crops):
                n, m = all_scenes.index(scene), list(MOTIONS).index(motion)
                count = (n * len(MOTIONS) + m) * crops + crop
                yield Case(scene, motion, crop, size, 1000 + count, cameras[(n + count) % len(cameras)], ISOS[count % len(ISOS)])


def panorama(scene: str) -> Array:
    """(512, 1024, 3) radiance of a scene, as its file has it."""
    source = oiio.ImageInput.open(str(next((DATA / "hdr").glob(f"{scene}.*"))))
    pixels = source.read_image(oiio.FLOAT)[..., :3]
    source.close()
    return np.ascontiguousarray(np.maximum(np.nan_to_num(pixels, posinf=65504.0), 0.0), np.float32)


def picture(case: Case, margin: int) -> Array:
    """(H + 2 margin, W + 2 margin, 3) radiance of a case, exposed so that CLIPPED_SHARE of the frame lies above 1."""
    whole = panorama(case.scene)
    height, width = case.size[0] + 2 * margin, case.size[1] + 2 * margin
    if height <= 512:
        rng = np.random.Generator(np.random.PCG64((case.seed, 77)))
        # Between the poles, where an equirectangular picture is not stretched much.
        top, left = int(rng.integers(64, max(65, 448 - height))), int(rng.integers(0, 1024))
        rows, columns = top + np.arange(height), (left + np.arange(width)) % 1024
    else:
        # Start below the north pole, mirror at the last row that is not yet stretched over the south pole.
        rows = np.arange(height) % 768
        rows = 64 + np.where(rows < 384, rows, 767 - rows)
        columns = np.arange(width) % 1024
    part = whole[rows][:, columns]
    white = np.quantile(part.max(axis=-1), 1 - CLIPPED_SHARE)
    return np.ascontiguousarray(part / max(float(white), 1e-6), np.float32)


def motion_of(case: Case) -> Motion:
    """The amplitudes of a kind of motion at the size of the case."""
    small = case.size[0] <= 512
    shake, waves, length = (4.0, 1.2, 20.0) if small else (12.0, 2.5, 40.0)
    return {
        "still": Motion(),
        "handheld": Motion(shake_px=shake),
        "people": Motion(shake_px=shake, objects=1 if small else 3, travel=0.10),
        "leaves": Motion(shake_px=shake, waves_px=waves, wave_length_px=length, wave_share=0.33),
    }[case.motion]


# ---- methods: a simulation and its camera to (H, W, 3) radiance ----------------------------------------------------------


def reference_alone(made: Simulation, camera: Camera) -> Array:
    """The reference frame, linearised."""
    return camera.response.linearise(made.bracket.frames[made.bracket.reference].encoded)


def debevec(made: Simulation, camera: Camera, align: bool) -> Array:
    """OpenCV's weighted mean of log radiance, told the response and the exposures."""
    frames = [f.encoded for f in made.bracket.frames]
    if align:
        frames = mtb(frames)
    response = camera.response.codes(np.dtype(np.uint8))
    response[0] = response[1] / 4  # it takes the logarithm
    times = np.asarray(made.bracket.relative_exposures, np.float32)
    return np.asarray(cv2.createMergeDebevec().process(frames, times, response[:, None, :].copy()), np.float32)


def mtb(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Shifted by OpenCV's median threshold bitmaps."""
    out = [f.copy() for f in frames]
    cv2.createAlignMTB().process(frames, out)
    return out


def mertens(made: Simulation, camera: Camera) -> Array:
    """Exposure fusion, decoded as the sRGB picture it is, at the scale that fits the truth best in the mu domain."""
    fused = np.asarray(cv2.createMergeMertens().process(mtb([f.encoded for f in made.bracket.frames])))
    linear = np.asarray(srgb_decode(np.clip(fused, 0, 1)), np.float32)
    peak = 1 / made.bracket.relative_exposures[0]
    scales = 2.0 ** np.arange(-3, 3.01, 0.125)
    best = max(scales, key=lambda s: psnr(compress(linear[::3, ::3] * np.float32(s) / peak), compress(made.truth[::3, ::3] / peak)))
    return linear * np.float32(best)


def ours(made: Simulation, camera: Camera) -> Array:
    """This project's merge, told the response."""
    return reconstruct(made.bracket).radiance


def ours_auto(made: Simulation, camera: Camera) -> Array:
    """This project as a user runs it: exposures from EXIF, response from the bracket."""
    bracket = made.bracket
    exposures, response, calibration = calibrate(
        bracket.frames, reference=bracket.reference, exposures_known=True, exposure_source="exif", response=None
    )
    frames = tuple(replace(f, exposure=e) for f, e in zip(bracket.frames, exposures, strict=True))
    return reconstruct(Bracket(frames, bracket.reference, response, bracket.colour, calibration)).radiance


def ours_auto_scaled(made: Simulation, camera: Camera) -> Array:
    """The same, times the one factor that its median pixel is off: ratios of exposures cannot show it."""
    radiance = ours_auto(made, camera)
    peak = 1 / made.bracket.relative_exposures[0]
    known = (made.truth > 0.02) & (made.truth < 0.8 * peak)
    return radiance * np.float32(np.median(made.truth[known] / np.maximum(radiance[known], 1e-6)))


def oracle(made: Simulation, camera: Camera, seed: int) -> Array:
    """The best mean of frames in which nothing moved, by someone who knows the truth.

    Pixels are grouped by true level (half stops), by how much brighter the brightest of the 5x5 pixels around them is, and by which
    frames are unclipped there; each group gets the weights, summing to one, that minimise its squared error: C^-1 1 / (1' C^-1 1) with
    C the errors' second moments (Gauss and Markov's best linear unbiased estimate). Sensor noise, quantisation, JPEG, and what
    demosaicing brings over from neighbours count as they are, not as a model has them.
    """
    # The truth is already behind the lens.
    bare = replace(camera, lens_px=0.0, vignetting=0.0)
    still = render_bracket([made.truth] * len(STOPS), [2.0**s for s in STOPS], bare, seed=seed)
    ratios = still.relative_exposures
    estimates = [camera.response.linearise(f.encoded) / np.float32(r) for f, r in zip(still.frames, ratios, strict=True)]
    merged = np.empty((made.truth[..., 0].size, 3), np.float32)
    for c in range(3):
        truth = made.truth[..., c].ravel()
        samples = np.stack([e[..., c].ravel() for e in estimates])
        level = np.log2(np.maximum(truth, 1e-6))
        around = np.log2(np.maximum(cv2.dilate(made.truth[..., c], np.ones((5, 5), np.uint8)).ravel(), 1e-6)) - level
        group = np.clip(np.floor((level + 14) * 2), 0, 47).astype(np.int64) * 6 + np.searchsorted((0.15, 0.4, 1.0, 2.0, 4.0), around)
        for i, ratio in enumerate(ratios):
            group += (288 << i) * (1 if i == 0 else truth * ratio <= 0.98)  # the shortest frame always counts
        order = np.argsort(group, kind="stable")
        bounds = np.flatnonzero(np.diff(group[order], prepend=-1, append=-1))
        for first, end in pairwise(bounds):
            members = order[first:end]
            frames = [i for i in range(len(ratios)) if group[members[0]] // 288 >> i & 1]
            wrong = (samples[np.ix_(frames, members)] - truth[members]).astype(np.float64)
            moments = wrong @ wrong.T / len(members)
            # A little of the diagonal keeps groups of a few pixels from being fitted to the last bit.
            moments += np.diag(np.diag(moments)) * (2 / (len(members) + 20)) + 1e-15 * np.eye(len(frames))
            weights = np.linalg.solve(moments, np.ones(len(frames)))
            merged[members, c] = (weights / weights.sum()) @ samples[np.ix_(frames, members)]
    return merged.reshape(made.truth.shape)


METHODS: dict[str, Callable[[Simulation, Camera], Array]] = {
    "reference": reference_alone,
    "debevec": partial(debevec, align=False),
    "debevec-mtb": partial(debevec, align=True),
    "mertens": mertens,
    "gmodiff": ours,
    "gmodiff-auto": ours_auto,
    "gmodiff-auto-scaled": ours_auto_scaled,
    "oracle": partial(oracle, seed=99),
}


# ---- metrics ------------------------------------------------------------------------------------------------------------


def compress(relative: Array) -> Array:
    """log(1 + mu h) / log(1 + mu) of radiance over its peak, cut to 0..1 (Kalantari and Ramamoorthi 2017, equation 5)."""
    return np.asarray(np.log1p(np.float32(MU) * np.clip(relative, 0, 1)) / np.float32(np.log1p(MU)))


def psnr(a: Array, b: Array, where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over all pixels, or over those of a mask; NaN where it is empty; peak 1."""
    square = (a.astype(np.float64) - b) ** 2
    if where is not None:
        square = square[where]
    return float("nan") if not square.size else float(-10 * np.log10(max(float(square.mean()), 1e-12)))


def scores(estimate: Array, made: Simulation) -> dict[str, float]:
    """PSNR-mu and PSNR-l, everywhere and in the masks."""
    peak = np.float32(1 / made.bracket.relative_exposures[0])
    a, b = np.clip(estimate / peak, 0, 1), np.clip(made.truth / peak, 0, 1)
    mu_a, mu_b = compress(a), compress(b)
    masks = {"": None, "_motion": made.motion_mask, "_clipped": made.truth.max(axis=-1) >= 1}
    found = {}
    for name, mask in masks.items():
        found[f"psnr_mu{name}"], found[f"psnr_l{name}"] = psnr(mu_a, mu_b, mask), psnr(a, b, mask)
    return found


# ---- runs ---------------------------------------------------------------------------------------------------------------


def run(case: Case, methods: list[str], responses: dict[str, CameraResponse], save: Path | None) -> Iterator[dict[str, Any]]:
    """One row per method."""
    margin = 8 if case.size[0] <= 512 else 24
    camera = Camera(responses[case.camera], iso=case.iso, lens_px=0.4, vignetting=0.15, jpeg_quality=95)
    made = simulate(picture(case, margin), [2.0**s for s in STOPS], camera, motion_of(case), seed=case.seed, margin=margin)
    shares = {"motion_share": float(made.motion_mask.mean()), "clipped_share": float((made.truth.max(axis=-1) >= 1).mean())}
    if save is not None:
        show(save / f"{case.scene}_{case.motion}_{case.crop}_truth.png", made.truth)
    for method in methods:
        start = time.perf_counter()
        estimate = METHODS[method](made, camera)
        seconds = time.perf_counter() - start
        if save is not None:
            show(save / f"{case.scene}_{case.motion}_{case.crop}_{method}.png", estimate)
        yield {**asdict(case), "stops": STOPS, "method": method, **scores(estimate, made), **shares, "seconds": round(seconds, 3)}


def show(path: Path, radiance: Array) -> None:
    """A picture in which everything up to the short frame's white can be seen: luminance compressed as the metric does."""
    luminance = np.maximum(radiance @ luminance_weights(SRGB), 1e-6)
    shown = radiance * (np.clip(compress(blur(luminance, 0) / 4) * 1.05 - 0.05, 0, 1) ** 2.2 / luminance)[..., None]
    codes = (np.clip(shown, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    cv2.imwrite(str(path), codes[..., ::-1])


def table(rows: list[dict[str, Any]], motions: list[str], methods: list[str]) -> str:
    """Means over scenes as Markdown: one table over everything, then PSNR-mu by motion."""

    def mean(method: str, column: str, motion: str | None = None) -> str:
        values = [r[column] for r in rows if r["method"] == method and motion in (None, r["motion"]) and np.isfinite(r[column])]
        return f"{np.mean(values):.2f}" if values else "-"

    columns = ["psnr_mu", "psnr_l", "psnr_mu_motion", "psnr_l_motion", "psnr_mu_clipped", "psnr_l_clipped"]
    heads = ["PSNR-mu", "PSNR-l", "mu, moving", "l, moving", "mu, clipped", "l, clipped"]
    lines = ["| method | " + " | ".join(heads) + " | seconds |", "|---|" + "---:|" * (len(heads) + 1)]
    lines += [f"| {m} | " + " | ".join(mean(m, c) for c in columns) + f" | {mean(m, 'seconds')} |" for m in methods]
    lines += ["", "| PSNR-mu | " + " | ".join(motions) + " |", "|---|" + "---:|" * len(motions)]
    lines += [f"| {m} | " + " | ".join(mean(m, "psnr_mu", k) for k in motions) + " |" for m in methods]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1500x1000", help="WIDTHxHEIGHT, or one number for square crops (at most 400)")
    parser.add_argument("--scenes", help="comma-separated; default: every scene of the split")
    parser.add_argument("--split", default="val")
    parser.add_argument("--motions", default=",".join(MOTIONS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--out", type=Path, help="JSON lines, written as rows come, and a Markdown table beside it")
    parser.add_argument("--save", type=Path, help="folder for pictures of every result")
    arguments = parser.parse_args()
    width, _, height = arguments.size.partition("x")
    size = (int(height or width), int(width))
    with (DATA / "hdr" / "MANIFEST.csv").open() as manifest:
        every = scenes = sorted(Path(row["file"]).stem for row in csv.DictReader(manifest) if row["split"] == arguments.split)
    if arguments.scenes:
        scenes = arguments.scenes.split(",")
    motions, methods = arguments.motions.split(","), arguments.methods.split(",")
    responses = held_out_responses()
    commit = (
        subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    )
    for folder in (arguments.save, arguments.out and arguments.out.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for case in cases(every, scenes, motions, size, 4 if size[0] <= 512 else 1, list(responses)):
        for row in run(case, methods, responses, arguments.save):
            rows.append({**row, "commit": commit})
            if arguments.out is not None:
                with arguments.out.open("a") as lines:
                    lines.write(json.dumps(rows[-1]) + "\n")
        last = rows[-len(methods) :]
        print(
            f"{case.scene:20s} {case.motion:9s} {case.camera:22s} ISO {case.iso:<5d}" + "  ".join(f"{r['psnr_mu']:.1f}" for r in last),
            flush=True,
        )
    text = f"{len(rows) // len(methods)} brackets of {len(scenes)} scenes, {size[1]}x{size[0]}, commit {commit}\n\n" + table(
        rows, motions, methods
    )
    print("\n" + text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
