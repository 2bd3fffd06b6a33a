"""Lists of pairs of photos in hloc's text form: two names per line.

Names are separated by a space, as hloc writes them, or by a tab, which allows spaces in names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from d2net.errors import FormatError, InputError
from d2net.io.atomic import write_text
from d2net.io.container import check_name

Pair = tuple[str, str]


def read_pairs(path: str | Path) -> list[Pair]:
    """Read the pairs in their order; empty lines are skipped.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not UTF-8 text, or a line does not hold two names.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected pairs.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a list of pairs: it is not UTF-8 text.") from error
    pairs = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.removesuffix("\r")
        if not content.strip():
            continue
        names = content.split("\t") if "\t" in content else re.split(" +", content.strip(" "))
        if len(names) != 2:
            raise FormatError(
                f"{path}, line {number}: expected two names, found {len(names)} in {content!r}; "
                "separate names that contain spaces by a tab."
            )
        try:
            pairs.append((check_name(names[0]), check_name(names[1])))
        except InputError as error:
            raise FormatError(f"{path}, line {number}: {error}") from error
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs in their order; a tab separates names where one of them has a space.

    Raises:
        InputError: a name holds a tab or a line break, which the format cannot express.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    lines = []
    for pair in pairs:
        for name in pair:
            if re.search(r"[\t\n\r]", check_name(name)):
                raise InputError(
                    f"{name!r} cannot be in a list of pairs: it holds a tab or a line break; "
                    "rename the file."
                )
        spaced = any(character.isspace() for name in pair for character in name)
        lines.append(("\t" if spaced else " ").join(pair) + "\n")
    write_text(path, "".join(lines))
