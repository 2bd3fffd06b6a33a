"""Tables of results, for the terminal and the HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from d2net.evaluation.results import OVERALL, Figures, Metric, Result


class Cell(NamedTuple):
    """A figure as text, and whether it is the best of its column."""

    text: str
    best: bool = False


class Row(NamedTuple):
    """A row of a table; `starts_group` asks for a line above it."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    starts_group: bool = False
    source: str = ""


class Table(NamedTuple):
    """Heads of the label columns and of the figure columns, and the rows."""

    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: Sequence[Row]


def group_names(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Unions of groups (overall first), and the groups themselves."""
    names = list(dict.fromkeys(name for result in results for name in result.groups))
    groups = {pair.group for result in results for pair in result.pairs}
    unions = [name for name in names if name == OVERALL or name not in groups]
    return sorted(unions, key=lambda name: name != OVERALL), [n for n in names if n not in unions]


def group_table(
    results: Sequence[Result], groups: Sequence[str], num_metrics: int | None = None
) -> Table:
    """For each group a row per method, with a column for each of the first headline metrics."""
    metrics = headline(results)[:num_metrics]
    every = [values for result in results for values in result.groups.values()]
    rows = []
    for group in groups:
        members = [result for result in results if group in result.groups]
        columns = [_compared([r.groups[group] for r in members], m, every) for m in metrics]
        for i, result in enumerate(members):
            labels = (group if i == 0 else "", result.method)
            rows.append(Row(labels, tuple(column[i] for column in columns), i == 0))
    return Table(("group", "method"), tuple(m.label for m in metrics), rows)


def overall_table(results: Sequence[Result]) -> Table:
    """A row per method, a column per headline metric."""
    table = group_table(results, [OVERALL])
    return Table(
        ("method",), table.figures, [row._replace(labels=row.labels[1:]) for row in table.rows]
    )


def published_tables(protocol: str, dataset: str | None = None) -> list[Mapping[str, Any]]:
    """Published tables of a protocol.

    Different tables must not be merged. Aachen's reference poses, for example, changed in summer
    2020, and the same method has other figures before and after.

    Args:
        protocol: name of the protocol.
        dataset: leave out tables of other datasets; None for all tables.

    Returns:
        Tables with the keys `data` (name of the data and its ground truth), `note` (what to know
        before comparing), `dataset` (`Result.dataset` of comparable results) and `rows`: `method`,
        `source` and `figures` by group and metric.
    """
    path = files("d2net.evaluation") / "published" / f"{protocol}.json"
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.is_file() else []
    return [t for t in tables if dataset is None or t.get("dataset", "") in ("", dataset)]


def published_table(table: Mapping[str, Any], metrics: Sequence[Metric]) -> Table:
    """Published rows by group, with their sources.

    Args:
        table: one of `published_tables`.
        metrics: columns. If the table has none of them, all its own figures are shown.
    """
    every = [figures for row in table["rows"] for figures in row["figures"].values()]
    known = dict.fromkeys(name for figures in every for name in figures)
    columns = [metric for metric in metrics if metric.name in known] or [Metric(n) for n in known]
    groups = list(dict.fromkeys(group for row in table["rows"] for group in row["figures"]))
    rows: list[Row] = []
    for group in [OVERALL] if OVERALL in groups else groups:
        members = [row for row in table["rows"] if group in row["figures"]]
        for i, row in enumerate(members):
            figures = row["figures"][group]
            cells = tuple(Cell(figure_text(figures.get(m.name), m, every)) for m in columns)
            rows.append(Row((group if i == 0 else "", row["method"]), cells, i == 0, row["source"]))
    return Table(("group", "method"), tuple(m.label for m in columns), rows)


def headline(results: Sequence[Result]) -> list[Metric]:
    """The headline metrics of all results."""
    return list({metric.name: metric for r in results for metric in r.headline}.values())


def figure_text(value: float | None, metric: Metric, column: Iterable[Figures]) -> str:
    """A figure with as many decimals as its whole column has."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    known = [abs(figures[metric.name]) for figures in column if metric.name in figures]
    largest = max((v for v in known if math.isfinite(v)), default=0.0)
    decimals = 0 if metric.higher_is_better is None or largest > 100 else 3 if largest <= 1 else 2
    return f"{value:,.{decimals}f}"


def _compared(rows: Sequence[Figures], metric: Metric, column: Sequence[Figures]) -> list[Cell]:
    """The cells of methods that are compared: the best one is marked, unless all are equal."""
    texts = [figure_text(figures.get(metric.name), metric, column) for figures in rows]
    known = [figures[metric.name] for figures in rows if metric.name in figures]
    best = None
    if metric.higher_is_better is not None and len(set(texts)) > 1 and known:
        extreme = max(known) if metric.higher_is_better else min(known)
        best = figure_text(extreme, metric, column)
    return [Cell(text, text == best) for text in texts]
