"""Figures of maps, and why photos are not in one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from d2net.mapping.georeference import Georeference
from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.plausibility import MapTrust
from d2net.mapping.reconstruction_arrays import Cloud, mean
from d2net.mapping.settings import MIN_INLIERS, MIN_PHOTOS
from d2net.wording import count

NO_FEATURES = "no features"
NO_MATCHES = "no verified matches with any photo"
TOO_FEW_INLIERS = "too few inliers to a model"

_MAX_NAMES = 8  # photos that the terminal names for each reason; the files name all


@dataclass(frozen=True)
class PhotoStatus:
    """Whether a photo is in a map.

    Attributes:
        name: relative to the photos' folder.
        reason: why it is in no map, such as `NO_FEATURES`; empty if it is in one.
        points: number of the map's points that it observes.
        mean_reprojection_error_px: of these points; None without points.
    """

    name: str
    reason: str = ""
    points: int = 0
    mean_reprojection_error_px: float | None = None


@dataclass(frozen=True)
class MapSummary:
    """Figures of the first map of some photos, and which photos are in which map.

    Attributes:
        photos: all photos given, by name.
        mean_reprojection_error_px: over points, as COLMAP's.
        maps: all maps; number n is in `sparse/n`.
        insignificant_pairs: number of pairs left out, because their matches may be accidental.
        seconds: duration of each stage, in order.
        settings: how the map was made, as JSON.
        georeference: the map's place on the earth; None if unknown.
    """

    photos: tuple[PhotoStatus, ...]
    points: int
    mean_track_length: float
    mean_reprojection_error_px: float
    maps: tuple[MapTrust, ...] = ()
    insignificant_pairs: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    georeference: Georeference | None = None

    @property
    def num_registered(self) -> int:
        """Number of photos in a map."""
        return len(self.photos) - len(self.failed)

    @property
    def failed(self) -> tuple[PhotoStatus, ...]:
        """The photos that are in no map."""
        return tuple(photo for photo in self.photos if photo.reason)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the package's version."""
        from d2net import __version__

        given, registered = len(self.photos), self.num_registered
        head = {"d2net": __version__, "photos_given": given, "photos_registered": registered}
        return head | asdict(self)


def summarise(clouds: Sequence[Cloud], failed: Mapping[str, str]) -> MapSummary:
    """The status of the photos in all maps, and the figures of the first map.

    `failed` gives the reason for each photo that is in no map; others are ignored.
    """
    photos = {name: PhotoStatus(name, reason) for name, reason in failed.items()}
    for photo in (photo for cloud in reversed(clouds) for photo in cloud.photos):
        num_points = len(set(photo.point_rows.tolist()))
        error = photo.error if math.isfinite(photo.error) else None
        photos[photo.name] = PhotoStatus(photo.name, "", num_points, error)
    first = clouds[0]
    return MapSummary(
        photos=tuple(photos[name] for name in sorted(photos)),
        points=len(first.points),
        mean_track_length=float(first.track_lengths.mean()),
        mean_reprojection_error_px=mean(first.errors),
    )


def text_lines(summary: MapSummary) -> list[str]:
    """The summary for a terminal."""
    lines = figure_lines(summary)
    if summary.failed:
        lines.append("not registered:")
        for reason in dict.fromkeys(photo.reason for photo in summary.failed):
            names = [photo.name for photo in summary.failed if photo.reason == reason]
            lines.append(f"  {reason}: {_named(names)}")
    time = seconds_line(summary)
    return [*lines, time] if time else lines


def figure_lines(summary: MapSummary) -> list[str]:
    """The main figures, one a line."""
    several = len(summary.maps) > 1
    maps = [(f"map {n}" if several else "the map", part) for n, part in enumerate(summary.maps)]
    lines = [f"{name} is doubtful: {'; '.join(m.reasons)}" for name, m in maps if m.reasons]
    lines += [
        f"uncertain cameras in {name}: {_named(part.uncertain)}"
        for name, part in maps
        if part.uncertain and not part.reasons
    ]
    given = count(len(summary.photos), "photo")
    lines.append(f"{summary.num_registered:,} of {given} registered")
    if several:
        lines[-1] += f", in {len(summary.maps)} separate maps"
        lines += [f"{name}: {_named(part.photos)}" for name, part in maps]
    lines.append(
        f"{count(summary.points, 'point')}, each seen in {summary.mean_track_length:.1f} photos on "
        f"average, mean reprojection error {summary.mean_reprojection_error_px:.2f} px"
    )
    if place := summary.georeference:
        lines.append(
            f"in metres, y is north: {place.num_agreeing} of {place.num_positions} GPS positions "
            f"agree, with errors of {place.error:.1f} m"
        )
    if summary.insignificant_pairs:
        left_out = f"{count(summary.insignificant_pairs, 'pair')} of photos left out"
        lines.append(f"{left_out}, without evidence that they show the same place")
    return lines


def seconds_line(summary: MapSummary) -> str:
    """The duration of all stages and of each; empty if they are unknown."""
    stages = ", ".join(f"{stage} {s:,.0f} s" for stage, s in summary.seconds.items())
    return f"{sum(summary.seconds.values()):,.0f} s: {stages}" if stages else ""


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def why_no_map(database: Path) -> str:
    """The reason why the mapper found no model in COLMAP's database."""
    configurations = Counter(geometry.config for _, _, geometry in verified_pairs(database))
    if not configurations:
        return (
            f"no two photos have {MIN_INLIERS} matches that agree with one camera motion better "
            "than by accident: they do not show the same scene from similar viewpoints, the wrong "
            "pairs were matched, or the camera model does not fit"
        )
    agreeing = f"{count(configurations.total(), 'pair')} of photos agree"
    if flat_configurations().issuperset(configurations):
        return (
            f"{agreeing}, but they show a plane, were taken from one spot, or are copies: a map "
            "needs a camera that moves sideways"
        )
    return (
        f"{agreeing}, but no model of {MIN_PHOTOS} photos grew from them: the camera moved too "
        "little, too few photos overlap, or the camera's parameters are wrong"
    )


def why_unregistered(database: Path, names: Iterable[str]) -> dict[str, str]:
    """Reasons by name: why a photo is in no map, if it is not registered."""
    matched = {name for first, second, _ in verified_pairs(database) for name in (first, second)}
    return {name: TOO_FEW_INLIERS if name in matched else NO_MATCHES for name in names}
