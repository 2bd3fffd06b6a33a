"""Tiles give the untiled result, none lost or doubled at seams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2net.extraction import pyramid
from d2net.extraction.keypoints import Keypoints, find_keypoints
from d2net.extraction.tiling import MARGIN, tiles
from d2net.networks.catalogue import CAFFE
from d2net.networks.vgg import VGG, WHITENING_INPUTS, Whitening
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import load_network
from d2net.settings import ExtractionSettings

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@settings(max_examples=80, deadline=None)
@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    limit=st.integers(400, 40_000),
    multiscale=st.booleans(),
    original=st.booleans(),
)
def test_every_cell_has_one_owner(
    width: int, height: int, limit: int, multiscale: bool, original: bool
) -> None:
    factors = pyramid.PYRAMID if multiscale else (1.0,)
    levels = pyramid.levels((width, height), factors, VGG.grid, original=original)
    owners = [np.zeros(level.cells, dtype=int) for level in levels]
    for tile in tiles((width, height), levels, limit):
        for level, window, count in zip(levels, tile, owners, strict=True):
            count[window.rows.start : window.rows.stop, window.cols.start : window.cols.stop] += 1
            grown = window.grown(MARGIN, level.cells)
            smallest = (2 * MARGIN + 3) ** 2
            assert len(grown.rows) * len(grown.cols) <= max(limit * 1.3, smallest)
    assert all((count == 1).all() for count in owners)


@pytest.fixture(scope="module")
def vgg() -> VGG:
    backbone = VGGBackbone()
    backbone.load_state_dict(load_network("ots")[0].backbone.state_dict())
    whitening = Whitening(torch.eye(WHITENING_INPUTS)[-384:], torch.zeros(384))
    return VGG(backbone, CAFFE, whitening)


def find(network: VGG, photo: np.ndarray, limit: int, **options: Any) -> Keypoints:
    chosen = network.resolve(ExtractionSettings(**options))
    tensor = torch.from_numpy(photo.copy())[None]
    with torch.no_grad():
        return find_keypoints(network, tensor, chosen, cells_per_tile=limit)[0]


@pytest.mark.parametrize(
    ("multiscale", "kind"),
    [
        (True, {"original": True}),
        (True, {"descriptor": "whitened"}),
        (False, {"descriptor": "plain"}),
    ],
    ids=["original", "whitened", "plain"],
)
def test_tiles_equal_the_whole(vgg: VGG, multiscale: bool, kind: dict[str, Any]) -> None:
    photo = np.asarray(Image.open(PHOTO))[150:347, 200:461]
    whole = find(vgg, photo, 10**9, multiscale=multiscale, **kind)
    limit = 5_000 if multiscale else 1_500
    tiled = find(vgg, photo, limit, multiscale=multiscale, **kind)
    assert len(whole.positions) > 200
    assert torch.equal(whole.ranks, tiled.ranks)
    assert float((whole.positions - tiled.positions).abs().max()) < 1e-3
    torch.testing.assert_close(whole.scores, tiled.scores, rtol=1e-4, atol=0)
    cosine = (whole.descriptors * tiled.descriptors).sum(dim=1)
    assert float(cosine.min()) > 0.99999
