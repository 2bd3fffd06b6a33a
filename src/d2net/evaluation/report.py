"""Reports of evaluations: tables in the terminal, and an HTML page with plots and matches.

The page is one file that needs no internet connection. Equal results give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table as RichTable
from rich.text import Text

from d2net.evaluation import plots
from d2net.evaluation.results import OVERALL, Figures, Metric, Result
from d2net.io.atomic import write_text

MARK = b'<meta name="generator" content="d2net evaluate">'  # of pages by `write_html`

_TERMINAL_GROUPS = 20  # more are shown only on the page
_TERMINAL_METRICS = 4  # in the table by group
_FIGURES_WIDTH = 60  # of the 80 characters of a line, those for figures
_PICTURES = 4  # of the best pairs, and as many of the worst


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
    """Headings of the label columns and of the figure columns, and the rows."""

    labels: tuple[str, ...]
    figures: tuple[str, ...]
    rows: Sequence[Row]


def terminal_tables(results: Sequence[Result]) -> list[RichTable]:
    """Tables of the headline metrics: all of them overall, and the first ones by group.

    The best figure of a column is bold. If there are more than 20 groups, only the page has them.
    """
    unions, groups = group_names(results)
    shown = [name for name in unions if name != OVERALL]
    if len(groups) <= _TERMINAL_GROUPS:
        shown += groups
    title = f"{results[0].protocol.name}: {results[0].folder}"
    tables = [_rich_table(overall_table(results), title)]
    if shown:
        tables.append(_rich_table(group_table(results, shown, _TERMINAL_METRICS), "by group"))
    return tables


def _rich_table(table: Table, title: str) -> RichTable:
    """The table for the terminal, readable at 80 columns; names are never read as markup.

    Methods are rows while their figures fit on a line, and columns otherwise.
    """
    drawn = RichTable(
        title=Text(title), title_justify="left", box=None, padding=(0, 1), header_style="bold"
    )
    cells = [
        [Text(c.text, style="bold" if c.best else "") for c in row.cells] for row in table.rows
    ]
    width = sum(max(len(name), 5) + 2 for name in table.figures)
    if len(table.labels) == 1 and width > _FIGURES_WIDTH:
        drawn.add_column("figure")
        for row in table.rows:
            drawn.add_column(Text(row.labels[0]), justify="right", overflow="fold")
        for name, *figures in zip(table.figures, *cells, strict=True):
            drawn.add_row(Text(name), *figures)
        return drawn
    longest = max(len(label) for row in table.rows for label in row.labels)
    for label in table.labels:
        drawn.add_column(label, overflow="fold", min_width=min(16, longest))
    for name in table.figures:
        drawn.add_column(Text(name), justify="right", min_width=5)
    for i, (row, figures) in enumerate(zip(table.rows, cells, strict=True)):
        if i and row.starts_group:
            drawn.add_row()
        drawn.add_row(*map(Text, row.labels), *figures)
    return drawn


def write_html(path: Path, results: Sequence[Result], photos_root: Path) -> None:
    """Write a page on methods that were evaluated on the same data.

    `PairResult.photos` are relative to `photos_root`.
    """
    plots.check_matplotlib()
    environment = Environment(
        loader=PackageLoader("d2net.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first, metrics = results[0], headline(results)
    unions, groups = group_names(results)
    published = published_tables(first.protocol.name, first.dataset)
    galleries = [_gallery(result, photos_root) for result in results]
    made = ("d2net", "machine", "folder", "settings", "provenance")
    details = [{k: v for k, v in result.to_dict().items() if k in made} for result in results]
    page = environment.get_template("report.html.j2").render(
        protocol=first.protocol,
        folder=Path(first.folder).name or first.folder,
        num_items=len(first.pairs),
        num_groups=len(groups),
        methods=[result.method for result in results],
        meanings={m.description: m.name for m in reversed(metrics) if m.description},
        overall=overall_table(results),
        curve=first.curve,
        curves=plots.curves(results, unions),
        unions=group_table(results, [name for name in unions if name != OVERALL]),
        groups=group_table(results, groups),
        published=[(table, as_table(table, metrics)) for table in published],
        galleries=[gallery for gallery in galleries if gallery["best"]],
        details=[json.dumps(detail, indent=2, ensure_ascii=False) for detail in details],
    )
    write_text(path, page)


def _gallery(result: Result, photos_root: Path) -> dict[str, Any]:
    """Pictures of the pairs that a method does best (best first) and worst (worst first)."""
    every = [pair.figures for pair in result.pairs]
    shown = [(pair, pair.drawing) for pair in result.pairs if pair.drawing is not None]
    if result.pair_metrics:
        ranked_by = result.pair_metrics[0]
        shown.sort(
            key=lambda pair: pair[0].figures[ranked_by.name],
            reverse=ranked_by.higher_is_better is not False,
        )
    pictures: dict[str, list[dict[str, Any]]] = {"best": [], "worst": []}
    worst = shown[max(_PICTURES, len(shown) - _PICTURES) :][::-1]  # no pair twice
    for kind, pairs in (("best", shown[:_PICTURES]), ("worst", worst)):
        for pair, drawing in pairs:
            metrics = [metric for metric in result.pair_metrics if metric.name in pair.figures]
            first, second = (photos_root / photo for photo in pair.photos)
            pictures[kind].append(
                {
                    "photos": pair.photos,
                    "uri": plots.draw_pair(first, second, drawing),
                    "num_correct": int(drawing.correct.sum()),
                    "num_wrong": int((~drawing.correct).sum()),
                    "figures": [
                        (m.label, figure_text(pair.figures[m.name], m, every)) for m in metrics
                    ],
                }
            )
    return {"method": result.method, "metrics": result.pair_metrics, **pictures}


def group_names(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """The names of unions of groups (overall first), and those of the groups themselves."""
    names = list(dict.fromkeys(name for result in results for name in result.groups))
    groups = {pair.group for result in results for pair in result.pairs}
    unions = [name for name in names if name == OVERALL or name not in groups]
    return sorted(unions, key=lambda name: name != OVERALL), [n for n in names if n not in unions]


def group_table(
    results: Sequence[Result], groups: Sequence[str], num_metrics: int | None = None
) -> Table:
    """For each group a row per method, with a column for each of the first headline metrics.

    The best figure of a group is marked, unless all are equal.
    """
    metrics = headline(results)[:num_metrics]
    every = [values for result in results for values in result.groups.values()]
    rows = []
    for group in groups:
        members = [result for result in results if group in result.groups]
        columns = []
        for metric in metrics:
            values = [result.groups[group].get(metric.name) for result in members]
            texts = [figure_text(value, metric, every) for value in values]
            known = [value for value in values if value is not None and not math.isnan(value)]
            best = None
            if metric.higher_is_better is not None and len(set(texts)) > 1 and known:
                extreme = max(known) if metric.higher_is_better else min(known)
                best = figure_text(extreme, metric, every)
            columns.append([Cell(text, text == best) for text in texts])
        for i, result in enumerate(members):
            labels = (group if i == 0 else "", result.method)
            rows.append(Row(labels, tuple(column[i] for column in columns), i == 0))
    return Table(("group", "method"), tuple(m.label for m in metrics), rows)


def overall_table(results: Sequence[Result]) -> Table:
    """A row per method, a column per headline metric."""
    table = group_table(results, [OVERALL])
    rows = [row._replace(labels=row.labels[1:]) for row in table.rows]
    return Table(("method",), table.figures, rows)


def published_tables(protocol: str, dataset: str | None = None) -> list[Mapping[str, Any]]:
    """Published tables of a protocol, on one dataset or on all.

    Different tables must not be merged. Aachen's reference poses, for example, changed in summer
    2020, and the same method has other figures before and after.

    Returns:
        Tables with the keys `data` (their name and ground truth), `note`, `dataset` (as in
        `Result`) and `rows`: `method`, `source` and `figures` by group and metric.
    """
    path = files("d2net.evaluation") / "published" / f"{protocol}.json"
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.is_file() else []
    return [t for t in tables if dataset is None or t.get("dataset", "") in ("", dataset)]


def as_table(table: Mapping[str, Any], metrics: Sequence[Metric]) -> Table:
    """A published table's rows by group, with their sources.

    If it has none of the metrics, all its own figures are shown.
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
