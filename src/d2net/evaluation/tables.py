"""Figures of results as tables of text, which the terminal and the page show alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d2net.evaluation.published import PublishedTable
from d2net.evaluation.results import Figures, Result

MISSING = "–"
OVERALL = "overall"
_COUNTS = frozenset(
    {"features", "matches", "2D-3D matches"}
)  # more of them is neither better nor worse
_SMALLER_IS_BETTER = ("error", "spread")


@dataclass(frozen=True)
class Cell:
    """A figure as text, and whether it is the best of those it is compared with."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """Labels, figures, a note; `starts` marks the first row of those that are compared."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    starts: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Names of the label columns and of the figures, rows, and the name of the notes if any."""

    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


def direction(figure: str) -> int:
    """1 if more of a figure is better, -1 if less is, 0 if neither."""
    if figure in _COUNTS:
        return 0
    return -1 if any(word in figure for word in _SMALLER_IS_BETTER) else 1


def groups_of(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Names of the groups that unite others (overall first), and of the sequences or scenes."""
    names = list(dict.fromkeys(name for result in results for name in result.groups))
    single = {pair.group for result in results for pair in result.pairs}
    unions = [name for name in names if name == OVERALL or name not in single]
    return sorted(unions, key=lambda name: name != OVERALL), [n for n in names if n not in unions]


def overall_table(results: Sequence[Result]) -> Table:
    """Methods as rows, the headline figures as columns."""
    headline = _headline(results)
    decimals = _decimals(results, headline)
    block = [result.groups.get(OVERALL, {}) for result in results]
    labels = [(result.method,) for result in results]
    return Table(("method",), headline, _block(labels, block, headline, decimals))


def group_table(results: Sequence[Result], groups: Sequence[str], figures: int) -> Table:
    """For each group a row per method, with the first headline figures as columns."""
    headline = _headline(results)[:figures]
    decimals = _decimals(results, headline)
    rows: list[Row] = []
    for group in groups:
        members = [result for result in results if group in result.groups]
        labels = [(group if i == 0 else "", result.method) for i, result in enumerate(members)]
        rows += _block(labels, [r.groups[group] for r in members], headline, decimals)
    return Table(("group", "method"), headline, tuple(rows))


def published_table(table: PublishedTable, figures: Iterable[str] | None = None) -> Table:
    """Published rows by group, numbered, with their sources as notes.

    Args:
        table: rows that may stand together.
        figures: columns; None for all that there are.
    """
    known = dict.fromkeys(name for r in table.rows for f in r.figures.values() for name in f)
    columns = tuple(n for n in (known if figures is None else figures) if n in known)
    every = [figures for row in table.rows for figures in row.figures.values()]
    decimals = {name: _places(name, (f[name] for f in every if name in f)) for name in columns}
    groups = dict.fromkeys(group for row in table.rows for group in row.figures)
    if OVERALL in groups:
        groups = {OVERALL: None}
    rows: list[Row] = []
    for group in groups:
        numbered = [(n, row) for n, row in enumerate(table.rows, 1) if group in row.figures]
        for n, row in numbered:
            cells = _block([()], [row.figures[group]], columns, decimals)[0].cells
            labels = (str(n), *([group] if len(groups) > 1 else []), row.method)
            rows.append(Row(labels, cells, n == numbered[0][0], row.source))
    names = ("no.", "group", "method") if len(groups) > 1 else ("no.", "method")
    return Table(names, columns, tuple(rows), "source")


def figure_text(result: Result, name: str, value: float) -> str:
    """A figure in the form that it has in this result's tables."""
    return _text(value, _decimals([result], [name])[name])


def _headline(results: Sequence[Result]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for result in results for name in result.headline))


def _block(
    labels: Sequence[tuple[str, ...]],
    block: Sequence[Figures],
    names: Sequence[str],
    decimals: dict[str, int],
) -> tuple[Row, ...]:
    """Rows of methods that are compared with each other."""
    columns = [_column([f.get(name) for f in block], name, decimals[name]) for name in names]
    return tuple(
        Row(label, tuple(column[i] for column in columns), starts=i == 0)
        for i, label in enumerate(labels)
    )


def _column(values: Sequence[float | None], name: str, decimals: int) -> list[Cell]:
    texts = [_text(value, decimals) for value in values]
    known = [value * direction(name) for value in values if value is not None]
    best = None
    if direction(name) and len(set(texts)) > 1 and known:
        best = _text(max(known) * direction(name), decimals)
    return [Cell(text, text == best) for text in texts]


def _decimals(results: Sequence[Result], names: Iterable[str]) -> dict[str, int]:
    every = [figures for result in results for figures in result.groups.values()]
    return {name: _places(name, (f[name] for f in every if name in f)) for name in names}


def _places(name: str, values: Iterable[float]) -> int:
    """Decimals of a column: the same for all its figures."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    if name in _COUNTS or largest > 100:
        return 0
    return 3 if largest <= 1 else 2


def _text(value: float | None, decimals: int) -> str:
    if value is None or math.isnan(value):
        return MISSING
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "∞"
