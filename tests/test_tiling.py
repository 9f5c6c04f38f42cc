import threading
import time

import numpy as np
import pytest

from gmodiff.tiling import for_each_strip


@pytest.mark.parametrize(("height", "rows"), [(1, 64), (64, 64), (65, 64), (1000, 7)])
def test_every_row_once(height, rows):
    seen = np.zeros(height, int)
    lock = threading.Lock()

    def work(first, end):
        with lock:
            seen[first:end] += 1

    for_each_strip(work, height, rows=rows)
    assert (seen == 1).all()


def test_error_reaches_the_caller_and_stops_the_rest():
    started = []

    def work(first, end):
        started.append(first)
        time.sleep(0.002)
        if first == 0:
            raise ValueError("strip 0")

    with pytest.raises(ValueError, match="strip 0"):
        for_each_strip(work, 200, rows=1, workers=1)
    assert len(started) < 100


def test_progress_ends_at_one_and_may_cancel():
    fractions = []
    for_each_strip(lambda a, b: None, 100, rows=10, progress=fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1

    def cancel(fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        for_each_strip(lambda a, b: None, 100, rows=10, progress=cancel)
