"""The mapper starts again after an unlucky first pair."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycolmap
import pytest

from d2net.mapping.mapper import run_mapper
from d2net.mapping.settings import MappingSettings, Thresholds


@dataclass
class Model:
    photos: int
    points: int

    def num_reg_images(self) -> int:
        return self.photos

    def num_points3D(self) -> int:
        return self.points

    def num_images(self) -> int:
        return self.photos


@pytest.mark.parametrize(
    ("found", "seeds", "best"),
    [
        ([[6], [10]], [7, 8], 10),  # ten photos: six are too few, ten are enough
        ([[9], [10]], [7], 9),
        ([[4], [6], [5]], [7, 8, 9], 6),  # the best of three
        ([[]], [7], None),  # no first pair: another seed has none either
    ],
)
def test_it_starts_again_while_photos_are_missing(
    found: list[list[int]],
    seeds: list[int],
    best: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    used: list[int] = []

    def mapping(database: Path, photos: Path, output: Path, options: Any, **_: Any) -> Any:
        used.append(options.random_seed)
        return {i: Model(photos, 100) for i, photos in enumerate(found[len(used) - 1])}

    monkeypatch.setattr(pycolmap, "incremental_mapping", mapping)
    monkeypatch.setattr(pycolmap.Database, "open", lambda _: nullcontext(Model(10, 0)))
    models = run_mapper(
        tmp_path / "database.db", tmp_path, Thresholds(4, 1), MappingSettings(seed=7)
    )
    assert used == seeds
    assert (models[0].num_reg_images() if models else None) == best
