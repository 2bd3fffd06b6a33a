"""Lists in text files: every format shares the encoding, the comments and the error messages."""

from __future__ import annotations

import codecs
import io
import os
import re
import unicodedata
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError

CAMERA_LINE = re.compile(
    r"(?P<name>.+?)\s+(?P<model>[A-Z][A-Z0-9_]*)\s+(?P<width>\d+)\s+(?P<height>\d+)"
    r"(?P<params>(\s+[-+]?[\d.]+([eE][-+]?\d+)?)+)"
)
"""A line of a list of photos with cameras, see `io.intrinsics`; the name may contain spaces."""


def unicode_forms(name: str) -> tuple[str, str, str]:
    """A name as it is, and with accents inside their letters and behind them, as macOS has them."""
    return name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)


def as_known(name: str, known: Container[str]) -> str:
    """The form of a name from a list that is among the known names; the name itself if none is."""
    return next((form for form in unicode_forms(name) if form in known), name)


def read_lines(
    path: str | os.PathLike[str], expected: str, *, errors: str = "strict"
) -> Iterator[tuple[int, str]]:
    """The lines of a text file without the empty ones, and without comments (# at the start).

    The text is UTF-8, or UTF-16 with a byte order mark (Windows PowerShell writes that). Error
    messages name the `expected` content: InputError if unreadable, FormatError if not text.

    Yields:
        The number of the line, from 1, and the line without blanks around it.
    """
    path = Path(path)
    try:
        with path.open("rb") as binary:  # once, because the path may be a pipe
            is_utf16 = binary.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            encoding = "utf-16" if is_utf16 else "utf-8-sig"
            file = io.TextIOWrapper(binary, encoding=encoding, errors=errors)
            for number, line in enumerate(map(str.strip, file), start=1):
                if line and not line.startswith("#"):
                    yield number, line
    except UnicodeError as error:
        raise FormatError(f"{path} is not UTF-8 text; expected {expected}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read ({reason}); expected {expected}") from error


def finite_numbers(words: Sequence[str], *shape: int) -> NDArray[np.float64] | None:
    """The words as an array of a shape; None if they are too few, too many or no finite numbers."""
    try:
        values = np.array(words, dtype=np.float64).reshape(shape)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
