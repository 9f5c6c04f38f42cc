"""What alignment does to real brackets: motion found, and disagreement with the reference before and after, frame by frame.

    python benchmarks/align_accuracy.py [--brackets ../shared/data/brackets] [SET ...]

Prints a Markdown table. A frame that is "left as it is" is used to the last bit. Disagreement: mean over pixels valid in both
frames, each pixel's limited to one stop, at the working size of the alignment.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from gmodiff.align import align, align_frame
from gmodiff.bracket import read_bracket


def photos_of(folder: Path) -> list[Path]:
    return [folder / image["file"] for image in json.loads((folder / "meta.json").read_text())["images"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="names of sets; all of them by default")
    parser.add_argument("--brackets", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "brackets")
    options = parser.parse_args()
    print("| set | frame | stops | global px | local > 0.5 px | disagreement before | global only | after |")
    print("|---|---|---|---|---|---|---|---|")
    seconds = []
    for folder in sorted(p for p in options.brackets.iterdir() if (p / "meta.json").exists()):
        if options.sets and folder.name not in options.sets:
            continue
        bracket = read_bracket(photos_of(folder))
        reference = bracket.frames[bracket.reference]
        started = time.perf_counter()
        alignments = align(bracket)
        seconds.append((time.perf_counter() - started) / (len(alignments) - 1) / (reference.width * reference.height / 1e6))
        for frame, found, exposure in zip(bracket.frames, alignments, bracket.relative_exposures, strict=True):
            if frame is reference:
                continue
            shift = 0.0
            if found.homography is not None:
                centre = np.array([frame.width / 2, frame.height / 2, 1.0])
                moved = found.homography @ centre
                shift = float(np.hypot(*(moved[:2] / moved[2] - centre[:2])))
            local = "" if found.flow is None else f"{(np.hypot(found.flow[..., 0], found.flow[..., 1]) > 0.5).mean():.1%}"
            flat = align_frame(reference, frame, bracket.response, dense=False).error_after if found.flow is not None else found.error_after
            whole = "left as it is" if found.is_identity else f"{shift:.2f}"
            print(
                f"| {folder.name} | {frame.name} | {np.log2(exposure):+.1f} | {whole} | {local} "
                f"| {found.error_before:.3f} | {flat:.3f} | {found.error_after:.3f} |"
            )
    print(f"\nmedian over sets: {statistics.median(seconds):.2f} s per frame and megapixel")


if __name__ == "__main__":
    main()
