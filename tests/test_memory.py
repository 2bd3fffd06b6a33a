"""Peak memory of the process, as the benchmark measures it."""

from __future__ import annotations

import sys

import pytest

from benchmarks.memory import peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_four_tiles_take_no_more_memory_than_one() -> None:
    for width, height in ((1600, 1200), (2400, 1600)):
        keypoints, size = peak(width, height, "light+seasons")
        assert keypoints > 1000
        assert size <= 1.5e9
