"""What the tests let other processes do."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from d2net.matching.match_pairs import match_pairs

Pair = tuple[str, str]


def match(features: Path, pairs: list[Pair], output: Path) -> None:
    torch.set_num_threads(1)
    match_pairs(features, pairs, output)


def hold(features: Path, pairs: list[Pair], output: Path, ready: Connection) -> None:
    """Match, but stop for ever after the first pair, when `ready` is told."""
    torch.set_num_threads(1)

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 1:
            ready.send(stage)
            time.sleep(60)

    match_pairs(features, pairs, output, progress=stop)
