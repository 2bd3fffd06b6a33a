"""Peak memory of a process that extracts one photo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.table import Row

PHOTO = Path(__file__).parents[1] / "tests" / "data" / "graf1.jpg"

SCRIPT = """
import sys
import numpy as np
from PIL import Image
import d2net
width, height, weights = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
photo = np.asarray(Image.open(sys.argv[1]).resize((width, height)))
model = d2net.D2Net.from_pretrained(weights, max_edge=None, max_sum_edges=None)
features = model.extract(photo)
with open("/proc/self/status") as status:  # ru_maxrss would count the process that started this one
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(len(features), 1024 * peak)
"""


def peak(width: int, height: int, weights: str) -> tuple[int, int]:
    """Number of keypoints of a photo, and peak memory in bytes of the process that extracts it."""
    command = [sys.executable, "-c", SCRIPT, str(PHOTO), str(width), str(height), weights]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    keypoints, size = map(int, run.stdout.split())
    return keypoints, size


def rows() -> list[Row]:
    """At the default's largest size, and at full resolution in tiles; none but on Linux."""
    if sys.platform != "linux":
        return []
    found = []
    for weights, width, height, limit in (
        ("light+seasons", 1600, 1200, 1.5),
        ("light+seasons", 6000, 4000, 2.5),
        ("light", 1600, 1200, 0.5),
    ):
        keypoints, size = peak(width, height, weights)
        found.append(
            Row(
                f"peak memory of the process, {width} x {height}, float32, {weights}",
                f"{size / 1e9:.2f} GB",
                f"at most {limit} GB",
                size <= limit * 1e9,
                f"{keypoints:,} keypoints",
                headline=True,
            )
        )
    return found
