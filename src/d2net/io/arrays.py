"""Check arrays from files before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from d2net.errors import FormatError

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]


def read_floats(
    arrays: Mapping[str, Array], key: str, shape: tuple[str | int, ...], where: str
) -> Array:
    """The array `key` of a file, after checking its type, shape and values.

    Letters in `shape` stand for any length. Error messages begin with `where`.

    Returns:
        A contiguous, finite array, float16 where the file has float16, else float32.
    """
    array = arrays.get(key)
    if array is None:
        raise FormatError(f"{where}: there is no array {key!r}.")
    expected = " x ".join(map(str, shape))
    if array.dtype.kind != "f":
        raise FormatError(
            f"{where}: {key!r} must be {expected} floating-point numbers, not {array.dtype}."
        )
    if array.ndim != len(shape) or any(
        not isinstance(wanted, str) and wanted != length
        for wanted, length in zip(shape, array.shape, strict=True)
    ):
        found = " x ".join(map(str, array.shape)) or "a single number"
        raise FormatError(f"{where}: {key!r} must be {expected}, not {found}.")
    kept = np.float16 if array.dtype == np.float16 else np.float32
    with np.errstate(over="ignore"):  # too large numbers become infinity, which is checked next
        array = np.ascontiguousarray(array, dtype=kept)
    if not np.isfinite(array).all():
        raise FormatError(f"{where}: {key!r} contains NaN or infinity.")
    return array


def evenly_spaced(count: int, max_count: int) -> npt.NDArray[np.int64]:
    """At most `max_count` of the indices 0 .. count - 1, evenly spaced, the ends included."""
    return np.linspace(0, count - 1, min(count, max_count)).astype(np.int64)


def as_numpy(tensor: Tensor) -> Array:
    """The tensor's values on the CPU."""
    array: Array = tensor.detach().cpu().numpy()
    return array
