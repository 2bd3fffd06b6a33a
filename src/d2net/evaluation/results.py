"""Results of evaluations: metrics per pair, per group and overall, with how they were obtained."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry.coordinates import Array
from d2net.io.atomic import write_text

Figures: TypeAlias = dict[str, float]  # values by the name of their metric

OVERALL = "overall"  # the group of all pairs
MARK = b'[\n  {\n    "d2net": '  # of files by `save_json`


@dataclass(frozen=True)
class Metric:
    """A column of the tables.

    Attributes:
        name: its name in `Figures`, such as "MMA@3".
        description: meaning of the figure.
        unit: "px", "m", "%" and so on; "" for shares and counts.
        higher_is_better: None for counts, where more is neither better nor worse.
    """

    name: str
    description: str = ""
    unit: str = ""
    higher_is_better: bool | None = True

    @property
    def label(self) -> str:
        """Name and unit, for the head of a column."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


FEATURES = Metric("features", "mean number of keypoints of a photo", higher_is_better=None)
COUNTS = (FEATURES, Metric("matches", "mean number of matches of a pair", higher_is_better=None))


@dataclass(frozen=True)
class Curve:
    """A share that depends on a threshold in pixels, such as the matching accuracy at 1 to 10 px.

    `name` and `description` are those of the metrics, without the threshold.
    """

    name: str
    thresholds: tuple[float, ...]
    description: str

    def metric(self, threshold: float) -> Metric:
        """The metric at a threshold, such as "MMA@3"."""
        return Metric(f"{self.name}@{threshold:g}", self.description)

    def figures(self, shares: Iterable[float]) -> Figures:
        """Figures of the shares at the thresholds."""
        return {
            self.metric(threshold).name: float(share)
            for threshold, share in zip(self.thresholds, shares, strict=True)
        }


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol, as reports introduce it.

    Attributes:
        name, title, description: its command `d2net evaluate NAME`, and the head of the report.
        item: singular and plural of the items that are evaluated, a `PairResult` each.
        group: singular of the groups of items.
        correct: what makes a drawn match correct, such as "within 3 px".
    """

    name: str
    title: str
    description: str
    item: tuple[str, str] = ("pair", "pairs")
    group: str = "group"
    correct: str = ""


@dataclass(frozen=True)
class Drawing:
    """Matches of a pair for a picture: keypoints in both photos (K x 2), and which are correct."""

    points_a: Array
    points_b: Array
    correct: NDArray[np.bool_]


@dataclass(frozen=True)
class PairResult:
    """Figures of one pair of photos.

    Attributes:
        group: sequence, scene or kind, over which figures are averaged.
        photos: paths of both photos relative to the evaluated folder. A reconstruction has one
            `PairResult` for each photo, with one path.
        figures: values by metric.
        drawing: matches for the report; not saved as JSON.
    """

    group: str
    photos: tuple[str, ...]
    figures: Figures
    drawing: Drawing | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Result:
    """One method on one protocol.

    Attributes:
        protocol, settings, folder: the protocol, its settings and the evaluated folder.
        method, provenance: name of the feature source, and how the features were extracted.
        pairs: all pairs, in order.
        groups: mean figures by group, `OVERALL` among them.
        headline: the columns of the tables, most important first.
        pair_metrics: metrics shown below a pair's picture. Pairs are ranked by the first one.
        curve: the figure that is plotted over thresholds; None for no plot.
        dataset: a benchmark with published results, such as "hpatches"; "" for other photos.
    """

    protocol: Protocol
    method: str
    folder: str
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    pairs: Sequence[PairResult]
    groups: Mapping[str, Figures]
    headline: Sequence[Metric]
    pair_metrics: Sequence[Metric] = ()
    curve: Curve | None = None
    dataset: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON, with the versions of the package and the machine."""
        from d2net import __version__

        return {
            "d2net": __version__,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "protocol": self.protocol.name,
            "method": self.method,
            "folder": self.folder,
            "dataset": self.dataset,
            "provenance": dict(self.provenance),
            "settings": json.loads(json.dumps(self.settings, default=str)),  # paths become text
            "headline": [vars(metric) for metric in self.headline],
            "groups": {name: dict(figures) for name, figures in self.groups.items()},
            "pairs": [
                {"group": p.group, "photos": list(p.photos), "figures": p.figures}
                for p in self.pairs
            ],
        }


def averaged(
    pairs: Sequence[PairResult], unions: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Figures]:
    """Mean figures of the pairs of each group, of each union of groups, and overall.

    A mean is taken over the pairs that have the figure. `unions` gives the groups of a union by its
    name, such as "viewpoint" for the sequences v_*.
    """
    groups: dict[str, list[PairResult]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    if OVERALL in groups:
        raise InputError(f"a folder of the data must not be called {OVERALL!r}: rename it")
    for name, members in (unions or {}).items():
        groups[name] = [pair for pair in pairs if pair.group in members]
    groups[OVERALL] = list(pairs)
    return {
        name: mean_figures([pair.figures for pair in members])
        for name, members in groups.items()
        if members
    }


def mean_figures(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure over the pairs that have it."""
    names = dict.fromkeys(name for values in figures for name in values)
    return {name: float(np.mean([f[name] for f in figures if name in f])) for name in names}


def save_json(path: Path, results: Sequence[Result]) -> None:
    """Write results as one JSON document, atomically."""
    text = json.dumps([result.to_dict() for result in results], indent=2, ensure_ascii=False)
    write_text(path, text + "\n")
