"""Times of functions run in turn, so that all meet the same disturbances of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians_in_turn(
    functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: bool = True
) -> dict[str, float]:
    """Median seconds of each function over `rounds` rounds of all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + warm_up):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
