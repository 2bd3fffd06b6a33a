"""Tables of results, for the terminal and the HTML report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d2net.evaluation.published import PublishedTable
from d2net.evaluation.results import OVERALL, Figures, Metric, Result

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A figure as text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; `starts_group` asks for a line above it."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    starts_group: bool = False
    source: str = ""


@dataclass(frozen=True)
class Table:
    """Heads of the label columns and of the figure columns, and the rows."""

    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]
    has_sources: bool = False


def group_names(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Unions of groups (overall first), and the groups themselves."""
    names = list(dict.fromkeys(name for result in results for name in result.groups))
    groups = {pair.group for result in results for pair in result.pairs}
    unions = [name for name in names if name == OVERALL or name not in groups]
    return sorted(unions, key=lambda name: name != OVERALL), [n for n in names if n not in unions]


def overall_table(results: Sequence[Result]) -> Table:
    """A row per method, a column per headline metric."""
    metrics = headline(results)
    figures = [result.groups.get(OVERALL, {}) for result in results]
    rows = _compared([(result.method,) for result in results], figures, metrics, results)
    return Table(("method",), tuple(m.label for m in metrics), rows)


def group_table(
    results: Sequence[Result], groups: Sequence[str], num_metrics: int | None = None
) -> Table:
    """For each group a row per method, with a column for each of the first headline metrics."""
    metrics = headline(results)[:num_metrics]
    rows: list[Row] = []
    for group in groups:
        members = [result for result in results if group in result.groups]
        labels = [(group if i == 0 else "", result.method) for i, result in enumerate(members)]
        rows += _compared(labels, [r.groups[group] for r in members], metrics, results)
    return Table(("group", "method"), tuple(m.label for m in metrics), tuple(rows))


def published_table(table: PublishedTable, metrics: Sequence[Metric]) -> Table:
    """Published rows by group, numbered, with their sources.

    Args:
        table: rows that may be compared with each other.
        metrics: columns. If the table has none of them, all its own figures are shown.
    """
    every = [figures for row in table.rows for figures in row.figures.values()]
    known = dict.fromkeys(name for figures in every for name in figures)
    columns = [metric for metric in metrics if metric.name in known] or [Metric(n) for n in known]
    groups = dict.fromkeys(group for row in table.rows for group in row.figures)
    if OVERALL in groups:
        groups = {OVERALL: None}
    rows: list[Row] = []
    for group in groups:
        first = True
        for number, row in enumerate(table.rows, 1):
            if group not in row.figures:
                continue
            labels = (str(number), *([group] if len(groups) > 1 else []), row.method)
            cells = [Cell(figure_text(row.figures[group].get(m.name), m, every)) for m in columns]
            rows.append(Row(labels, tuple(cells), first, row.source))
            first = False
    names = ("no.", "group", "method") if len(groups) > 1 else ("no.", "method")
    return Table(names, tuple(m.label for m in columns), tuple(rows), has_sources=True)


def headline(results: Sequence[Result]) -> list[Metric]:
    """The headline metrics of all results."""
    return list({metric.name: metric for r in results for metric in r.headline}.values())


def figure_text(value: float | None, metric: Metric, column: Iterable[Figures]) -> str:
    """A figure with as many decimals as its whole column has."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞"
    known = [abs(figures[metric.name]) for figures in column if metric.name in figures]
    largest = max((v for v in known if math.isfinite(v)), default=0.0)
    decimals = 0 if metric.higher_is_better is None or largest > 100 else 3 if largest <= 1 else 2
    return f"{value:,.{decimals}f}"


def _compared(
    labels: Sequence[tuple[str, ...]],
    figures: Sequence[Figures],
    metrics: Sequence[Metric],
    results: Sequence[Result],
) -> tuple[Row, ...]:
    """Rows of methods that are compared with each other: the best of each column is marked."""
    every = [values for result in results for values in result.groups.values()]
    columns = []
    for metric in metrics:
        texts = [figure_text(values.get(metric.name), metric, every) for values in figures]
        known = [values[metric.name] for values in figures if metric.name in values]
        best = None
        if metric.higher_is_better is not None and len(set(texts)) > 1 and known:
            extreme = max(known) if metric.higher_is_better else min(known)
            best = figure_text(extreme, metric, every)
        columns.append([Cell(text, text == best) for text in texts])
    return tuple(
        Row(label, tuple(column[i] for column in columns), starts_group=i == 0)
        for i, label in enumerate(labels)
    )
