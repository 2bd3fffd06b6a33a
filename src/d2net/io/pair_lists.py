"""Lists of pairs of photos in hloc's text format: two names per line.

The names are separated by a space, as hloc writes them, or by a tab.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from d2net.errors import FormatError, InputError
from d2net.io.atomic import write_text
from d2net.io.resumable_h5 import check_name
from d2net.io.text_lists import read_lines

Pair = tuple[str, str]


def read_pairs(path: str | Path) -> list[Pair]:
    """Read the pairs in the order of the file."""
    pairs = []
    for number, line in read_lines(path, "pairs of photos"):
        names = line.split("\t") if "\t" in line else re.split(" +", line)
        if len(names) != 2:
            raise FormatError(
                f"{path}, line {number}: expected two names, found {len(names)} in {line!r}; "
                "put a tab between names that contain spaces."
            )
        try:
            first, second = (check_name(name.removeprefix("./")) for name in names)
        except InputError as error:
            raise FormatError(f"{path}, line {number}: {error}") from error
        pairs.append((first, second))
    return pairs


def is_own_list(path: Path) -> bool:
    """Whether `write_pairs` could have written the list: it has no comments and no extra blanks.

    Our lists have no comment that marks them, because hloc cannot read comments.
    """
    return path.read_text(encoding="utf-8") == _as_text(read_pairs(path))


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs in their order, with a tab between names if one of them contains a space.

    A name that begins with # or a space gets `./` in front, which `read_pairs` removes.
    """
    write_text(Path(path), _as_text(pairs))


def _as_text(pairs: Iterable[Pair]) -> str:
    lines = []
    for pair in pairs:
        for name in pair:
            if re.search(r"[\t\n\r]|\s$", check_name(name)):
                raise InputError(
                    f"{name!r} cannot be in a list of pairs: it contains a tab or a line break, or "
                    "ends with a space; rename the file."
                )
        separator = "\t" if any(re.search(r"\s", name) for name in pair) else " "
        lines.append(separator.join(re.sub(r"^(?=[#\s])", "./", name) for name in pair) + "\n")
    return "".join(lines)
