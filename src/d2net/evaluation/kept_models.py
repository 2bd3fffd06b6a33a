"""COLMAP's models made once and kept, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import D2NetError
from d2net.io.atomic import new_folder
from d2net.io.colmap_model import read_model

if TYPE_CHECKING:
    import pycolmap

_RECORD = "made.json"


@dataclass(frozen=True)
class Made:
    """A model, None where none could be made, and the seconds that it took when it was made."""

    model: pycolmap.Reconstruction | None
    seconds: float


def made_once(path: Path, make: Callable[[], pycolmap.Reconstruction | None]) -> Made:
    """What is kept at `path`, or what `make` gives; a damaged one is made anew."""
    kept = _read(path)
    if kept is not None:
        return kept
    start = time.perf_counter()
    model = make()
    made = Made(model, time.perf_counter() - start)
    with new_folder(path) as folder:
        record = {"model": model is not None, "seconds": made.seconds}
        (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        if model is not None:
            model.write_binary(folder)
    return made


def _read(path: Path) -> Made | None:
    if not path.exists():
        return None
    try:
        record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        return Made(read_model(path) if record["model"] else None, float(record["seconds"]))
    except (D2NetError, OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(path)
        return None
