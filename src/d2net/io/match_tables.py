"""The matches of two photos as a table for other programs: .npz, .csv or .json.

Points are (x, y) in pixels of the photos, the centre of the top-left pixel at (0, 0).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.io.arrays import as_numpy
from d2net.io.atomic import replacing, write_text

MATCH_TABLES = (".npz", ".csv", ".json")
_BEGINNING = re.compile(rb'PK.{28}points_a|{"points_a"|x_a,y_a,x_b,y_b', re.DOTALL)


def is_match_table(path: Path) -> bool:
    """Whether a file begins as those by `write_matches`."""
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(64)) is not None


def write_matches(path: str | os.PathLike[str], a: Features, b: Features, matches: Matches) -> None:
    """Write all matches of two photos, with the inliers marked.

    - .npz: `points_a` and `points_b` K x 2 float32, `indices` K x 2, `similarity` K, `confidence` K
      if the matcher gives it, and after verification `inliers` K, `model`, `matrix` (absent if
      none was found), `significance` and `verdict`.
    - .json: the same names, with lists for arrays and null for absent values.
    - .csv: the columns x_a, y_a, x_b, y_b, similarity, confidence if it is known, and after
      verification inlier (0 or 1).
    """
    path = Path(path)
    points_a, points_b = matches.points(a, b)
    values: dict[str, Any] = {"points_a": points_a, "points_b": points_b}
    for name in ("indices", "similarity", "confidence", "inliers"):
        tensor = getattr(matches, name)
        values[name] = None if tensor is None else as_numpy(tensor)
    for name in ("model", "matrix", "significance", "verdict"):
        values[name] = getattr(matches, name)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{n: v for n, v in values.items() if v is not None})
    elif suffix == ".json":
        lists = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}
        write_text(path, json.dumps(lists) + "\n")
    elif suffix == ".csv":
        columns = {"x_a": points_a[:, 0], "y_a": points_a[:, 1]}
        columns |= {"x_b": points_b[:, 0], "y_b": points_b[:, 1]}
        columns["similarity"] = values["similarity"]
        if matches.confidence is not None:
            columns["confidence"] = values["confidence"]
        if matches.inliers is not None:
            columns["inlier"] = values["inliers"].astype(int)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        write_text(path, "\n".join(lines) + "\n")
    else:
        raise InputError(
            f"matches can be written as {', '.join(MATCH_TABLES)}, not as {path.name!r}"
        )
