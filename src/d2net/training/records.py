"""What a run writes down as it goes: log.jsonl, and TensorBoard's files where that is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2net.io.atomic import output_errors, write_text


class Records:
    """The records of a run in its output folder.

    Args:
        folder: the output folder.
        step: steps done so far; what was recorded later belongs to a sitting that was killed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "log.jsonl"
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= step]
        write_text(self._path, "".join(f"{line}\n" for line in kept))
        self._board = _Board(folder / "tensorboard", step) if _installed() else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record figures (or, as an alarm, a sentence) of a step.

        Raises:
            OutputError: the disk is full.
        """
        line = json.dumps({"step": step, "kind": kind, **values})
        with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            self._board.scalars(kind, step, values)

    @property
    def pictures(self) -> bool:
        """Whether pictures can be recorded."""
        return self._board is not None

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """Record a picture, if TensorBoard is installed."""
        if self._board is not None:
            self._board.picture(name, step, picture)


def _installed() -> bool:
    return importlib.util.find_spec("tensorboard") is not None


class _Board:
    """TensorBoard's event file of a sitting.

    torch's SummaryWriter writes in a thread, which a full disk kills with a trace that nobody can
    catch; the same records are written here as they come.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._event: Any = Event
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
        with output_errors(folder):
            folder.mkdir(exist_ok=True)
        self._write(file_version="brain.Event:2")
        started = SessionLog(status=SessionLog.START)  # what a killed sitting wrote is left out
        self._write(step=step + 1, session_log=started)

    def scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            if isinstance(value, int | float):
                summary = scalar(f"{kind}/{name}", value)  # type: ignore[no-untyped-call]
                self._write(step=step, summary=summary)

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        from torch.utils.tensorboard.summary import image

        pixels = np.asarray(picture)
        summary = image(name, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
        self._write(step=step, summary=summary)

    def _write(self, **content: Any) -> None:  # noqa: ANN401 (fields of an Event)
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = self._event(wall_time=time.time(), **content)
        with output_errors(self._path), self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _lines(path: Path) -> list[str]:
    """The whole lines of a log; the last may have been torn by a kill."""
    if not path.exists():
        return []
    with output_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if _is_entry(line)]


def _is_entry(line: str) -> bool:
    try:
        return isinstance(json.loads(line)["step"], int)
    except (ValueError, KeyError, TypeError):
        return False
