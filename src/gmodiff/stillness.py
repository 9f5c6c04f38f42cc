"""Where nothing moved, the merge stands: an estimate is followed where photos contradict each other, where alignment followed a thing to
another place, and near either.

What a network is for is what moved: there a merge of measured samples may show two things at once. Where all photos agree, the merge is
measured light, and an estimate can only differ from it by being wrong. Networks are, on photos unlike those they learned from: patches
in clipped skies, glows at the edge of hand-held sets. On 40 simulated scenes of the training pictures a rule near to this one cost 0.3 dB
PSNR-mu of the 1.3 dB that the network brings; on three real sets it took away what was seen of patches and glows, but for a faint patch.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.merge import MOTION_CELL_PX, Merged
from gmodiff.provenance import INFERRED, REFERENCE, largest
from gmodiff.radiometry import F32, TAPER_ENCODED
from gmodiff.tiling import for_each_strip
from gmodiff.upsampling import enlarged_rows

NEARBY_PX = 96
"""How far from what moved an estimate is still followed, in pixels of a picture of up to SIZE_PX, more in larger ones: an
object that moved over a clipped window contradicts nothing there, but beside it."""
SIZE_PX = 3_000_000
MOVED_SHARE = 0.005
"""Share of pixels nearby that moved from which an estimate is followed whole."""
BRIGHTER_STOPS = 0.25
"""How much brighter than the merge an estimate may be where no photo measured: beyond that is invention."""
FEATHER_PX = 9
"""Width over which labels are blended, so that no edge is drawn."""


def still(merged: Merged) -> F32:
    """Of each cell of `Merged.moved`, 0..1: 1 where nothing nearby moved."""
    assert merged.moved is not None
    enlarged = max(1.0, float(np.sqrt(merged.provenance.size / SIZE_PX)))
    reach = max(1, round(NEARBY_PX * enlarged / MOTION_CELL_PX))
    nearby = cv2.blur(merged.moved, (2 * reach + 1, 2 * reach + 1), borderType=cv2.BORDER_REFLECT)
    return np.asarray(np.clip(1 - nearby / MOVED_SHARE, 0, 1), np.float32)


def hold_where_still(radiance: F32, merged: Merged, reference_encoded: NDArray[Any]) -> NDArray[np.bool_]:
    """Bring an estimate (H, W, 3) back to the merge where nothing nearby moved, in place, and nowhere far above it where no photo measured.

    reference_encoded: (H, W, 3) uint8 or uint16. What the reference measured is left alone: `provenance.constrain` sees to it.
    Returns (H, W), where the estimate is mostly held.
    """
    grid = still(merged)
    height, width = merged.provenance.shape
    over = tuple(s * MOTION_CELL_PX for s in grid.shape)
    held = np.empty((height, width), bool)
    free_from = TAPER_ENCODED * np.iinfo(reference_encoded.dtype).max  # from here on `constrain` lets go

    def strip(first: int, end: int) -> None:
        here, around = slice(first, end), slice(max(first - FEATHER_PX // 2, 0), min(end + FEATHER_PX // 2, height))
        inner = slice(first - around.start, end - around.start)
        labels = merged.provenance[around]
        brightest = largest(np.ascontiguousarray(reference_encoded[around]))
        elsewhere, nobody = (_feathered(there)[inner] for there in ((labels != REFERENCE) | (brightest >= free_from), labels == INFERRED))
        share = enlarged_rows(grid, first, end, *over)[:, :width]
        held[here] = (share > 0.5) & (merged.provenance[here] != REFERENCE)
        value, base = radiance[here], merged.radiance[here]
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(value.sum())
        if suspect:  # what is no number has no say
            np.copyto(value, base, where=~np.isfinite(value))
        value += nobody * np.minimum(base * np.float32(2.0**BRIGHTER_STOPS) - value, 0)
        value += share[..., None] * elsewhere * (base - value)

    for_each_strip(strip, height)
    return held


def _feathered(there: NDArray[np.bool_]) -> F32:
    """(rows, W, 1): 1 inside places, falling over FEATHER_PX."""
    blurred = cv2.blur(there.astype(np.float32), (FEATHER_PX, FEATHER_PX), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred[..., None], np.float32)
