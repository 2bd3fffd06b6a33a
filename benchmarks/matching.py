"""Mutual nearest neighbours against the bare matrix product of the same descriptors."""

from __future__ import annotations

import torch

from benchmarks.table import Row
from benchmarks.timing import medians_in_turn
from d2net.matching.nearest import mutual_nearest

KEYPOINTS = 8_000
DIMENSIONS = 512
TARGET = 1.5


def rows() -> list[Row]:
    """One row, on the CPU and in float32."""
    torch.manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(KEYPOINTS, DIMENSIONS), dim=1) for _ in range(2)
    )
    seconds = medians_in_turn(
        {"product": lambda: a @ b.T, "matching": lambda: mutual_nearest(a, b)}, rounds=7
    )
    ratio = seconds["matching"] / seconds["product"]
    return [
        Row(
            f"mutual nearest neighbours, {KEYPOINTS:,} x {KEYPOINTS:,} x {DIMENSIONS}, "
            "time against the bare matrix product",
            f"{ratio:.2f} x",
            f"at most {TARGET} x",
            ratio <= TARGET,
            f"{seconds['matching']:.2f} s and {seconds['product']:.2f} s",
        )
    ]
