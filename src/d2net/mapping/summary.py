"""What came out of mapping, in figures and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from d2net.mapping.cloud import mean, read_cloud

if TYPE_CHECKING:
    import pycolmap

NO_FEATURES = "no features"
NO_MATCHES = "no verified matches with any photo"
TOO_FEW_INLIERS = "too few inliers to a model"

_NAMED = 8  # photos that the terminal names for each reason; the files name all


def in_another_model(photos: int) -> str:
    """The reason of a photo that belongs to a smaller model of so many photos."""
    return f"in another model with {count(photos, 'photo')}"


@dataclass(frozen=True)
class PhotoStatus:
    """What became of one photo.

    Attributes:
        name: of the photo, relative to the photos' folder.
        reason: why it is not in the map, as `NO_FEATURES`; empty if it is.
        num_points: how many of the map's points it sees.
        error: mean reprojection error of these in pixels; None without points.
    """

    name: str
    reason: str = ""
    num_points: int = 0
    error: float | None = None

    @property
    def registered(self) -> bool:
        """Whether it is in the map."""
        return not self.reason


@dataclass(frozen=True)
class MapSummary:
    """What came out of mapping, in figures.

    Attributes:
        photos: all photos given, by name.
        num_points: points of the map.
        num_observations: how often a photo of the map sees a point.
        mean_track_length: in how many photos a point is seen; None without points.
        mean_error: mean reprojection error in pixels, over points (as COLMAP's); None without.
        models: numbers of photos of all models found, largest first; the map is one of them.
        seconds: by stage, in order.
        settings: how the map was made, as JSON.
    """

    photos: tuple[PhotoStatus, ...]
    num_points: int
    num_observations: int
    mean_track_length: float | None
    mean_error: float | None
    models: tuple[int, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_registered(self) -> int:
        """How many photos are in the map."""
        return sum(photo.registered for photo in self.photos)

    @property
    def failed(self) -> tuple[PhotoStatus, ...]:
        """The photos that are not in the map."""
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
            "models": list(self.models),
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
    reconstruction: pycolmap.Reconstruction,
    failed: Mapping[str, str] | None = None,
    *,
    models: Sequence[int] = (),
    seconds: Mapping[str, float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> MapSummary:
    """Figures of a map.

    Args:
        reconstruction: the map. Its errors are measured anew and it is left as it is.
        failed: name -> reason of the photos that are not in the map.
        models: numbers of photos of all models found; only the map's if not given.
        seconds: stage -> time that it took.
        settings: how the map was made.
    """
    cloud = read_cloud(reconstruction)
    photos = [
        PhotoStatus(view.name, "", len(set(view.points.tolist())), _finite(view.error))
        for view in cloud.views
    ]
    inside = {photo.name for photo in photos}
    photos += [PhotoStatus(n, why) for n, why in (failed or {}).items() if n not in inside]
    number = len(cloud.points)
    return MapSummary(
        photos=tuple(sorted(photos, key=lambda photo: photo.name)),
        num_points=number,
        num_observations=cloud.num_observations,
        mean_track_length=cloud.num_observations / number if number else None,
        mean_error=_finite(mean(cloud.errors)),
        models=tuple(sorted(models or [len(inside)], reverse=True)),
        seconds=dict(seconds or {}),
        settings=dict(settings or {}),
    )


def text_lines(summary: MapSummary) -> list[str]:
    """The summary for a terminal, the important first."""
    lines = figure_lines(summary)
    if summary.failed:
        lines.append("not registered:")
        lines += [f"  {why}: {_listed(names)}" for why, names in _by_reason(summary).items()]
    if summary.seconds:
        stages = ", ".join(f"{stage} {duration(s)}" for stage, s in summary.seconds.items())
        lines.append(f"{duration(sum(summary.seconds.values()))}: {stages}")
    return lines


def figure_lines(summary: MapSummary) -> list[str]:
    """The figures that everybody wants, a line each."""
    given = count(len(summary.photos), "photo")
    lines = [f"{summary.num_registered:,} of {given} registered"]
    if summary.mean_track_length is None:
        lines.append("no points")
    else:
        lines.append(
            f"{count(summary.num_points, 'point')}, each seen in "
            f"{summary.mean_track_length:.1f} photos on average"
        )
    if summary.mean_error is not None:
        lines.append(f"mean reprojection error {summary.mean_error:.2f} px")
    if len(summary.models) > 1:
        *first, last = (f"{size:,}" for size in summary.models)
        sizes = f"{', '.join(first)} and {last}"
        lines.append(f"the photos fall into {len(summary.models)} models, of {sizes} photos")
    return lines


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it must be."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def duration(seconds: float) -> str:
    """A time in the units that a person would say."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _by_reason(summary: MapSummary) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for photo in summary.failed:
        reasons.setdefault(photo.reason, []).append(photo.name)
    return reasons


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
