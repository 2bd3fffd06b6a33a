"""Text files of other programs, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d2net.errors import FormatError, InputError


def word_lines(path: str | Path, expected: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a UTF-8 file that are not empty or a comment (#), cut into words.

    Args:
        path: the file.
        expected: what it should hold, for messages.

    Yields:
        The line's number, from 1, and its words.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not UTF-8 text.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                words = line.split()
                if words and not words[0].startswith("#"):
                    yield number, words
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); expected {expected}"
        ) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} does not hold {expected}: it is not UTF-8 text") from error
