"""Peak memory of the process, as the benchmark measures it."""

from __future__ import annotations

import sys

import pytest

from benchmarks.memory import peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("width", "height", "limit"), [(1600, 1200, 1.5e9), (6000, 4000, 2.5e9)])
def test_peak_memory(width: int, height: int, limit: float) -> None:
    keypoints, size, _ = peak(width, height)
    assert keypoints > 1000
    assert size <= limit
