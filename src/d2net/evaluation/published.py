"""Published results with their sources, shown in reports beside new ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from d2net.evaluation.results import Figures


@dataclass(frozen=True)
class PublishedRow:
    """Figures of one method by group ("overall", "night") and metric ("MMA@3")."""

    method: str
    source: str
    figures: Mapping[str, Figures]


@dataclass(frozen=True)
class PublishedTable:
    """Rows that may be compared with each other: same data, ground truth and pipeline.

    Attributes:
        data: name of the data and its ground truth.
        note: what to know before comparing.
        rows: in the order of the source.
        dataset: `Result.dataset` of the results that these rows compare with; "" where the
            dataset cannot be recognized.
    """

    data: str
    note: str
    rows: Sequence[PublishedRow]
    dataset: str = ""


def published_tables(protocol: str, dataset: str | None = None) -> list[PublishedTable]:
    """Published tables of a protocol.

    Different tables must not be merged. Aachen's reference poses, for example, changed in summer
    2020, and the same method has other figures before and after.

    Args:
        protocol: name of the protocol.
        dataset: leave out tables of other datasets; None for all tables.
    """
    path = files("d2net.evaluation") / "published" / f"{protocol}.json"
    if not path.is_file():
        return []
    tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
    return [
        PublishedTable(**table | {"rows": tuple(PublishedRow(**row) for row in table["rows"])})
        for table in tables
        if dataset is None or table.get("dataset", "") in ("", dataset)
    ]
