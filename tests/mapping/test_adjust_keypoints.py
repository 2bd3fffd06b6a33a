"""Keypoints of a map moved along tracks: photos whose warps are known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry.homography import transfer, transfer_error
from d2net.io.colmap_database import write_database
from d2net.mapping.adjust_keypoints import adjust_map_keypoints, adjusted_uncertainty
from d2net.mapping.mapper import verify_pairs
from d2net.mapping.settings import Thresholds
from d2net.matching.refine import FIT_DEVIATION

from ..io.samples import make_features
from ..tiny import DATA

SIZE = (800, 640)
COUNT = 150
WARPS = {
    "a.png": np.eye(3),
    "b.png": np.array([[0.94, -0.3, 130.0], [0.3, 0.94, -80.0], [0, 0, 1]]),
    "c.png": np.array([[0.9, 0.2, -20.0], [-0.1, 1.1, 30.0], [2e-4, -1e-4, 1]]),
}
Made = tuple[Path, dict[str, Features]]


class _Same:
    """Row i of every photo is the same point, but for some rows of the last pair."""

    def __init__(self, count: int) -> None:
        self._count = count

    def among(self, _: object) -> list[tuple[str, str, Matches]]:
        rows = torch.arange(self._count)[:, None].expand(-1, 2).contiguous()
        return [(a, b, Matches(rows, torch.ones(len(rows)))) for a, b in combinations(WARPS, 2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A wall under three warps, and features at the same points of it, each with an error."""
    folder = tmp_path_factory.mktemp("walls")
    with Image.open(DATA / "graf1.jpg") as image:
        photo = np.asarray(image.convert("RGB"))
    chance = np.random.default_rng(0)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    points = chance.permutation(cv2.goodFeaturesToTrack(grey, 1500, 0.01, 5)[:, 0])
    edge = np.array(SIZE) - 40
    inside = [
        ((p > 40) & (p < edge)).all(axis=1) for p in (transfer(H, points) for H in WARPS.values())
    ]
    points = points[np.all(inside, axis=0)][:COUNT]
    assert len(points) == COUNT
    features = {}
    for name, H in WARPS.items():
        seen = cv2.warpPerspective(
            photo, H, SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
        )
        Image.fromarray(seen).save(folder / name)
        noisy = transfer(H, points) + chance.normal(0, 1, (COUNT, 2))
        # The last ones match nothing.
        features[name] = replace(
            make_features(COUNT + 5, image_size=SIZE),
            keypoints=torch.from_numpy(np.vstack([noisy, np.full((5, 2), 50.0)])).float(),
            uncertainty=torch.ones(COUNT + 5),
        )
    write_database(folder / "database.db", features, _Same(COUNT))
    verify_pairs(folder / "database.db", Thresholds(8, 4))
    return folder, features


def errors(a: str, b: str, features: dict[str, Features]) -> NDArray[np.float64]:
    H = WARPS[b] @ np.linalg.inv(WARPS[a])
    points = (features[name].keypoints[:COUNT].double().numpy() for name in (a, b))
    return transfer_error(H, *points)


def test_one_place_of_a_keypoint_serves_all_pairs(made: Made) -> None:
    folder, before = made
    after = adjust_map_keypoints(folder / "database.db", before, folder.joinpath)
    for a, b in combinations(WARPS, 2):
        moved = ((after[n].uncertainty < 1)[:COUNT] for n in (a, b))
        both = torch.stack(list(moved)).all(dim=0).numpy()
        assert both.mean() > 0.7
        assert np.median(errors(a, b, before)) > 1
        assert np.median(errors(a, b, after)[both]) < 0.15


def test_what_moved_is_surer_and_the_rest_is_as_it_was(made: Made) -> None:
    folder, before = made
    after = adjust_map_keypoints(folder / "database.db", before, folder.joinpath)
    for name, found in after.items():
        moved = (found.keypoints != before[name].keypoints).any(dim=1)
        assert not moved[COUNT:].any()
        assert torch.allclose(found.uncertainty[moved], torch.tensor(FIT_DEVIATION))
        assert torch.equal(found.uncertainty[~moved], before[name].uncertainty[~moved])
        assert torch.equal(found.scores, before[name].scores)
        assert adjusted_uncertainty(before[name], found) == pytest.approx(FIT_DEVIATION)
        assert adjusted_uncertainty(before[name], before[name]) == 1


def test_all_photos_move_and_none_is_the_measure(made: Made) -> None:
    folder, before = made
    after = adjust_map_keypoints(folder / "database.db", before, folder.joinpath)
    lengths = [
        float((after[n].keypoints - before[n].keypoints)[:COUNT].norm(dim=1).mean()) for n in WARPS
    ]
    assert max(lengths) < 2 * min(lengths)


def test_a_photo_of_another_size_is_reported(made: Made, tmp_path: Path) -> None:
    folder, before = made
    Image.new("RGB", (80, 60)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="80 x 60 pixels"):
        adjust_map_keypoints(folder / "database.db", before, lambda _: tmp_path / "small.png")
