"""What an evaluation gives: figures per pair, per group and overall, with how they came about."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2net.io.atomic import write_text

Figures = dict[str, float]


@dataclass(frozen=True)
class Drawing:
    """A pair's matches for a picture: ends in both photos (K x 2), and which are right."""

    points_a: NDArray[np.float32]
    points_b: NDArray[np.float32]
    right: NDArray[np.bool_]


@dataclass(frozen=True)
class PairResult:
    """Figures of one pair of photos.

    Attributes:
        group: sequence, scene or kind that figures are averaged in.
        photos: paths of both photos, relative to the evaluated folder; of a reconstruction's
            photo its own alone.
        figures: by name, as "MMA@3".
        drawing: matches for the gallery; not saved.
    """

    group: str
    photos: tuple[str, ...]
    figures: Figures
    drawing: Drawing | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Result:
    """One method on one protocol.

    Attributes:
        protocol: "homography", "pose", "epipolar" or another.
        method: the source's name.
        folder: what was evaluated.
        provenance: how the features were made.
        settings: of the protocol.
        pairs: all pairs, in order.
        groups: mean figures per group, "overall" among them.
        headline: names of the figures for the table, most important first.
        curve: threshold -> name of the figure, for the plot over thresholds.
        ranking: the figure that pairs are ordered by in pictures; "" for the one at the middle of
            the curve.
    """

    protocol: str
    method: str
    folder: str
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    pairs: Sequence[PairResult]
    groups: Mapping[str, Figures]
    headline: Sequence[str]
    curve: Mapping[float, str]
    ranking: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with package and machine."""
        from d2net import __version__

        return {
            "d2net": __version__,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "protocol": self.protocol,
            "method": self.method,
            "folder": self.folder,
            "provenance": dict(self.provenance),
            "settings": dict(self.settings),
            "headline": list(self.headline),
            "groups": {name: dict(figures) for name, figures in self.groups.items()},
            "pairs": [
                {"group": p.group, "photos": list(p.photos), "figures": p.figures}
                for p in self.pairs
            ],
        }


def averaged(
    pairs: Sequence[PairResult], extra: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Figures]:
    """Mean figures over the pairs of each group, of each of `extra`'s unions, and overall.

    Args:
        pairs: results; all have the same figures.
        extra: name -> groups that it unites, as "viewpoint" for the sequences v_*.
    """
    groups: dict[str, list[PairResult]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    for name, members in (extra or {}).items():
        groups[name] = [pair for pair in pairs if pair.group in members]
    groups["overall"] = list(pairs)
    return {name: _means(members) for name, members in groups.items() if members}


def _means(pairs: Sequence[PairResult]) -> Figures:
    return {
        name: float(np.mean([pair.figures[name] for pair in pairs])) for name in pairs[0].figures
    }


def save_json(path: Path, results: Sequence[Result]) -> None:
    """Write results as one JSON document, atomically."""
    text = json.dumps([result.to_dict() for result in results], indent=2, ensure_ascii=False)
    write_text(path, text + "\n")
