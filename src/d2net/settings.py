"""Settings: frozen, complete, saved with every result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from d2net.errors import InputError

S = TypeVar("S", bound="Settings")

_CHOICES = {
    "keypoints": ("deep", "corner", "both"),
    "descriptor": ("plain", "root", "fused", "whitened"),
    "precision": ("float32", "bfloat16", "float16"),
}
_OF_THE_RELEASE = {"keypoints": "deep", "descriptor": "plain", "turns": 1}
_IMPLIED_BY_ORIGINAL = {**_OF_THE_RELEASE, "max_keypoints": None}


@dataclass(frozen=True)
class Settings:
    """What all settings can do. Unknown names are errors; so are impossible values, by subclass."""

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Settings from names and values; an unknown name is an InputError."""
        return cls().updated(**values)

    def updated(self: S, **changes: Any) -> S:  # noqa: ANN401 (any field's type)
        """The same settings with some changed; an unknown name is an InputError."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"unknown setting {name!r}; known are {', '.join(known)}")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as saved with results."""
        return asdict(self)


@dataclass(frozen=True)
class ExtractionSettings(Settings):
    """How features are extracted."""

    original: bool = False
    """Reproduce the 2019 release, faults included; otherwise the corrected default."""

    keypoints: str = "both"
    """Who proposes keypoints: deep (D2-Net's, from the deep map), corner (from the grey photo, to a
    fraction of a pixel) or both."""

    descriptor: str | None = None
    """What describes them: plain (D2-Net's), root (its square root), fused (that beside the root
    of a shallower map) or whitened (these and what is around, in 384 numbers, for weights that
    have learned it). None: whitened where the weights have, else fused."""

    multiscale: bool = False
    """Detect on a pyramid of 0.5, 1 and 2 times the photo (D2-Net, section 4.2)."""

    turns: int = 1
    """Also extract the photo turned: in so many turns, by equal parts of a circle. Only one photo
    of a pair needs it."""

    max_edge: int | None = 1600
    """Longest edge in pixels; larger photos are reduced. None: no limit."""

    max_sum_edges: int | None = 2800
    """Largest sum of both edges in pixels; larger photos are reduced. None: no limit."""

    max_keypoints: int | None = 4096
    """Keep this many of each turn, those with the highest scores; of both kinds, half each. None:
    all."""

    score_threshold: float = 0.0
    """Keep keypoints with at least this score."""

    upright: bool = True
    """Turn the photo as its EXIF orientation says; otherwise use it as stored."""

    precision: str = "float32"
    """Of the network: float32, bfloat16, or float16 (GPU). Detection is always float32."""

    def __post_init__(self) -> None:
        for name in ("max_edge", "max_sum_edges", "max_keypoints"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(
                    f"{name} must be a whole number of at least 1 or None, not {value!r}"
                )
        if not isinstance(self.turns, int) or self.turns < 1:
            raise InputError(f"turns must be a whole number of at least 1, not {self.turns!r}")
        if not self.score_threshold >= 0:
            raise InputError(f"score_threshold must be 0 or more, not {self.score_threshold!r}")
        for name, known in _CHOICES.items():
            free = name == "descriptor" and self.descriptor is None
            if getattr(self, name) not in known and not free:
                words = f"{', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"{name} must be {words}, not {getattr(self, name)!r}")
        for name, value in _OF_THE_RELEASE.items():
            if self.original and getattr(self, name) != value:
                raise InputError(
                    f"original reproduces the 2019 release, whose {name} setting is {value!r}, not "
                    f"{getattr(self, name)!r}; leave one of the two out"
                )

    def updated(self, **changes: Any) -> ExtractionSettings:  # noqa: ANN401 (any field's type)
        """The same settings with some changed; an unknown name is an InputError.

        `original=True` brings the release's keypoints, all of them, its descriptors and one turn
        with it.
        """
        implied = _IMPLIED_BY_ORIGINAL if changes.get("original") else {}
        return super().updated(**{**implied, **changes})
