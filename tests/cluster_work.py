"""What the tests let processes of a cluster do; one that dies shall be seen."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from d2net import D2Net
from d2net.errors import InputError
from d2net.extraction.d2net import PreparedPhoto
from d2net.features import Features
from d2net.networks.vgg import VGG

from .tiny import make_tiny_network


class WatchedModel(D2Net):
    """The tiny model; it notes each photo's process, and takes its time."""

    def __init__(self, notes: Path, seconds: float) -> None:
        super().__init__(VGG(make_tiny_network()))
        self.notes = notes
        self.seconds = seconds

    def extract_prepared(self, batch: Sequence[PreparedPhoto]) -> list[Features]:
        found = super().extract_prepared(batch)
        time.sleep(self.seconds)
        with self.notes.open("a") as notes:  # one short write: lines do not mix
            notes.write(f"{os.getpid()}\n")
        return found


def double(shared: dict[str, int], items: list[int]) -> list[tuple[int, int]]:
    """(process, result) of each."""
    return [(os.getpid(), shared["factor"] * item) for item in items]


def refuse(shared: str, items: list[int]) -> list[int]:
    raise InputError(f"{shared} {items[0]}")


def die(shared: Path, items: list[int]) -> list[int]:
    with shared.open("a") as notes:
        notes.write("x")
    os._exit(1)
