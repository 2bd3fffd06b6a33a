"""Figures that others have published, each with its source, for reports to show beside new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from d2net.evaluation.results import Figures


@dataclass(frozen=True)
class PublishedRow:
    """One method's figures, by group (as "overall" or "night") and name (as "MMA@3")."""

    method: str
    source: str
    figures: Mapping[str, Figures]


@dataclass(frozen=True)
class PublishedTable:
    """Rows that may be compared with each other: same data, ground truth and pipeline.

    Attributes:
        data: what was evaluated.
        note: what to know before comparing.
        rows: in the order of the source.
        layout: of the data, where a protocol knows several ("inloc"); "" where it does not.
    """

    data: str
    note: str
    rows: Sequence[PublishedRow]
    layout: str = ""


def published_rows(protocol: str, layout: str = "") -> tuple[PublishedTable, ...]:
    """Published tables of a protocol (and of a layout, if given); none where there are none.

    Rows of different tables never stand in one: Aachen's reference poses of before and after summer
    2020, for example, give other figures for the same method.
    """
    path = files("d2net.evaluation") / "published" / f"{protocol}.json"
    if not path.is_file():
        return ()
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return tuple(
        PublishedTable(**table | {"rows": tuple(PublishedRow(**row) for row in table["rows"])})
        for table in tables
        if layout in ("", table.get("layout"))
    )
