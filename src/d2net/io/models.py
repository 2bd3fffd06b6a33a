"""COLMAP's models (cameras, poses and points), read with pycolmap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.io.model_files import check_model_files

if TYPE_CHECKING:
    import pycolmap


def find_model(folder: Path) -> Path | None:
    """Where a scene keeps its model: `model`, `sparse/0`, `sparse` or the folder itself."""
    places = (folder / "model", folder / "sparse" / "0", folder / "sparse", folder)
    return next((place for place in places if is_model(place)), None)


def read_model(path: Path) -> pycolmap.Reconstruction:
    """Read the model, text or binary, in the folder `path`.

    Raises:
        InputError: it holds none.
        FormatError: the model is broken or a file of it cut.
    """
    import pycolmap

    if not is_model(path):
        raise InputError(
            f"{path} holds no COLMAP model: cameras, images and points3D as .txt or .bin"
        )
    check_model_files(path)
    try:
        return pycolmap.Reconstruction(path)
    except (ValueError, LookupError, RuntimeError, MemoryError) as error:  # its checks, or none
        reason = " ".join(str(error).split())
        raise FormatError(f"the COLMAP model {path} cannot be read: {reason}") from error


def is_model(place: Path) -> bool:
    """Whether a folder holds a model, text or binary."""
    return any((place / f"images{ending}").is_file() for ending in (".txt", ".bin"))
