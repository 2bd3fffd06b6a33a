"""Reports of evaluations: tables in the terminal, and an HTML page with plots and matches.

The page is one file that needs no network. Equal results give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table as RichTable
from rich.text import Text

from d2net.errors import InputError
from d2net.evaluation import plots
from d2net.evaluation.results import OVERALL, Result
from d2net.evaluation.tables import (
    Table,
    figure_text,
    group_names,
    group_table,
    headline,
    overall_table,
    published_table,
    published_tables,
)
from d2net.io.atomic import write_text

_TERMINAL_GROUPS = 20  # more are shown on the page alone
_TERMINAL_METRICS = 4  # in the table by group
_FIGURES_WIDTH = 60  # characters that figures may take of a line of 80
_PICTURES = 4  # of the best pairs, and as many of the worst


def terminal_tables(results: Sequence[Result]) -> list[RichTable]:
    """Tables of the headline metrics: all of them overall, and the first ones by group.

    The best figure of a column is bold. More than 20 groups are left to the page.

    Raises:
        InputError: there are no results, or they are of different protocols.
    """
    _check_one_protocol(results)
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

    Args:
        path: the HTML file.
        results: methods on one protocol.
        photos_root: the folder that `PairResult.photos` are relative to.

    Raises:
        InputError: there are no results, or they are of different protocols.
        ImageError: a photo to be shown cannot be read.
        OutputError: the file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    _check_one_protocol(results)
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
        published=[(table, published_table(table, metrics)) for table in published],
        galleries=[gallery for gallery in galleries if gallery["best"]],
        details=[(result.method, _details(result)) for result in results],
    )
    write_text(path, page)


def _check_one_protocol(results: Sequence[Result]) -> None:
    protocols = sorted({result.protocol.name for result in results})
    if len(protocols) != 1:
        given = f"these are of {', '.join(protocols)}" if protocols else "there are none"
        raise InputError(
            f"a report needs results of one protocol, but {given}; write a report for each protocol"
        )


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


def _details(result: Result) -> str:
    """How a result was obtained, as JSON."""
    saved = result.to_dict()
    kept = {key: saved[key] for key in ("d2net", "machine", "folder", "settings", "provenance")}
    return json.dumps(kept, indent=2, ensure_ascii=False)
