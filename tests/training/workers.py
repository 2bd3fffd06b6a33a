"""What tests let other processes do: `python -m tests.training.workers OUTPUT SETTINGS MORE`."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings

import torch

from d2net.errors import D2NetError
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


if __name__ == "__main__":
    main(*sys.argv[1:])
