"""Settings: frozen dataclasses that check themselves and are saved with every result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from types import UnionType
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from typing_extensions import Unpack

from d2net.errors import InputError

S = TypeVar("S", bound="Settings")

DescriptorType = Literal["plain", "root", "fused", "whitened", "light", "combined"]
Precision = Literal["float32", "bfloat16", "float16"]
Mapper = Literal["incremental", "global"]
CameraMode = Literal["auto", "single", "per-folder", "per-image"]

_DEFAULT_BUDGET: Any = object()
"""Stands for the default of `max_keypoints` until it is known whether `original` is set."""

_RELEASE = {"descriptor": "plain", "turns": 1, "stretch": False}  # all that `original` allows


@dataclass(frozen=True)
class Settings:
    """Base of all settings: unknown names, wrong types and unknown choices are InputErrors.

    Types are read from the annotations of the fields.
    """

    def __post_init__(self) -> None:
        hints = type_hints(type(self))
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), hints[item.name])

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any]) -> S:
        """Settings from names and values; an unknown name is an InputError."""
        return cls().updated(**values)

    def updated(self: S, **changes: Any) -> S:  # noqa: ANN401 (any field's type)
        """A copy with some settings changed; an unknown name is an InputError."""
        known = [item.name for item in fields(self)]
        for name in changes:
            if name not in known:
                raise InputError(f"unknown setting {name!r}; known are {', '.join(known)}")
        lists = {name: tuple(value) for name, value in changes.items() if isinstance(value, list)}
        return replace(self, **{**changes, **lists})

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as saved with results."""
        return asdict(self)

    def check_least(self, least: float, *names: str) -> None:
        """Raise an InputError if one of these settings is below `least`; None is not."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise InputError(f"{name} must be at least {least}, not {value}")


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Settings as typed on a command line: `name=value`, or `name` for True.

    Values are read as true, false, none or numbers; all others are text.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            plain = json.loads({"none": "null"}.get(value.lower(), value.lower()))
        except ValueError:
            plain = value
        settings[name.strip()] = plain if equals else True
    return settings


def _check_type(name: str, value: object, hint: Any) -> None:  # noqa: ANN401 (a type)
    """Refuse a value that its annotation excludes.

    Plain types, Literals, and lists and tables of them are checked.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (tuple, Sequence, Mapping):
        expected = (Mapping, "a table") if origin is Mapping else (list | tuple, "a list")
        if not isinstance(value, expected[0]):
            raise InputError(f"{name} must be {expected[1]}, not {value!r}")
        if origin is tuple and ... not in arguments and len(value) != len(arguments):
            raise InputError(f"{name} must have {len(arguments)} values, not {len(value)}")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_type(f"each value of {name}", item, arguments[origin is Mapping])
        return
    options = arguments if origin in (UnionType, Union) else (hint,)
    choices = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    plain = tuple(option for option in options if option in (bool, int, float, str, type(None)))
    if len(plain) + sum(get_origin(option) is Literal for option in options) < len(options):
        return
    accepted = isinstance(value, (*plain, int) if float in plain else plain) or value in choices
    if isinstance(value, bool):  # an int to Python
        accepted = bool in plain
    if not accepted:
        names = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        words = [*map(str, choices), *(names[p] for p in plain if p is not type(None))]
        if type(None) in plain and not choices:
            words.append("None")
        raise InputError(f"{name} must be {' or '.join(words)}, not {value!r}")


class ExtractionOptions(TypedDict, total=False):
    """The fields of `ExtractionSettings` as keyword arguments; see there for what they mean."""

    original: bool
    descriptor: DescriptorType | None
    multiscale: bool
    turns: int
    max_edge: int | None
    max_sum_edges: int | None
    max_keypoints: int | None
    score_threshold: float
    upright: bool
    stretch: bool
    precision: Precision


@dataclass(frozen=True)
class ExtractionSettings(Settings):
    """How features are extracted."""

    original: bool = False
    """Reproduce the 2019 release, faults included. Otherwise use the corrected default."""

    descriptor: DescriptorType | None = None
    """How keypoints are described: plain (D2-Net's), root (its square root), fused (deep and
    shallow map), whitened (deep and shallow map with context, reduced to 384 numbers; only for
    weights that have learned the whitening), light (of the network light) or combined (light and a
    VGG). None: the network's default."""

    multiscale: bool = False
    """Detect on a pyramid of 0.5, 1 and 2 times the photo (D2-Net, section 4.2)."""

    turns: int = 1
    """Extract this many copies of the photo, rotated by equal parts of a circle, and keep the
    keypoints of all copies. Only one photo of a pair needs this."""

    max_edge: int | None = 1600
    """Longest edge in pixels, None for no limit. `max_sum_edges` also reduces photos."""

    max_sum_edges: int | None = 2800
    """Largest sum of both edges in pixels; larger photos are reduced. None: no limit."""

    max_keypoints: int | None = _DEFAULT_BUDGET
    """Keep this many keypoints of each turn, those with the highest scores. None: all. Default:
    4096, and all with `original`."""

    score_threshold: float = 0.0
    """Keep keypoints with at least this score."""

    upright: bool = True
    """Rotate the photo as its EXIF orientation says; otherwise use it as stored."""

    stretch: bool = False
    """Stretch the contrast of each photo, so that its darkest and brightest 0.1 % become black and
    white. Useful for photos that use a small part of their range: 12 bits in 16, thermal."""

    precision: Precision = "float32"
    """Precision of the network: float32, bfloat16, or float16 (GPU). Detection runs in float32."""

    def __post_init__(self) -> None:
        if self.max_keypoints is _DEFAULT_BUDGET:
            object.__setattr__(self, "max_keypoints", None if self.original else 4096)
        super().__post_init__()
        self.check_least(1, "max_edge", "max_sum_edges", "max_keypoints", "turns")
        self.check_least(0, "score_threshold")
        for name, of_release in _RELEASE.items():
            if self.original and getattr(self, name) not in (None, of_release):
                raise InputError(
                    f"original reproduces the 2019 release, whose {name} is {of_release!r}, not "
                    f"{getattr(self, name)!r}: leave out original or {name}"
                )

    def updated(self, **changes: Unpack[ExtractionOptions]) -> ExtractionSettings:  # type: ignore[override]
        """A copy with some settings changed; an unknown name is an InputError.

        `original=True` also resets descriptor, turns, stretch and max_keypoints to those of the
        release, unless `changes` names them.
        """
        release = {**_RELEASE, "max_keypoints": None} if changes.get("original") else {}
        return super().updated(**{**release, **changes})
