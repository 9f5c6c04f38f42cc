"""Small maps (optical flow, gain, masks) at the size of the picture, one strip of rows at a time."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def enlarged_rows(grid: NDArray[Any], first: int, end: int, height: int, width: int) -> NDArray[np.float32]:
    """Rows first..end of a grid (h, w) or (h, w, c) enlarged to (height, width), bilinear between the middles of its cells.

    The same values whichever strip asks: each row follows from the grid and its own index alone.
    """
    last = grid.shape[0] - 1
    position = np.clip((np.arange(first, end) + 0.5) * grid.shape[0] / height - 0.5, 0, last)
    above = position.astype(np.intp)
    below = np.minimum(above + 1, last)
    t = (position - above).astype(np.float32).reshape(-1, *[1] * (grid.ndim - 1))
    rows = grid[above] * (1 - t) + grid[below] * t
    wide = np.asarray(cv2.resize(rows, (width, end - first), interpolation=cv2.INTER_LINEAR), np.float32)
    return wide.reshape(end - first, width, *grid.shape[2:])  # OpenCV drops a channel axis of one
