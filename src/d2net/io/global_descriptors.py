"""One vector per photo, in the HDF5 layout of hloc: a group per photo with `global_descriptor`.

The codebook that the vectors were made with, and a projection if there is one, are attributes of
the file, where programs that look for photos do not find them.

Source: https://github.com/cvg/Hierarchical-Localization, hloc/extract_features.py and
pairs_from_retrieval.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d2net.errors import FormatError
from d2net.io.arrays import Array, floats
from d2net.io.atomic import replacing
from d2net.io.container import Container, check_name, write_container
from d2net.io.journal import Record

_CODEBOOK = "codebook"
_AXES, _OFFSET = "projection", "projection_offset"


class GlobalDescriptorFile(Container):
    """The global descriptors of many photos."""

    marker = "global_descriptor"
    holds = "global descriptors"

    def read(self) -> tuple[tuple[str, ...], Array]:
        """The photos, sorted by name, and their vectors, N x D float16 or float32.

        Raises:
            FormatError: the file is damaged, holds none, or vectors of different lengths.
        """
        names = self.entries()
        vectors = [self._vector(name) for name in names]
        lengths = {len(vector) for vector in vectors}
        if len(lengths) > 1:
            raise FormatError(
                f"{self.path}: the global descriptors have different lengths "
                f"({min(lengths)} and {max(lengths)}); write it anew."
            )
        return names, np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def read_codebook(self) -> Array:
        """The codebook, K x D float32.

        Raises:
            FormatError: the file is damaged or has none, as those of other programs.
        """
        return floats(self._stored(), _CODEBOOK, ("K", "D"), str(self.path))

    def read_projection(self) -> tuple[Array, Array] | None:
        """What the vectors were made short with: axes D x D' and offset D', float32; or None.

        Raises:
            FormatError: the file is damaged.
        """
        stored = self._stored()
        if _AXES not in stored:
            return None
        axes = floats(stored, _AXES, ("D", "D'"), str(self.path)).astype(np.float32)
        return axes, floats(stored, _OFFSET, (axes.shape[1],), str(self.path))

    def _stored(self) -> dict[str, Array]:
        with self._damage():
            return {k: v for k, v in self._file.attrs.items() if isinstance(v, np.ndarray)}

    def _vector(self, name: str) -> Array:
        return floats(
            self.read_record(name).arrays, self.marker, ("D",), f"{self.path}, photo {name!r}"
        )


def write_global_descriptors(
    path: str | Path,
    vectors: Mapping[str, Array],
    codebook: Array,
    settings: Mapping[str, Any],
    projection: tuple[Array, Array] | None = None,
) -> None:
    """Write the file, replacing an old one.

    Args:
        path: the file; its folder must exist.
        vectors: D each, by photo.
        codebook: K x D', what they were made with.
        settings: how they were made, JSON types.
        projection: what they were made short with, axes D x D' (stored in half precision) and
            offset D'.

    Raises:
        InputError: a name cannot name a photo.
        OutputBusyError: another process writes this file.
        OutputError: it cannot be written.
    """
    path = Path(path)
    records = (
        (check_name(name), Record({GlobalDescriptorFile.marker: vectors[name]}))
        for name in sorted(vectors)
    )
    attributes = {_CODEBOOK: codebook}
    if projection is not None:
        attributes |= {_AXES: projection[0].astype(np.float16), _OFFSET: projection[1]}
    with replacing(path) as temporary:
        write_container(temporary, dict(settings), records, attributes)
