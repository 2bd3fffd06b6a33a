"""What the tests let other processes do."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from d2net.extraction.folder import Format, extract_folder
from d2net.io.image_lists import find_images

from ..tiny import make_tiny_model


def extract(photos: Path, output: Path, format: Format) -> None:
    torch.set_num_threads(1)
    extract_folder(make_tiny_model(), find_images([photos]), output, format=format)


def hold(photos: Path, output: Path, format: Format, ready: Connection) -> None:
    """Extract a folder, but stop for ever after the first photo, when `ready` is told."""
    torch.set_num_threads(1)

    def stop(stage: str, done: int, total: int | None) -> None:
        if done == 1:
            ready.send(stage)
            time.sleep(60)

    extract_folder(make_tiny_model(), find_images([photos]), output, format=format, progress=stop)
