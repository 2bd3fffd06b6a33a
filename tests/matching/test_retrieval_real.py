"""Retrieval on real scenes, against the photos that share points of a model made with SIFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from d2net import D2Net, find_images
from d2net.io.colmap_model import read_model
from d2net.matching.pair_selection import shared_points
from d2net.matching.retrieval import GlobalDescriptors

K = 5
SCENE, OTHERS = "south_building", ("lund_door", "sceaux_castle")


@pytest.mark.slow
@pytest.mark.shared
def test_photos_that_share_points_are_found_among_other_buildings(shared: Path) -> None:
    scenes = shared / "data" / "train"
    model = D2Net.from_pretrained("ots", max_edge=320, max_keypoints=1000)
    features = {
        f"{scene}/{photo.name}": model.extract(photo.path)
        for scene in (SCENE, *OTHERS)
        for photo in find_images([scenes / scene / "images"])[::2]
    }
    found = GlobalDescriptors.build(features).neighbours(K)
    names, counts = shared_points(read_model(scenes / SCENE / "sparse"))
    recalls, own = [], []
    for name, row in zip(names[::2], counts[::2, ::2], strict=True):
        together = {f"{SCENE}/{names[2 * j]}" for j in np.flatnonzero(row >= 15)}
        hits = {other for other, _ in found[f"{SCENE}/{name}"]}
        recalls.append(len(hits & together) / min(K, len(together)))
        own.append(np.mean([hit.startswith(SCENE) for hit in hits]))
    assert np.mean(own) > 0.98
    assert np.mean(recalls) > 0.8
