"""Rows of the benchmark table, and how they are printed and written down."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        what: the measured quantity.
        measured: the result.
        target: the required result; "-" without one.
        met: whether the result reaches the target.
        detail: the times and sizes behind the result.
        headline: whether docs/settings.md shows it too.
    """

    what: str
    measured: str
    target: str
    met: bool
    detail: str = ""
    headline: bool = False


def markdown(rows: Iterable[Row]) -> str:
    """The rows with their targets as a Markdown table, for the terminal."""
    lines = ["| what | measured | target | met | details |", "|---|---|---|---|---|"]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.what} | {row.measured} | {row.target} | {met} | {row.detail} |")
    return "\n".join(lines)


def brief(rows: Iterable[Row]) -> str:
    """The rows without their targets, for the documentation."""
    lines = ["| what | measured | details |", "|---|---|---|"]
    lines += [f"| {row.what} | {row.measured} | {row.detail} |" for row in rows]
    return "\n".join(lines)


def machine() -> str:
    """The processor, its cores and the versions that matter."""
    import torch

    cpu = platform.processor() or "unknown processor"
    flags = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
            elif line.startswith("flags"):
                names = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
                flags = ", ".join(name for name in names if name in line.split())
    except OSError:
        pass
    return (
        f"{cpu} ({flags}), {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
