"""Writes the table of results in README.md from the figures of docs/accuracy.md and the benchmarks.

usage: python tools/readme.py [--check]

With `--check` nothing is written; the exit code is 1 if the table in README.md is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by tools/readme.py -->\n", "<!-- end of results -->"

METHODS = {
    "**d2net**, default": "light+seasons",
    "**d2net**, `--weights light`": "light",
    "D2-Net of 2019, off-the-shelf weights (`--original`)": "ots:original",
    "ALIKED-n16": "aliked:weights=aliked-n16.pth",
    "XFeat": "xfeat:weights=xfeat.pt",
    "RootSIFT": "rootsift",
}
"""Rows: the label in the README, and the method in the tables."""

FIGURES = {
    "WxBS (day and night, seasons, sensors): mAA": ("wxbs", "mAA"),
    "webcams (TILDE, AMOS): MMA@3": ("webcam", "MMA@3"),
    "Oxford (planes): MMA@3": ("oxford", "MMA@3"),
    "Strecha (relative pose): AUC@5°": ("strecha", "AUC@5 t=1"),
}
"""Columns: the title, and the table of docs/accuracy.md with the column in it."""

TIME = "relative time"


def results() -> str:
    """The table in Markdown."""
    times = _times()
    lines = [f"| {' | '.join(['', *FIGURES, TIME])} |", "|---" * (len(FIGURES) + 2) + "|"]
    for label, method in METHODS.items():
        figures = [_figure(table, column, method) for table, column in FIGURES.values()]
        lines.append(f"| {' | '.join([label, *figures, times[method]])} |")
    return "\n".join(lines) + "\n"


def _figure(name: str, column: str, method: str) -> str:
    text = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    head, _, *rows = _between(text, f"<!-- {name} -->\n", f"<!-- end of {name} -->").splitlines()
    position = _cells(head).index(column)
    for row in rows:
        cells = _cells(row)
        # WxBS is measured with a setting of its own, which the label contains.
        if cells[0].strip("`").removesuffix("max_edge=1024").rstrip(":,") == method:
            return cells[position]
    raise SystemExit(f"the table {name} of docs/accuracy.md has no row for {method}")


def _times() -> dict[str, str]:
    rows = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["rows"]
    begin, end = "extraction at 800 x 640, ", ": time relative to the default"
    measured = {
        row["what"].removeprefix(begin).removesuffix(end): row["measured"]
        for row in rows
        if row["what"].endswith(end)
    }
    return {"light+seasons": "1", **measured}


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def _between(text: str, begin: str, end: str) -> str:
    return text.partition(begin)[2].partition(end)[0]


def main() -> None:
    """Write the table, or compare it."""
    text, table = README.read_text(encoding="utf-8"), results()
    old = _between(text, BEGIN, END)
    if "--check" in sys.argv[1:]:
        if old != table:
            raise SystemExit("the results in README.md are out of date: run python tools/readme.py")
        return
    README.write_text(text.replace(BEGIN + old + END, BEGIN + table + END), encoding="utf-8")


if __name__ == "__main__":
    main()
