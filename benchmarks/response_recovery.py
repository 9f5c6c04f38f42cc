"""How well a camera's response and exposures are recovered: simulated brackets with known curves, and real ones.

    python benchmarks/response_recovery.py [--data ../shared/data] [--out results/response.jsonl] [--only real]

Simulated: four scenes (validation split), photographed with plain curves and with the measured curves of the cameras the prior has not
seen, at 3 exposures 2 EV apart and 2 exposures 1 EV apart, with noise (ISO 200), three moving objects, waves over a fifth of the picture,
camera shake, and JPEG quality 90 at 4:2:0. The error is that of linear light over the reference's pixels with encoded values 0.03..0.95,
one global scale free. "published" curves are as the file holds them, anchored per channel at the noisy encoded value 0.975; a scale per
channel cannot be seen in ratios, so it is free there. "neutral" joins the channels at mid-grey and takes their median, as cameras work.

Real: median disagreement of neighbouring exposures under sRGB and after calibration, and, for brackets with EXIF, the exposures
found when EXIF is hidden.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from gmodiff.calibrate import calibrate
from gmodiff.errors import InputError
from gmodiff.image import Frame
from gmodiff.moving_scene import Motion
from gmodiff.radiometry import RESPONSE_NODES, CameraResponse, exposure_from_settings
from gmodiff.response import log2_of_response, response_prior
from gmodiff.ridge import GRID, weighted_median
from gmodiff.simulate import Camera, simulate

ROOT = Path(__file__).parents[1]
SCENES = ("autoshop_01.hdr", "dancing_hall.hdr", "potsdamer_platz.hdr", "rainforest_trail.hdr")
STEPS = {"3 x 2 EV": (-2.0, 0.0, 2.0), "2 x 1 EV": (0.0, 1.0)}
MOTION = Motion(shake_px=3.0, objects=3, waves_px=1.0, wave_share=0.2)
MID_GREY = 0.42
"""Encoded value of the scene's median in the reference frame."""


# ---- simulated ----------------------------------------------------------------------------------------------------------


def curves(data: Path) -> dict[tuple[str, str], CameraResponse]:
    """(kind, name) to response: plain ones, and the held-out measured ones, neutral and as published."""
    out = {("plain", name): CameraResponse.named(name) for name in ("srgb", "gamma1.8", "gamma2.0", "gamma2.2", "gamma2.4")}
    stored = json.loads((data / "responses" / "curves.json").read_text())
    encoded = np.asarray(stored["encoded"])
    position, grid = np.log2(encoded), np.log2(np.linspace(0, 1, RESPONSE_NODES)[1:])
    for entry in stored["curves"]:
        if entry["camera"] not in response_prior().held_out_cameras:
            continue
        published = []
        for channel in "rgb":
            values = np.asarray(entry["log2_linear"][channel])
            low = np.clip((values[3] - values[0]) / (position[3] - position[0]), 0.5, 2.0)
            high = np.clip((values[-1] - values[-5]) / (position[-1] - position[-5]), 1.0, 6.0)
            below, above = np.minimum(grid - position[0], 0), np.maximum(grid - position[-1], 0)
            published.append(np.interp(grid, position, values) + low * below + high * above)
        own = np.stack(published, axis=1)
        joined = own - own[np.argmin(np.abs(grid + 1))]
        for kind, curve in (("neutral", np.repeat(np.median(joined, axis=1)[:, None], 3, axis=1)), ("published", own)):
            table = np.concatenate([np.zeros((1, 3)), np.exp2(np.maximum.accumulate(curve, axis=0))])
            out[kind, entry["bracket"]] = CameraResponse(table / table[-1], entry["bracket"])
    return out


