"""Records of a run: log.jsonl, and TensorBoard's files if TensorBoard is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2net.io.atomic import output_errors, write_text


class Records:
    """The records in a run's output folder.

    Args:
        folder: the output folder.
        step: number of finished steps. Entries of later steps, written before the run was killed,
            are removed.

    Raises:
        OutputError: the records cannot be written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._log = folder / "log.jsonl"
        kept = _entries_until(self._log, step)
        write_text(self._log, "".join(f"{line}\n" for line in kept))
        self.takes_pictures = importlib.util.find_spec("tensorboard") is not None
        self._board = _Board(folder / "tensorboard", step) if self.takes_pictures else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write figures (or the sentence of an alarm) of a step.

        Raises:
            OutputError: the disk is full.
        """
        line = json.dumps({"step": step, "kind": kind, **values})
        with output_errors(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            self._board.write_scalars(kind, step, values)

    def write_picture(self, name: str, step: int, picture: Image.Image) -> None:
        """Write a picture if TensorBoard is installed.

        Raises:
            OutputError: the disk is full.
        """
        if self._board is not None:
            self._board.write_picture(name, step, picture)


class _Board:
    """TensorBoard's event file.

    torch's SummaryWriter writes in a thread, where an error of a full disk cannot be caught. The
    same records are written here without a thread.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event: Any = Event
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
        with output_errors(folder):
            folder.mkdir(exist_ok=True)
        self._write(file_version="brain.Event:2")
        # TensorBoard then ignores later steps of earlier files.
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            if isinstance(value, int | float):
                summary = scalar(f"{kind}/{name}", value)  # type: ignore[no-untyped-call]
                self._write(step=step, summary=summary)

    def write_picture(self, name: str, step: int, picture: Image.Image) -> None:
        from torch.utils.tensorboard.summary import image

        pixels = np.asarray(picture)
        summary = image(name, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._write(step=step, summary=summary)

    def _write(self, **content: Any) -> None:  # noqa: ANN401 (fields of an Event)
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = self._event(wall_time=time.time(), **content)
        with output_errors(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _entries_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step. A kill may have cut the last line."""
    if not path.exists():
        return []
    with output_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept
