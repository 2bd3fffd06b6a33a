"""Puts the figures of evaluation reports into ACCURACY.md.

usage: python tools/accuracy.py NAME=REPORT.json[:FIGURE,FIGURE...[:FIGURE,FIGURE...]] [...]

REPORT.json is what `d2net evaluate ... --output REPORT.json` wrote; its table, of the figures named
or of the headline ones, goes between the markers `<!-- NAME -->` and `<!-- end of NAME -->`. The
second list names the figures that are shown by group, too, instead of the main one. A figure's own
commas have a space behind them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "ACCURACY.md"


_REGISTERED, _TRUE = "images registered", "true images"
_COUNTS = ("features", "matches", "inliers")
_WIDE = 9  # more figures than columns of a page: they become rows


def table(results: list[dict[str, Any]], figures: str = "", by_group: str = "") -> str:
    """The headline figures overall, or those named, and some by group if there are several."""
    names = _listed(figures) or [metric["name"] for metric in results[0]["headline"]]
    methods = [f"`{result['method']}`" for result in results]
    overall = [[_number(name, r["groups"]["overall"].get(name)) for name in names] for r in results]
    if len(names) <= _WIDE:
        lines = _markdown(["features", *names], zip(methods, overall, strict=True))
    else:
        lines = _markdown(["figure", *methods], zip(names, zip(*overall, strict=True), strict=True))
    groups = [name for name in results[0]["groups"] if name != "overall"]
    for name in _listed(by_group) or [_main(names)] if len(groups) > 1 else []:
        lines += ["", f"{name} per group:", "", *_by_group(results, groups, methods, name)]
    return "\n".join(lines)


def _listed(names: str) -> list[str]:
    return re.split(r",(?! )", names) if names else []


def _by_group(
    results: list[dict[str, Any]], groups: list[str], methods: list[str], name: str
) -> list[str]:
    """One figure; many groups become rows, with what the truth has beside what was registered."""
    if len(groups) <= _WIDE:
        rows = ([_number(name, r["groups"][g].get(name)) for g in groups] for r in results)
        return _markdown(["features", *groups], zip(methods, rows, strict=True))
    columns = {
        method: [r["groups"][g].get(name) for g in groups]
        for method, r in zip(methods, results, strict=True)
    }
    if name == _REGISTERED:
        columns[_TRUE] = [results[0]["groups"][g].get(_TRUE) for g in groups]
    cells = zip(*([_number(name, v) for v in column] for column in columns.values()), strict=True)
    return _markdown(["scene", *columns], zip(groups, cells, strict=True))


def _main(names: list[str]) -> str:
    """The figure that is shown per group."""
    known = ("MMA@3", "mAA", "AUC@5 t=2", "position error", "1 %, 1°", "sparse points")
    return next(name for name in known if name in names)


def _markdown(head: list[str], rows: Iterable[tuple[str, Iterable[str]]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in (_REGISTERED, _TRUE):
        return f"{value:g}"
    return f"{value:,.0f}" if value >= 100 or name in _COUNTS else f"{value:.3f}"


def write(name: str, report: Path, figures: str = "", by_group: str = "") -> None:
    """Put a report's table into its place."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = FILE.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        sys.exit(f"{FILE.name} has no place for {name!r}")
    written = table(json.loads(report.read_text()), figures, by_group)
    FILE.write_text(f"{before}{begin}{written}\n{end}{after}")


def main() -> None:
    """Write every table named on the command line."""
    for argument in sys.argv[1:]:
        name, _, source = argument.partition("=")
        path, *figures = source.split(":")
        write(name, Path(path), *figures)


if __name__ == "__main__":
    main()