def scene(data: Path, name: str) -> np.ndarray:
    """The middle of a panorama, (H, W, 3) float32 radiance."""
    image = cv2.imread(str(data / "hdr" / name), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(np.float32)
    height, width = image.shape[:2]
    return np.ascontiguousarray(image[height // 8 : height * 7 // 8, width // 6 : width * 5 // 6])


def radiance_error(found: CameraResponse, truth: CameraResponse, encoded: np.ndarray, scale_per_channel: bool) -> tuple[float, float]:
    """(median, 95th percentile) relative error of linear light over the pixels of a frame that are neither dark nor clipped."""
    codes = np.arange(256) / 255
    valid = (codes > 0.03) & (codes < 0.95)
    apart = np.stack([np.interp(codes[valid], GRID, d) for d in (log2_of_response(found) - log2_of_response(truth)).T], axis=1)
    count = np.stack([np.bincount(encoded[..., c].ravel(), minlength=256)[valid] for c in range(3)], axis=1).astype(np.float64)
    if scale_per_channel:
        apart -= [weighted_median(apart[:, c], count[:, c]) for c in range(3)]
    else:
        apart -= weighted_median(apart.ravel(), count.ravel())
    error = np.abs(np.exp2(apart) - 1).ravel()
    order = np.argsort(error)
    below = np.cumsum(count.ravel()[order]) / count.sum()
    return float(error[order][np.searchsorted(below, 0.5)]), float(error[order][np.searchsorted(below, 0.95)])


def simulated_rows(data: Path) -> Iterator[dict[str, Any]]:
    for name in SCENES:
        radiance = scene(data, name)
        middle = float(np.median(radiance.mean(axis=2)))
        for (kind, curve), truth in curves(data).items():
            bright = radiance * np.float32(truth.at(np.array(MID_GREY))[1] / middle)
            for label, stops in STEPS.items():
                camera = Camera(response=truth, iso=200, jpeg_quality=90)
                bracket = simulate(bright, [2.0**s for s in stops], camera, MOTION, seed=5, reference=stops.index(0.0)).bracket
                for known in (True, False):
                    frames = bracket.frames if known else tuple(replace(f, exposure=math.nan) for f in bracket.frames)
                    row = {"part": "simulated", "kind": kind, "curve": curve, "exposures": label, "scene": name, "known": known}
                    yield row | run(frames, bracket.reference, known, truth, kind == "published")


def run(frames: tuple[Frame, ...], reference: int, known: bool, truth: CameraResponse, scale_per_channel: bool) -> dict[str, Any]:
    start = time.perf_counter()
    exposures, response, calibration = calibrate(
        frames, reference=reference, exposures_known=known, exposure_source="exif" if known else "estimated", response=None
    )
    seconds = time.perf_counter() - start
    median, high = radiance_error(response, truth, frames[reference].encoded, scale_per_channel)
    return {
        "response": response.name,
        "median_error": round(median, 5),
        "p95_error": round(high, 5),
        "ratios_stops": [round(math.log2(b / a), 3) for a, b in pairwise(exposures)],
        "left_stops": [round(v, 3) for v in calibration.residual_stops],
        "srgb_stops": [round(v, 3) for v in calibration.srgb_residual_stops],
        "seconds": round(seconds, 3),
    }


def print_simulated(rows: list[dict[str, Any]]) -> None:
    for known in (True, False):
        state = "known" if known else "hidden"
        print(f"\nSimulated, exposures {state}: radiance error of the reference in %, mean (worst) of {len(SCENES)} scenes")
        if not known:
            print("(with hidden exposures the exponent follows the convention; what is left of the error is mostly that)")
        print(f"{'':<10}{'curve':<28}" + "".join(f"{label + ': median':>20}{'p95':>7}{'chosen':>22}" for label in STEPS))
        part = [r for r in rows if r["known"] == known]
        for (kind, curve), group in groupby(
            sorted(part, key=lambda r: (r["kind"] != "plain", r["kind"], r["curve"])), lambda r: (r["kind"], r["curve"])
        ):
            of_curve, line = list(group), f"{kind:<10}{curve:<28}"
            for label in STEPS:
                here = [r for r in of_curve if r["exposures"] == label]
                errors = [100 * r["median_error"] for r in here]
                names = sorted({r["response"] for r in here})
                high = 100 * np.mean([r["p95_error"] for r in here])
                line += f"{np.mean(errors):>13.1f} ({max(errors):4.1f}){high:>7.1f}{'/'.join(names):>22}"
            print(line)
        errors = [100 * r["median_error"] for r in part]
        share = np.mean(np.array(errors) < 3)
        print(f"all: mean {np.mean(errors):.2f}, worst {max(errors):.2f}; below 3 % in {share:.0%} of {len(errors)} brackets")


# ---- real ---------------------------------------------------------------------------------------------------------------


def real_bracket(folder: Path) -> tuple[Frame, ...]:
    """Frames with exposures from meta.json, shortest first; by brightness, with NaN, where it has none."""
    frames = []
    for entry in json.loads((folder / "meta.json").read_text())["images"]:
        with Image.open(folder / entry["file"]) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        time_s = entry["exif_time_s"]
        exposure = exposure_from_settings(time_s, entry["iso"], entry["fnumber"]) if time_s else math.nan
        frames.append(Frame(pixels, exposure, entry["file"]))
    return tuple(sorted(frames, key=lambda f: float(f.encoded[::9, ::9].mean()) if math.isnan(f.exposure) else f.exposure))


def real_rows(data: Path) -> Iterator[dict[str, Any]]:
    for folder in sorted((data / "brackets").iterdir()):
        frames = real_bracket(folder)
        for known in (True, False) if not math.isnan(frames[0].exposure) else (False,):
            told = frames if known else tuple(replace(f, exposure=math.nan) for f in frames)
            row = {
                "part": "real",
                "bracket": folder.name,
                "known": known,
                "frames": len(frames),
                "megapixels": frames[0].encoded.size / 3e6,
            }
            start = time.perf_counter()
            try:
                exposures, response, calibration = calibrate(
                    told, reference=len(frames) // 2, exposures_known=known, exposure_source="exif" if known else "estimated", response=None
                )
            except InputError as error:
                yield row | {"error": str(error)}
                continue
            yield row | {
                "response": response.name,
                "ratios_stops": [round(math.log2(b / a), 3) for a, b in pairwise(exposures)],
                "exif_stops": [
                    None if math.isnan(a.exposure) else round(math.log2(b.exposure / a.exposure), 3) for a, b in pairwise(frames)
                ],
                "left_stops": [round(v, 3) for v in calibration.residual_stops],
                "srgb_stops": [round(v, 3) for v in calibration.srgb_residual_stops],
                "notes": list(calibration.notes),
                "seconds": round(time.perf_counter() - start, 3),
            }


def print_real(rows: list[dict[str, Any]]) -> None:
    print("\nReal brackets: median disagreement of neighbours in stops, median (worst) over pairs")
    print(f"{'bracket':<28}{'frames':>7}{'MP':>6}{'exposures':>11}{'sRGB':>15}{'calibrated':>15}{'response':>12}{'seconds':>9}")
    for r in rows:
        if "error" in r:
            print(f"{r['bracket']:<28}{r['frames']:>7}{r['megapixels']:>6.1f}  {r['error']}")
            continue
        cells = [f"{np.nanmedian(r[k]):.2f} ({np.nanmax(r[k]):.2f})" for k in ("srgb_stops", "left_stops")]
        source = "EXIF" if r["known"] else "hidden" if r["exif_stops"][0] is not None else "none"
        print(
            f"{r['bracket']:<28}{r['frames']:>7}{r['megapixels']:>6.1f}{source:>11}{cells[0]:>15}{cells[1]:>15}{r['response']:>12}{r['seconds']:>9.2f}"
        )
        for note in r["notes"]:
            print(f"    {note}")
    print("\nExposures found when EXIF is hidden, over EXIF's (whole bracket)")
    for r in rows:
        if "error" not in r and not r["known"] and r["exif_stops"][0] is not None:
            found, told = sum(r["ratios_stops"]), sum(r["exif_stops"])
            print(f"{r['bracket']:<28}{found:>6.2f} of {told:.2f} stops: {found / told:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, help="JSON lines, one row per bracket")
    parser.add_argument("--only", choices=("simulated", "real"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for part, make, show in (("simulated", simulated_rows, print_simulated), ("real", real_rows, print_real)):
        if options.only in (None, part):
            found = list(make(options.data))
            show(found)
            rows += found
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print(f"\n{len(rows)} rows in {options.out}")


if __name__ == "__main__":
    main()
