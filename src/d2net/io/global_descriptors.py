"""One vector per photo, in the HDF5 layout of hloc: a group per photo with `global_descriptor`.

The codebook of the vectors is an attribute of the file, not an entry.

Source: https://github.com/cvg/Hierarchical-Localization, hloc/extract_features.py and
pairs_from_retrieval.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d2net.errors import FormatError
from d2net.io.arrays import Array, read_floats
from d2net.io.atomic import replacing
from d2net.io.resumable_h5 import H5File, Record, check_name, write_h5_file

_CODEBOOK = "codebook"


class GlobalDescriptorFile(H5File):
    """The global descriptors of many photos."""

    marker = "global_descriptor"
    contents = "global descriptors"

    def read(self) -> tuple[tuple[str, ...], Array]:
        """The photos, sorted by name, and their vectors, N x D float16 or float32."""
        names = self.entries()
        vectors = [
            read_floats(
                self.read_record(name).arrays, self.marker, ("D",), f"{self.path}, photo {name!r}"
            )
            for name in names
        ]
        lengths = {len(vector) for vector in vectors}
        if len(lengths) > 1:
            raise FormatError(
                f"{self.path}: the global descriptors have different lengths "
                f"({min(lengths)} and {max(lengths)}); make the file again."
            )
        return names, np.stack(vectors) if vectors else np.empty((0, 0), np.float32)

    def read_codebook(self) -> Array:
        """The codebook, K x D float32; FormatError if another program wrote the file."""
        with self._format_errors():
            stored = {k: v for k, v in self._file.attrs.items() if isinstance(v, np.ndarray)}
        return read_floats(stored, _CODEBOOK, ("K", "D"), str(self.path))


def write_global_descriptors(
    path: Path, vectors: Mapping[str, Array], codebook: Array, settings: Mapping[str, Any]
) -> None:
    """Write the vectors of photos, and the K x D codebook that they are made with."""
    records = (
        (check_name(name), Record({GlobalDescriptorFile.marker: vectors[name]}))
        for name in sorted(vectors)
    )
    with replacing(path) as temporary:
        write_h5_file(temporary, dict(settings), records, {_CODEBOOK: codebook})
