"""Sources of training pairs: reconstructions, aligned photos, single photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2net.errors import InputError
from d2net.training.sources import colmap, planar
from d2net.training.sources.base import Mixture, Source, TrainingPair, generator

__all__ = ["KINDS", "Mixture", "Source", "TrainingPair", "generator", "open_source"]

KINDS: dict[str, tuple[Callable[..., Source], type[Any]]] = {
    "photos": (planar.open_photos, planar.PhotosOptions),
    "aligned": (planar.open_aligned, planar.AlignedOptions),
    "colmap": (colmap.open_colmap, colmap.ColmapOptions),
}
"""Kind -> what opens it, as opener(path, options, crop), and its frozen dataclass of options."""


def open_source(specification: Mapping[str, Any], crop: int) -> Source:
    """Open a source of training pairs.

    Args:
        specification: `kind`, `path` and any options of that kind, as in a configuration file.
        crop: edge of the square crops in pixels, a multiple of 8.

    Raises:
        InputError: unknown kind or option, or nothing usable at the path.
    """
    if crop < 8 or crop % 8:
        raise InputError(f"crops must be a multiple of 8 pixels wide, not {crop}")
    values = dict(specification)
    kind, path = values.pop("kind", None), values.pop("path", None)
    if kind not in KINDS:
        raise InputError(f"a source of pairs has a kind, {', '.join(KINDS)}, and not {kind!r}")
    if path is None:
        raise InputError(f"a source of kind {kind} needs a path")
    opener, options = KINDS[kind]
    known = [field.name for field in fields(options)]
    for name in values:
        if name not in known:
            raise InputError(
                f"{name!r} is no option of a source of kind {kind}; known are {', '.join(known)}"
            )
    return opener(Path(path), options(**values), crop)
