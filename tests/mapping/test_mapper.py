"""Which pairs are mapped, and how."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pycolmap
import pytest
import torch

from d2net.features import Matches
from d2net.io.h5 import MatchFile
from d2net.mapping import mapper
from d2net.mapping.mapper import SignificantPairs, run_mapper
from d2net.mapping.settings import MappingSettings, Thresholds
from d2net.matching import match

from .made import camera, seen


@dataclass
class Model:
    photos: range
    points: int

    @property
    def images(self) -> dict[int, Any]:
        return {i: SimpleNamespace(name=str(i), has_pose=True) for i in self.photos}

    def num_reg_images(self) -> int:
        return len(self.photos)

    def num_points3D(self) -> int:
        return self.points


@pytest.mark.parametrize(
    ("connected", "found", "seeds", "best"),
    [
        (10, [[6], [10]], [7, 8], 10),  # ten photos: six are too few, ten are enough
        (10, [[9], [10]], [7], 9),
        (6, [[6, 4]], [7], 6),  # two places
        (10, [[4], [6], [5]], [7, 8, 9], 6),  # the best of three
        (10, [[]], [7], None),  # no first pair: another seed has none either
        (100, [[60]], [7], 60),  # once, because it takes minutes
    ],
)
def test_it_starts_again_while_photos_are_missing(
    connected: int,
    found: list[list[int]],
    seeds: list[int],
    best: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    used: list[int] = []

    def mapping(database: Path, photos: Path, output: Path, options: Any, **_: Any) -> Any:
        used.append(options.random_seed)
        ends = [0, *accumulate(found[len(used) - 1])]
        return {a: Model(range(a, b), 100) for a, b in pairwise(ends)}

    monkeypatch.setattr(pycolmap, "incremental_mapping", mapping)
    chain = [(str(i), str(i + 1), None) for i in range(connected - 1)]
    chain.append(("left out", "0", None))
    monkeypatch.setattr(mapper, "verified_pairs", lambda _: chain)
    names = [str(i) for i in range(connected)]
    models = run_mapper(
        tmp_path / "database.db",
        tmp_path / "new",
        MappingSettings(seed=7),
        names,
        limits=Thresholds(4, 1),
    )
    assert used == seeds
    assert (models[0].num_reg_images() if models else None) == best


def test_a_model_of_photos_that_are_in_a_larger_one_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [range(8, 11), range(9), range(2, 5), range(7, 9)]
    models = {i: Model(photos, 100) for i, photos in enumerate(found)}
    monkeypatch.setattr(pycolmap, "incremental_mapping", lambda *_, **__: models)
    monkeypatch.setattr(mapper, "verified_pairs", lambda _: [])
    kept = run_mapper(
        tmp_path / "database.db", tmp_path / "new", MappingSettings(), [], limits=Thresholds(4, 1)
    )
    assert [cast("Model", model).photos for model in kept] == [range(9), range(8, 11)]


def test_pairs_that_agree_by_accident_are_left_out() -> None:
    generator = torch.Generator().manual_seed(0)
    foreign = replace(
        seen(camera(0)), keypoints=torch.rand(len(seen(camera(0))), 2, generator=generator) * 480
    )
    photos = {"a": seen(camera(-0.5)), "b": seen(camera(0)), "foreign": foreign}
    pairs = {("a", "b"): match(photos["a"], photos["b"])}
    rows = torch.randperm(len(foreign), generator=generator)
    pairs["b", "foreign"] = Matches(
        torch.stack([torch.arange(len(foreign)), rows], 1), torch.ones(len(foreign))
    )

    class Stored:
        def among(
            self, _: object, selected: Collection[frozenset[str]]
        ) -> list[tuple[str, str, Matches]]:
            return [(*names, m) for names, m in pairs.items() if frozenset(names) in selected]

    significant = SignificantPairs(cast("MatchFile", Stored()), photos, pairs)
    assert [names for *names, _ in significant.among({})] == [["a", "b"]]
    assert significant.num_left_out == 1
    selected = SignificantPairs(cast("MatchFile", Stored()), photos, [("foreign", "b")])
    assert not list(selected.among({}))
