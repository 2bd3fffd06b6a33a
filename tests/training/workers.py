"""What tests let other processes do: `python -m tests.training.workers OUTPUT SETTINGS MORE`."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import warnings

import torch
from torch.utils.data import Dataset

from d2net.errors import D2NetError
from d2net.training.batches import Drawn, load
from d2net.training.recipes import train
from d2net.training.settings import TrainingSettings

from . import made as made

SMALL = {
    "sources": [{"kind": "made", "path": "here"}],
    "crop": 64,
    "batch": 2,
    "steps": 8,
    "save_every": 3,
    "name": "small",
    "start": "ots",
}


def main(output: str, settings: str, more: str) -> None:
    """Train; die by SIGKILL after step `kill`, or with files limited to `bytes`."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    options = json.loads(more)
    if "bytes" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["bytes"], options["bytes"]))

    def progress(stage: str, done: int, _: int | None) -> None:
        if stage.startswith("training") and done == options.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        train(
            TrainingSettings.from_dict({**SMALL, **json.loads(settings)}),
            output,
            workers=options.get("workers", 0),
            progress=progress,
        )
    except D2NetError as error:
        sys.exit(f"{type(error).__name__}: {error}")


class EndsItsParent(Dataset[Drawn | D2NetError]):
    """Batches that kill the process that asked for them while its worker starts."""

    def __init__(self) -> None:
        self.state = "whatever"

    def __setstate__(self, _: object) -> None:
        parent = os.getppid()
        os.kill(parent, signal.SIGKILL)
        while os.getppid() == parent:
            time.sleep(0.01)

    def __getitem__(self, step: int) -> Drawn:
        raise AssertionError(step)


def be_killed() -> None:
    """Die while a worker starts."""
    next(load(EndsItsParent(), range(1), workers=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
