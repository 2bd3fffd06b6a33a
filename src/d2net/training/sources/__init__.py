"""Sources of training pairs: reconstructions, aligned photos, single photos."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from d2net.errors import InputError
from d2net.io.colmap_model import find_model
from d2net.training.sources import colmap, megadepth, planar
from d2net.training.sources.base import Source, SourceOptions
from d2net.training.sources.scenes import SceneOptions

KINDS: dict[str, tuple[Callable[..., Source], type[SourceOptions]]] = {
    "colmap": (colmap.open_colmap, colmap.ColmapOptions),
    "rgbd": (colmap.open_colmap, colmap.ColmapOptions),
    "megadepth": (megadepth.open_megadepth, SceneOptions),
    "aligned": (planar.open_aligned, planar.AlignedOptions),
    "photos": (planar.open_photos, planar.PhotosOptions),
}
"""For each kind of source its opener, called as opener(path, options, crop), and its options."""


def open_source(kind: str, path: Path, crop: int, options: Mapping[str, Any]) -> Source:
    """Open a source of training pairs, with square crops of `crop` pixels, a multiple of 8."""
    if kind not in KINDS:
        raise InputError(f"the kind of a source must be one of {', '.join(KINDS)}, not {kind!r}")
    if crop < 8 or crop % 8:
        raise InputError(f"crop must be a multiple of 8 pixels, not {crop}")
    opener, options_type = KINDS[kind]
    return opener(path, options_type.from_dict(options), crop)


def detect_kind(path: Path) -> str:
    """The kind of the source at a path, judged by its files."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}")
    if find_model(path) is not None:
        return "colmap"
    if any(map(megadepth.is_stored_scene, sorted(path.glob("*.h5"))[:1])):
        return "megadepth"
    if not planar.is_aligned(path):
        return "photos"
    if not planar.has_list(path):
        logging.getLogger(__name__).warning(
            "photos of equal names in subfolders of %s are taken as aligned: if not, rename them",
            path,
        )
    return "aligned"
