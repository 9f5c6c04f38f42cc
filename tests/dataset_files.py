"""What tests of datasets on disk share, whatever their layout."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from gmodiff.datasets.scene import SceneSource
from gmodiff.errors import GMODiffError, InputError


def write_hdr(path: Path, linear: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(linear[..., ::-1], np.float32))


def fails(source: SceneSource, *words: str, kind: type[GMODiffError] = InputError) -> None:
    """load raises one line that names the scene and holds all words."""
    with pytest.raises(kind) as caught:
        source.load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{source.name}: ")
    for word in words:
        assert word in message
