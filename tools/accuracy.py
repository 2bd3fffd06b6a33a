"""Puts the figures of evaluation reports into ACCURACY.md.

usage: python tools/accuracy.py NAME=REPORT.json [NAME=REPORT.json ...]

REPORT.json is what `d2net evaluate ... --output REPORT.json` wrote; its table goes between the
markers `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "ACCURACY.md"


def table(results: list[dict[str, Any]]) -> str:
    """Methods as rows; headline figures overall, then the first curve figure per group."""
    columns = results[0]["headline"]
    lines = [
        "| features | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for result in results:
        overall = result["groups"]["overall"]
        cells = [_number(overall[name]) for name in columns]
        lines.append(f"| `{result['method']}` | " + " | ".join(cells) + " |")
    groups = [name for name in results[0]["groups"] if name != "overall"]
    main = columns[min(1, len(columns) - 1)]
    lines += ["", f"{main} per group:", "", "| features | " + " | ".join(groups) + " |"]
    lines.append("|---" * (len(groups) + 1) + "|")
    for result in results:
        cells = [_number(result["groups"][name][main]) for name in groups]
        lines.append(f"| `{result['method']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3f}" if value <= 1 else f"{value:,.0f}"


def main() -> None:
    """Write every table named on the command line."""
    text = FILE.read_text()
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            sys.exit(f"{FILE.name} has no place for {name!r}")
        text = f"{before}{begin}{table(json.loads(Path(path).read_text()))}\n{end}{after}"
    FILE.write_text(text)


if __name__ == "__main__":
    main()
