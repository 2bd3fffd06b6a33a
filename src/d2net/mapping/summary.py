"""Figures of a map, and why photos are not in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from d2net.mapping.cloud import Cloud, mean
from d2net.mapping.georeference import Georeference
from d2net.mapping.trust import MapTrust
from d2net.text import count

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
        num_points: number of the map's points that it observes.
        error: their mean reprojection error in pixels; None without points.
    """

    name: str
    reason: str = ""
    num_points: int = 0
    error: float | None = None

    @property
    def registered(self) -> bool:
        """Whether it is in a map."""
        return not self.reason


@dataclass(frozen=True)
class MapSummary:
    """Figures of the largest map of some photos, and which photos are in which map.

    Attributes:
        photos: all photos given, by name.
        num_points: number of 3D points.
        num_observations: total length of their tracks.
        mean_track_length: None without points.
        mean_error: mean reprojection error in pixels over points, as COLMAP's; None without points.
        maps: all maps, the largest first; number n is in `sparse/n`.
        num_insignificant: number of pairs left out, because their matches may agree by accident.
        seconds: duration of each stage, in order.
        settings: how the map was made, as JSON.
        georeference: the map's place on the earth; None if unknown.
    """

    photos: tuple[PhotoStatus, ...]
    num_points: int
    num_observations: int
    mean_track_length: float | None
    mean_error: float | None
    maps: tuple[MapTrust, ...] = ()
    num_insignificant: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    georeference: Georeference | None = None

    @property
    def num_registered(self) -> int:
        """Number of photos in a map."""
        return sum(photo.registered for photo in self.photos)

    @property
    def failed(self) -> tuple[PhotoStatus, ...]:
        """The photos that are in no map."""
        return tuple(photo for photo in self.photos if not photo.registered)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the package's version."""
        from d2net import __version__

        return {
            "d2net": __version__,
            "photos_given": len(self.photos),
            "photos_registered": self.num_registered,
            "points": self.num_points,
            "observations": self.num_observations,
            "mean_track_length": self.mean_track_length,
            "mean_reprojection_error_px": self.mean_error,
            "maps": [asdict(part) for part in self.maps],
            "insignificant_pairs": self.num_insignificant,
            "georeference": self.georeference and asdict(self.georeference),
            "seconds": dict(self.seconds),
            "settings": dict(self.settings),
            "photos": [
                {
                    "name": photo.name,
                    "registered": photo.registered,
                    "reason": photo.reason,
                    "points": photo.num_points,
                    "mean_reprojection_error_px": photo.error,
                }
                for photo in self.photos
            ],
        }


def summarise(
    cloud: Cloud,
    failed: Mapping[str, str] | None = None,
    *,
    others: Sequence[Cloud] = (),
    maps: Sequence[MapTrust] = (),
    num_insignificant: int = 0,
    seconds: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
    georeference: Georeference | None = None,
) -> MapSummary:
    """Figures of a map.

    Args:
        cloud: the points and photos of the largest map.
        failed: name -> reason of the photos that are in no map.
        others: the smaller maps.
        maps: the verdict on each map.
        num_insignificant: number of pairs left out.
        seconds: stage -> duration.
        settings: how the map was made.
        georeference: the map's place on the earth.
    """
    photos = {n: PhotoStatus(n, reason) for n, reason in (failed or {}).items()}
    for photo in (photo for part in (*others, cloud) for photo in part.photos):
        num_points = len(set(photo.point_rows.tolist()))
        photos[photo.name] = PhotoStatus(photo.name, "", num_points, _finite(photo.error))
    num_points, num_observations = len(cloud.points), int(cloud.track_lengths.sum())
    return MapSummary(
        photos=tuple(photos[name] for name in sorted(photos)),
        num_points=num_points,
        num_observations=num_observations,
        mean_track_length=num_observations / num_points if num_points else None,
        mean_error=_finite(mean(cloud.errors)),
        maps=tuple(maps),
        num_insignificant=num_insignificant,
        seconds=dict(seconds or {}),
        settings=dict(settings or {}),
        georeference=georeference,
    )


def text_lines(summary: MapSummary) -> list[str]:
    """The summary for a terminal."""
    lines = figure_lines(summary)
    if summary.failed:
        lines.append("not registered:")
        by_reason: dict[str, list[str]] = {}
        for photo in summary.failed:
            by_reason.setdefault(photo.reason, []).append(photo.name)
        for reason, names in by_reason.items():
            lines.append(f"  {reason}: {_named(names)}")
    if summary.seconds:
        stages = ", ".join(f"{stage} {duration(s)}" for stage, s in summary.seconds.items())
        lines.append(f"{duration(sum(summary.seconds.values()))}: {stages}")
    return lines


def figure_lines(summary: MapSummary) -> list[str]:
    """The main figures, one a line."""
    given = count(len(summary.photos), "photo")
    lines = [f"{summary.num_registered:,} of {given} registered"]
    if len(summary.maps) > 1:
        lines[0] += f", in {len(summary.maps)} separate maps"
    for number, part in enumerate(summary.maps):
        doubt = f"doubtful: {'; '.join(part.reasons)}"
        if len(summary.maps) == 1 and part.reasons:
            lines.insert(0, doubt)
        elif len(summary.maps) > 1:
            verdict = doubt if part.reasons else part.verdict
            lines.append(f"map {number}, {verdict}: {_named(part.photos)}")
    if summary.mean_track_length is None:
        lines.append("no points")
    else:
        lines.append(
            f"{count(summary.num_points, 'point')}, each seen in "
            f"{summary.mean_track_length:.1f} photos on average"
        )
    if summary.mean_error is not None:
        lines.append(f"mean reprojection error {summary.mean_error:.2f} px")
    place = summary.georeference
    if place is not None:
        lines.append(
            f"in metres, north up: {place.num_agreeing} of {place.num_positions} GPS positions "
            f"agree, with errors of {place.error:.1f} m"
        )
    if summary.num_insignificant:
        left_out = count(summary.num_insignificant, "pair")
        lines.append(f"{left_out} of photos left out, whose matches may agree by accident")
    return lines


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
