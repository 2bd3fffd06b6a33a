"""Sources of training pairs: reconstructions, aligned photos, single photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2net.errors import InputError
from d2net.io.colmap_model import find_model
from d2net.training.sources import colmap, megadepth, planar
from d2net.training.sources.base import Source, SourceOptions, TrainingPair, pair_generator

__all__ = [
    "KINDS",
    "Source",
    "SourceOptions",
    "TrainingPair",
    "detect_kind",
    "open_source",
    "pair_generator",
    "parse_options",
]

KINDS: dict[str, tuple[Callable[..., Source], type[SourceOptions]]] = {
    "colmap": (colmap.open_colmap, colmap.ColmapOptions),
    "rgbd": (colmap.open_colmap, colmap.ColmapOptions),
    "megadepth": (megadepth.open_megadepth, megadepth.MegadepthOptions),
    "aligned": (planar.open_aligned, planar.AlignedOptions),
    "photos": (planar.open_photos, planar.PhotosOptions),
}
"""For each kind of source its opener, called as opener(path, options, crop), and its options."""


def open_source(kind: str, path: Path, crop: int, options: Mapping[str, Any]) -> Source:
    """Open a source of training pairs.

    Args:
        kind: one of `KINDS`.
        path: folder or file of the source.
        crop: edge of the square crops in pixels, a multiple of 8.
        options: options of the kind by name.

    Raises:
        InputError: unknown kind or option, an impossible value, or nothing usable at the path.
        FormatError: the data at the path are broken.
    """
    if crop < 8 or crop % 8:
        raise InputError(f"crop must be a multiple of 8 pixels, not {crop}")
    opener, options_type = _kind(kind)
    return opener(path, options_type.from_dict(options), crop)


def parse_options(kind: str, texts: Iterable[str]) -> dict[str, Any]:
    """Parse options of a kind of source from `name=value` as typed on a command line.

    Raises:
        InputError: unknown kind or option, or a value of another type.
    """
    defaults: dict[str, Any] = {item.name: item.default for item in fields(_kind(kind)[1])}
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"an option must be given as name=value, not {text!r}")
        if name not in defaults:
            raise InputError(
                f"a source of kind {kind} has no option {name!r}; known are {', '.join(defaults)}"
            )
        option_type = type(defaults[name])
        try:
            options[name] = _BOOLEANS[value] if option_type is bool else option_type(value)
        except (KeyError, ValueError) as error:
            raise InputError(f"{name} must be {_TYPE_NAMES[option_type]}, not {value!r}") from error
    return options


_BOOLEANS = {"true": True, "false": False}
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


def _kind(kind: str) -> tuple[Callable[..., Source], type[SourceOptions]]:
    if kind not in KINDS:
        raise InputError(f"the kind of a source must be one of {', '.join(KINDS)}, not {kind!r}")
    return KINDS[kind]


def detect_kind(path: Path) -> str:
    """The kind of the source at a path, judged by its files.

    Raises:
        InputError: there is no such folder.
    """
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    if find_model(path) is not None:
        return "colmap"
    if any(map(megadepth.is_stored_scene, sorted(path.glob("*.h5"))[:1])):
        return "megadepth"
    return "aligned" if planar.is_aligned(path) else "photos"
