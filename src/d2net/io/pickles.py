"""Read pickles of arrays and plain containers without executing anything.

A pickle can name any function to be called. Here every name is refused except those of numpy's
arrays, number types and scalars. Stand-ins replace these, so that an untrusted file cannot choose
numpy's types either.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.lib import format as npy

from d2net.errors import FormatError, InputError


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


class _NumpyArray:
    """Stand-in for `numpy.ndarray`; `value` is an array of numbers or a list."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if isinstance(data, list):
            self.value = data
        elif isinstance(kind, NumpyType) and kind.dtype is not None:
            order: Literal["F", "C"] = "F" if fortran else "C"
            flat = np.frombuffer(data, kind.dtype)
            self.value = np.array(flat.reshape(tuple(shape), order=order))
        else:
            raise pickle.UnpicklingError("an array contains something other than numbers")


def _new_array(*_: object) -> _NumpyArray:
    return _NumpyArray()


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NumpyArray,
    ("numpy", "dtype"): NumpyType,
    **{
        (module, name): stand_in
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, stand_in in (("_reconstruct", _new_array), ("scalar", numpy_scalar))
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 (as the base class)
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks to run {module}.{name}")
        return _STAND_INS[module, name]


def read_npz(path: Path) -> dict[str, Any]:
    """Read an .npz file: arrays of numbers or text by name, and lists for arrays of objects.

    Lists contain None, numbers, text, arrays, and dicts and lists of these.

    Raises:
        InputError: there is no such file.
        FormatError: it is damaged, not an .npz file, or asks to run a function.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _read_npy(io.BytesIO(archive.read(name)))
                for name in archive.namelist()
            }
    except Exception as error:  # damaged bytes can raise any kind of error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"{path} cannot be read safely: {reason[:160]}") from error


def _read_npy(stream: BinaryIO) -> Any:  # noqa: ANN401 (an array or a list)
    version = npy.read_magic(stream)
    reader = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    _, _, dtype = reader(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)
    return _plain(_Unpickler(stream).load())


def _plain(value: Any) -> Any:  # noqa: ANN401 (anything a pickle can contain)
    """The value with the arrays in place of their stand-ins."""
    if isinstance(value, _NumpyArray):
        return _plain(value.value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value
