"""What commands print: lines for people, JSON for programs, errors for both."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

PARTLY_FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

if os.environ.get("COLUMNS") == "0":  # unknown; rich would print nothing
    del os.environ["COLUMNS"]
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """Print an error, also with --quiet."""
    err.print(Text.assemble(("error: ", "bold red"), one_line(message)))


class WarningHandler(logging.Handler):
    """Prints the warnings that the package logs, also with --quiet."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning."""
        err.print(Text.assemble(("warning: ", "bold yellow"), one_line(record.getMessage())))


def say(line: str) -> None:
    """Print a line for people."""
    out.print(Text(one_line(line)))


def print_json(values: object) -> None:
    """Print one JSON document on standard output; paths become text, and NaN null."""
    finite = json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
    out.out(json.dumps(finite, indent=2))


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns. Nothing is cut, however narrow the terminal is."""
    clean = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in clean
    ]


def one_line(text: str) -> str:
    """The text with line breaks and control characters escaped; names of files may hold them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
