"""Reports of evaluations: tables in the terminal, and a page that shows why a figure is low.

The page is one file that needs no network. Equal results give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.table import Table as RichTable
from rich.text import Text

from d2net.errors import InputError
from d2net.evaluation.charts import Chart, chart
from d2net.evaluation.gallery import gallery
from d2net.evaluation.homography import REPEATABILITY_THRESHOLD
from d2net.evaluation.published import PublishedTable, published_rows
from d2net.evaluation.results import Figures, Result
from d2net.evaluation.tables import (
    OVERALL,
    Cell,
    Table,
    group_table,
    groups_of,
    overall_table,
    published_table,
)
from d2net.io.atomic import write_text

_TERMINAL_GROUPS = 20  # more sequences are for the page
_FIGURES_WIDTH = 60  # characters that figures may take of a line of 80
_TERMINAL_FIGURES = 4
_HPATCHES_SEQUENCES = 100  # HPatches proper has more of them

_PROTOCOLS = {
    "homography": (
        "Planar sequences with homographies",
        "Photo 1 of each sequence is matched with every other one by mutual nearest neighbours "
        "without a ratio test, and a match is right if its first keypoint, warped by the true "
        "homography, lies close enough to its second. Figures are means over pairs, and a pair "
        "without matches counts zero.",
    ),
    "pose": (
        "Relative poses",
        "The relative pose of each pair is estimated from its matches and compared with the ground "
        "truth. A pair's error is the larger of the angles by which its rotation and its direction "
        "of translation are wrong.",
    ),
    "epipolar": (
        "Hand-marked correspondences",
        "A fundamental matrix is estimated from the matches of each pair, and correspondences "
        "marked by hand are held against it. A correspondence counts if both its points lie close "
        "enough to their epipolar lines.",
    ),
    "reconstruction": (
        "Reconstruction",
        "The photos are matched and reconstructed by structure from motion with fixed seeds. The "
        "columns are those of the Local Feature Evaluation Benchmark and, where the cameras are "
        "known, their errors after an alignment by similarity.",
    ),
    "localization": (
        "Localization in a map",
        "Each query photo is matched with photos of a map whose points are known, and its pose is "
        "estimated from them. Figures named by a distance and an angle are the percentage of the "
        "queries whose pose is within both of the true one; a query without a pose is not.",
    ),
}
_RIGHT = {  # of matches in the pictures
    "homography": f"within {REPEATABILITY_THRESHOLD:g} px",
    "localization": "agreeing with the true pose or, where it is not known, with the found one",
}
# What figures are of, instead of pairs.
_THINGS = {"localization": ("query", "queries"), "reconstruction": ("photo", "photos")}
_MEANINGS = {
    "MMA": "share of matches that are right within so many pixels (mean matching accuracy)",
    "mAA": "mean accuracy over the thresholds",
    "AUC": "area under the curve of recall up to so many degrees, as a share",
    "corner": "share of pairs whose estimated homography moves the photo's corners by at most so "
    "many pixels from their true places, on average",
    "repeatability": "share of keypoints that the other photo has within 3 px",
    "matching score": "right matches as a share of the keypoints that both photos see",
    "median position error": "of the queries that have a pose, in metres",
    "median rotation error": "of the queries that have a pose, in degrees",
    "localized": "percentage of the queries that have a pose",
    "2D-3D matches": "mean number of a query's matches with points whose places are known",
    "features": "mean number of keypoints of a photo",
    "matches": "mean number of matches of a pair",
}


def terminal_tables(results: Sequence[Result]) -> list[RichTable]:
    """Tables: the headline figures overall, and the first of them for each group.

    The best of a column is bold. More sequences than fit on a screen are left to the page.

    Args:
        results: methods on one protocol.

    Raises:
        InputError: there are no results, or they are of different protocols.
    """
    _check(results)
    unions, sequences = groups_of(results)
    groups = [name for name in unions if name != OVERALL]
    if len(sequences) <= _TERMINAL_GROUPS:
        groups += sequences
    tables = [_rich(overall_table(results), f"{results[0].protocol}: {results[0].folder}")]
    if groups:
        tables.append(_rich(group_table(results, groups, _TERMINAL_FIGURES), "by group"))
    return tables


def write_html(path: Path, results: Sequence[Result], photos_root: Path) -> None:
    """Write a page on methods that were evaluated on the same data.

    Args:
        path: the HTML file.
        results: methods on one protocol.
        photos_root: the folder that the pairs' photos are relative to.

    Raises:
        InputError: there are no results, or they are of different protocols.
        ImageError: a photo of the gallery cannot be read.
        OutputError: the file cannot be written.
    """
    _check(results)
    write_text(path, _page(results, photos_root))


def is_hpatches(results: Sequence[Result]) -> bool:
    """Whether HPatches proper was evaluated, so that published curves may stand in one plot."""
    sequences = {
        pair.group
        for result in results
        for pair in result.pairs
        if pair.group.startswith(("i_", "v_"))
    }
    return results[0].protocol == "homography" and len(sequences) > _HPATCHES_SEQUENCES


def _check(results: Sequence[Result]) -> None:
    protocols = sorted({result.protocol for result in results})
    if len(protocols) != 1:
        given = f"these are of {', '.join(protocols)}" if protocols else "there are none"
        raise InputError(f"a report needs results of one protocol, but {given}; report each alone")


def _rich(table: Table, title: str) -> RichTable:
    """For the terminal, readable at 80 columns; names are never read as markup.

    Methods are rows while their figures fit on a line, and columns when there are more.
    """
    drawn = RichTable(
        title=Text(title), title_justify="left", box=None, padding=(0, 1), header_style="bold"
    )
    width = sum(max(len(name), 5) + 2 for name in table.figures)
    if len(table.labels) == 1 and width > _FIGURES_WIDTH:
        drawn.add_column("figure")
        for row in table.rows:
            drawn.add_column(Text(row.labels[0]), justify="right", overflow="fold")
        for i, name in enumerate(table.figures):
            drawn.add_row(Text(name), *(_rich_cell(row.cells[i]) for row in table.rows))
        return drawn
    for label in table.labels:
        drawn.add_column(label, overflow="fold", min_width=min(16, _longest(table)))
    for name in table.figures:
        drawn.add_column(Text(name), justify="right", min_width=5)
    for i, row in enumerate(table.rows):
        if i and row.starts:
            drawn.add_row()
        drawn.add_row(*(Text(label) for label in row.labels), *map(_rich_cell, row.cells))
    return drawn


def _rich_cell(cell: Cell) -> Text:
    return Text(cell.text, style="bold" if cell.best else "")


def _longest(table: Table) -> int:
    return max(len(label) for row in table.rows for label in row.labels)


def _page(results: Sequence[Result], photos_root: Path) -> str:
    environment = Environment(
        loader=PackageLoader("d2net.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = results[0]
    title, protocol = _PROTOCOLS.get(first.protocol, (first.protocol, ""))
    unions, sequences = groups_of(results)
    published = published_rows(first.protocol, first.settings.get("layout", ""))
    hpatches = is_hpatches(results)
    headline = list(dict.fromkeys(name for result in results for name in result.headline))
    prefixes = {name.partition("@")[0] for name in headline}
    return environment.get_template("report.html.j2").render(
        title=title,
        protocol=protocol,
        right=_RIGHT.get(first.protocol, ""),
        homography=first.protocol == "homography",
        folder=Path(first.folder).name or first.folder,
        pairs=len(first.pairs),
        things=_THINGS.get(first.protocol, ("pair", "pairs")),
        sequences=len(sequences),
        methods=[result.method for result in results],
        overall=overall_table(results),
        meanings={name: text for name, text in _MEANINGS.items() if name in prefixes},
        charts=_charts(results, unions, published if hpatches else ()),
        curve=next((n.partition("@")[0] for r in results for n in r.curve.values()), ""),
        unions=group_table(results, [name for name in unions if name != OVERALL], len(headline)),
        groups=group_table(results, sequences, len(headline)),
        published=[(table, published_table(table, _shown(results, table))) for table in published],
        hpatches=hpatches,
        galleries=[found for r in results if (found := gallery(r, photos_root)) is not None],
        details=[(result.method, list(_details(result))) for result in results],
    )


def _shown(results: Sequence[Result], table: PublishedTable) -> list[str] | None:
    """The headline figures that published rows have too; None (all of theirs) if there are none."""
    known = dict.fromkeys(name for row in table.rows for f in row.figures.values() for name in f)
    return [name for name in known if name in results[0].headline] or None


def _charts(
    results: Sequence[Result], groups: Sequence[str], published: Sequence[PublishedTable]
) -> list[Chart]:
    """A plot per group that unites others, of the curve that the methods share."""
    curve = {t: n for t, n in sorted(results[0].curve.items()) if all(r.curve for r in results)}
    names = list(curve.values())
    if len(names) < 2:
        return []
    rows = [row for table in published for row in table.rows]
    charts = []
    for group in groups:
        lines = {
            i: (result.method, _values(result.groups[group], names))
            for i, result in enumerate(results)
            if group in result.groups and set(names) <= set(result.groups[group])
        }
        references = {
            n: (row.method, _values(row.figures[group], names))
            for n, row in enumerate(rows, 1)
            if group in row.figures and set(names) <= set(row.figures[group])
        }
        if lines:
            charts.append(chart(group, list(curve), lines, references))
    return charts


def _values(figures: Figures, names: Sequence[str]) -> list[float]:
    return [figures[name] for name in names]


def _details(result: Result) -> Iterator[tuple[str, str]]:
    """How a result came about, as names and values."""
    about = result.to_dict()
    for key in ("d2net", "machine", "folder"):
        yield key, str(about[key])
    yield from _flat("settings", result.settings)
    yield from _flat("features", result.provenance)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 (anything JSON has)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
