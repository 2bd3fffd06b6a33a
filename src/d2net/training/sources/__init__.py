"""Sources of training pairs: reconstructions, aligned photos, single photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2net.errors import InputError
from d2net.io.colmap_model import find_model
from d2net.training.sources import colmap, megadepth, planar, stored
from d2net.training.sources.base import Mixture, Source, TrainingPair, generator

__all__ = [
    "KINDS",
    "Mixture",
    "Source",
    "TrainingPair",
    "generator",
    "kind_of",
    "open_source",
    "parse_options",
]

KINDS: dict[str, tuple[Callable[..., Source], type[Any]]] = {
    "colmap": (colmap.open_colmap, colmap.ColmapOptions),
    "rgbd": (colmap.open_colmap, colmap.ColmapOptions),
    "megadepth": (megadepth.open_megadepth, megadepth.MegadepthOptions),
    "aligned": (planar.open_aligned, planar.AlignedOptions),
    "photos": (planar.open_photos, planar.PhotosOptions),
}
"""Kind -> what opens it, as opener(path, options, crop), and its frozen dataclass of options."""


def open_source(specification: Mapping[str, Any], crop: int) -> Source:
    """Open a source of training pairs.

    Args:
        specification: `kind`, `path` and any options of that kind, as in a configuration file.
        crop: edge of the square crops in pixels, a multiple of 8.

    Raises:
        InputError: unknown kind or option, an impossible value, or nothing usable at the path.
        FormatError: what is at the path is broken.
    """
    if crop < 8 or crop % 8:
        raise InputError(f"crops must be a multiple of 8 pixels wide, not {crop}")
    values = dict(specification)
    kind, path = values.pop("kind", None), values.pop("path", None)
    options = _options(kind)
    if not isinstance(path, str | Path):
        raise InputError(f"a source of kind {kind} needs a path, not {path!r}")
    for name, value in values.items():
        default = _default(kind, name)
        if not _has_type_of(value, default):
            raise InputError(f"{name} must be {_type_name(default)}, not {value!r}")
    opener, _ = KINDS[kind]
    return opener(Path(path), options(**values), crop)


def parse_options(kind: str, texts: Iterable[str]) -> dict[str, Any]:
    """Options of a kind from `name=value` as typed on a command line.

    Raises:
        InputError: unknown kind or option, or a value of another type.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"an option is given as name=value, not {text!r}")
        default = _default(kind, name)
        try:
            values[name] = _WORDS[value] if isinstance(default, bool) else type(default)(value)
        except (KeyError, ValueError) as error:
            raise InputError(f"{name} must be {_type_name(default)}, not {value!r}") from error
    return values


def kind_of(path: Path) -> str:
    """What kind of source lies at a path, by its files.

    Raises:
        InputError: there is no such folder.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    if find_model(path) is not None:
        return "colmap"
    if any(map(stored.is_stored, sorted(path.glob("*.h5"))[:1])):
        return "megadepth"
    return "aligned" if planar.is_aligned(path) else "photos"


_WORDS = {"true": True, "false": False}


def _options(kind: object) -> type[Any]:
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"a source of pairs has a kind, {', '.join(KINDS)}, and not {kind!r}")
    return KINDS[kind][1]


def _default(kind: object, name: str) -> bool | int | float | str:
    """The default of an option, which also says its type."""
    known: dict[str, Any] = {field.name: field.default for field in fields(_options(kind))}
    if name not in known:
        raise InputError(
            f"{name!r} is no option of a source of kind {kind}; known are {', '.join(known)}"
        )
    default: bool | int | float | str = known[name]
    return default


def _has_type_of(value: object, default: object) -> bool:
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def _type_name(default: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names[type(default)]
