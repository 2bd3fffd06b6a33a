"""Puts the figures of evaluation reports into ACCURACY.md.

usage: python tools/accuracy.py NAME=REPORT.json[:FIGURE,FIGURE...] [...]

REPORT.json is what `d2net evaluate ... --output REPORT.json` wrote; its table, of the figures named
or of the headline ones, goes between the markers `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "ACCURACY.md"


_COUNTS = ("features", "matches", "inliers")
_WIDE = 9  # more figures than columns of a page: they become rows


def table(results: list[dict[str, Any]], figures: str = "") -> str:
    """The headline figures overall, or those named, and the main one per group if several."""
    names = figures.split(",") if figures else results[0]["headline"]
    methods = [f"`{result['method']}`" for result in results]
    overall = [[_number(name, r["groups"]["overall"].get(name)) for name in names] for r in results]
    if len(names) <= _WIDE:
        lines = _markdown(["features", *names], zip(methods, overall, strict=True))
    else:
        lines = _markdown(["figure", *methods], zip(names, zip(*overall, strict=True), strict=True))
    groups = [name for name in results[0]["groups"] if name != "overall"]
    if len(groups) > 1:
        main = _main(names)
        rows = ([_number(main, r["groups"][g].get(main)) for g in groups] for r in results)
        lines += ["", f"{main} per group:", ""]
        lines += _markdown(["features", *groups], zip(methods, rows, strict=True))
    return "\n".join(lines)


def _main(names: list[str]) -> str:
    """The figure that is shown per group."""
    known = ("MMA@3", "mAA", "AUC@5 t=2", "position error", "sparse points")
    return next(name for name in known if name in names)


def _markdown(head: list[str], rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or name in _COUNTS else f"{value:.3f}"


def main() -> None:
    """Write every table named on the command line."""
    text = FILE.read_text()
    for argument in sys.argv[1:]:
        name, _, source = argument.partition("=")
        path, _, figures = source.partition(":")
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            sys.exit(f"{FILE.name} has no place for {name!r}")
        text = f"{before}{begin}{table(json.loads(Path(path).read_text()), figures)}\n{end}{after}"
    FILE.write_text(text)


if __name__ == "__main__":
    main()
