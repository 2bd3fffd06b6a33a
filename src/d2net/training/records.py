"""What a run writes down as it goes: log.jsonl, and TensorBoard's files where that is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2net.formats.atomic import output_errors, replacing
from d2net.images import ImageLike


class Records:
    """The records of a run in its output folder.

    Args:
        folder: the output folder.
        step: steps done so far; what was recorded later belongs to a sitting that was killed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / "log.jsonl"
        kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= step]
        with replacing(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            with output_errors(folder):
                self._board = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Record figures (or, as an alarm, a sentence) of a step.

        Raises:
            OutputError: the disk is full.
        """
        line = json.dumps({"step": step, "kind": kind, **values})
        with output_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in values.items():
            if self._board is not None and isinstance(value, int | float):
                with output_errors(self._path.parent):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    @property
    def pictures(self) -> bool:
        """Whether pictures are wanted."""
        return self._board is not None

    def picture(self, name: str, step: int, picture: ImageLike) -> None:
        """Record a picture, H x W x 3."""
        import numpy as np

        if self._board is not None:
            with output_errors(self._path.parent):
                self._board.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """End the records."""
        if self._board is not None:
            self._board.close()


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
