"""`python -m benchmarks [NAME ...]`: print the table; `--write` puts it into docs/benchmarks.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import cluster, extraction, maps, matching, memory, onnx, precision
from benchmarks.table import Row, brief, machine, markdown

PARTS: dict[str, Callable[[], list[Row]]] = {
    "extraction": extraction.rows,
    "kinds": extraction.kind_rows,
    "methods": extraction.method_rows,
    "matching": matching.rows,
    "matchers": matching.learned_rows,
    "memory": memory.rows,
    "maps": maps.rows,
    "precision": precision.rows,
    "onnx": onnx.rows,
    "cluster": cluster.rows,
    "gpu": extraction.gpu_rows,
}
ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results.json")


def main() -> None:
    """Run the parts named on the command line, or all."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--write"]
    unknown = [name for name in arguments if name not in PARTS]
    if unknown:
        sys.exit(f"unknown part {unknown[0]!r}: known are {', '.join(PARTS)}")
    torch.set_grad_enabled(False)
    rows: list[Row] = []
    for name in arguments or PARTS:
        rows += PARTS[name]()
        print(markdown(rows), flush=True)
    if "--write" in sys.argv:
        rows = _merged(rows)
        text = f"Measured on: {machine()}.\n\n{brief(rows)}"
        _write(ROOT / "docs" / "benchmarks.md", text)
        _write(ROOT / "docs" / "settings.md", brief(row for row in rows if row.headline))


def _merged(rows: list[Row]) -> list[Row]:
    """The rows measured before, on this machine, with these in place of older ones."""
    kept: dict[str, Row] = {}
    if RESULTS.exists():
        saved = json.loads(RESULTS.read_text())
        if saved["machine"] == machine():
            kept = {values["what"]: Row(**values) for values in saved["rows"]}
    kept.update({row.what: row for row in rows})
    saved = {"machine": machine(), "rows": [asdict(row) for row in kept.values()]}
    RESULTS.write_text(json.dumps(saved, indent=2) + "\n")
    return list(kept.values())


def _write(file: Path, table: str) -> None:
    """Put a table between a file's markers."""
    before, begin, rest = file.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    file.write_text(f"{before}{begin}{table}\n{end}{after}")


if __name__ == "__main__":
    main()
