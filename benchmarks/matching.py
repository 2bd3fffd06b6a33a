"""Mutual nearest neighbours against the bare matrix product of the same descriptors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from d2net.matching.nearest import mutual_nearest

KEYPOINTS = 8_000
DIMENSIONS = 512
ROUNDS = 7
TARGET = 1.5


def rows() -> list[tuple[str, float, float, str]]:
    """What was measured, the ratio of times, the largest one allowed, and the times behind it."""
    torch.manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(KEYPOINTS, DIMENSIONS), dim=1) for _ in range(2)
    )
    product, matching = _medians_in_turn([lambda: a @ b.T, lambda: mutual_nearest(a, b)])
    what = f"mutual nearest neighbours, {KEYPOINTS} x {KEYPOINTS} x {DIMENSIONS}, float32"
    detail = f"{matching:.3f} s; matrix product {product:.3f} s"
    return [(what, matching / product, TARGET, detail)]


def _medians_in_turn(functions: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each function, run in turn so that all meet the same disturbances."""
    seconds: list[list[float]] = [[] for _ in functions]
    for round_number in range(ROUNDS + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            if round_number > 0:  # the first round warms up
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    for what, ratio, target, detail in rows():
        print(f"{what}: {ratio:.2f} (at most {target}) {detail}")
