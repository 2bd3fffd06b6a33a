"""The log of a run: log.jsonl, and TensorBoard's files if TensorBoard is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from d2net.io.atomic import output_errors, write_text


class RunLog:
    """The log in a run's output folder.

    torch's SummaryWriter writes in a thread, where an error of a full disk cannot be caught, so
    TensorBoard's events are written here without a thread. Entries of steps after `step`, written
    before the run was killed, are removed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._log = folder / "log.jsonl"
        kept = []
        if self._log.exists():
            with output_errors(self._log):
                lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            for line in lines:
                with suppress(ValueError, KeyError, TypeError):  # a kill may have cut the last line
                    if json.loads(line)["step"] <= step:
                        kept.append(f"{line}\n")
        write_text(self._log, "".join(kept))
        self._events: Path | None = None
        if importlib.util.find_spec("tensorboard") is not None:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            board = folder / "tensorboard"
            with output_errors(board):
                board.mkdir(exist_ok=True)
            self._events = board / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
            self._write_event(self._events, file_version="brain.Event:2")
            # TensorBoard then ignores later steps of earlier files.
            start = SessionLog(status=SessionLog.START)
            self._write_event(self._events, step=step + 1, session_log=start)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write figures (or the sentence of an alarm) of a step."""
        line = json.dumps({"step": step, "kind": kind, **values})
        with output_errors(self._log), self._log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._events is not None:
            from torch.utils.tensorboard.summary import scalar

            for name, value in values.items():
                if isinstance(value, int | float):
                    summary = scalar(f"{kind}/{name}", value)  # type: ignore[no-untyped-call]
                    self._write_event(self._events, step=step, summary=summary)

    def _write_event(self, path: Path, **content: Any) -> None:  # noqa: ANN401 (of an Event)
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event: Any = Event(wall_time=time.time(), **content)
        with output_errors(path), path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
