"""Stand-ins for numpy's types in pickles, so that an untrusted file cannot choose them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np


class NumpyType:
    """Stand-in for `numpy.dtype`: remembers the name of a number type."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code
        self.order: object = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type if it is a type of plain numbers."""
        name = f"{self.order}{self.code}"
        return np.dtype(name) if re.fullmatch(r"[<>=|][biuf][1248]", name) else None


def numpy_scalar(kind: object, data: object = None) -> bool | int | float | None:
    """Stand-in for numpy's function that rebuilds a scalar: a number, or None for anything else."""
    if not isinstance(kind, NumpyType) or not isinstance(data, bytes) or kind.dtype is None:
        return None
    number: bool | int | float = np.frombuffer(data, kind.dtype)[0].item()
    return number
