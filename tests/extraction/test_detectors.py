"""Detectors and descriptor types, as settings of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2net import D2Net, ExtractionSettings, InputError, match
from d2net.extraction.corners import BORDER, detect_corners, to_grey
from d2net.extraction.keypoints import Keypoints
from d2net.extraction.selection import NEAR_DUPLICATE, select_best
from d2net.extraction.suppression import has_neighbour

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def model() -> D2Net:
    return D2Net.from_pretrained("ots")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO))[100:340, 200:520]


def test_corners_are_those_of_the_grey_photo(model: D2Net, photo: np.ndarray) -> None:
    features = model.extract(photo, detector="corner")
    found = detect_corners(to_grey(torch.from_numpy(photo.copy())))
    pixels = found.anchors
    inside = (pixels >= BORDER).all(dim=1) & (pixels < torch.tensor([320, 240]) - BORDER).all(dim=1)
    assert len(features) == int(inside.sum()) > 300
    apart = torch.cdist(features.keypoints.double(), found.positions[inside].double())
    assert float(apart.min(dim=1).values.max()) < 1e-3


def test_a_shifted_photo_has_corners_shifted_to_a_tenth_of_a_pixel(
    model: D2Net, photo: np.ndarray
) -> None:
    there = model.extract(photo, detector="corner", descriptor="root")
    shifted = model.extract(photo[3:, 6:], detector="corner", descriptor="root")
    matches = match(there, shifted)
    expected = there.keypoints[matches.indices[:, 0]] - torch.tensor([6.0, 3.0])
    error = (shifted.keypoints[matches.indices[:, 1]] - expected).abs().amax(dim=1)
    assert float((error < 0.1).float().mean()) > 0.8


@pytest.mark.parametrize("max_edge", [None, 100])
@pytest.mark.parametrize("multiscale", [False, True])
def test_a_corner_is_where_it_is_at_any_size(
    model: D2Net, max_edge: int | None, multiscale: bool
) -> None:
    """A spot, so that smoothing does not move it; at every level that finds it."""
    j, i = np.meshgrid(np.arange(160), np.arange(120))
    photo = 60 + 150 * np.exp(-((j - 70.3) ** 2 + (i - 60.8) ** 2) / (2 * 3**2))
    photo = np.repeat(photo[..., None] / 255, 3, axis=2).astype(np.float32)
    features = model.extract(
        photo, detector="corner", max_edge=max_edge, multiscale=multiscale, max_keypoints=1
    )
    offset = features.keypoints[0] - torch.tensor([70.3, 60.8])
    assert float(offset.abs().max()) < 0.2


def test_both_shares_the_budget_and_keeps_no_near_duplicates(
    model: D2Net, photo: np.ndarray
) -> None:
    kinds = {kind: model.extract(photo, detector=kind).keypoints for kind in ("deep", "corner")}
    both = model.extract(photo, detector="both", max_keypoints=200)
    assert len(both) == 200
    assert (both.scores.diff() <= 0).all()
    is_corner, is_deep = (
        (both.keypoints[:, None] == kinds[kind][None]).all(dim=2).any(dim=1)
        for kind in ("corner", "deep")
    )
    assert (is_corner ^ is_deep).all()
    assert int(is_corner.sum()) == 100
    deep, corner = both.keypoints[is_deep], both.keypoints[is_corner]
    assert not has_neighbour(deep, corner, NEAR_DUPLICATE).any()
    assert float(both.uncertainty[is_corner].max()) < float(both.uncertainty[is_deep].min())


def some(scores: list[float], places: list[tuple[float, float]]) -> Keypoints:
    n = len(scores)
    return Keypoints(
        torch.tensor(places).view(n, 2),
        torch.tensor(scores),
        torch.ones(n),
        torch.ones(n),
        torch.ones(n, 1),
        torch.arange(n),
    )


def some_keypoints() -> st.SearchStrategy[Keypoints]:
    coordinate = st.integers(0, 80).map(lambda quarter: quarter / 4)
    row = st.tuples(st.floats(0, 10, width=32), st.tuples(coordinate, coordinate))
    return st.lists(row, max_size=30).map(
        lambda rows: some([score for score, _ in rows], [place for _, place in rows])
    )


@settings(max_examples=200, deadline=None)
@given(first=some_keypoints(), second=some_keypoints(), most=st.none() | st.integers(1, 40))
def test_what_is_kept_of_two_kinds(first: Keypoints, second: Keypoints, most: int | None) -> None:
    kept = select_best([first, second], most)
    assert (kept.scores.diff() <= 0).all()
    if most is None:
        taken = first
    else:
        assert len(kept) <= most
        share = max(most - len(second), most - most // 2)
        taken = first[first.scores.argsort(descending=True, stable=True)[:share]]
    free = second[~has_neighbour(second.positions, taken.positions, NEAR_DUPLICATE)]
    others = len(free) if most is None else min(len(free), most - len(taken))
    assert len(kept) == len(taken) + others
    best = free.scores.sort(descending=True).values[:others]
    expected = torch.cat([taken.scores, best]).sort(descending=True).values
    assert torch.equal(kept.scores, expected)


@settings(max_examples=100, deadline=None)
@given(a=some_keypoints(), b=some_keypoints(), radius=st.floats(0, 9, width=32))
def test_near_is_the_larger_of_both_distances(a: Keypoints, b: Keypoints, radius: float) -> None:
    apart = (a.positions[:, None] - b.positions[None]).abs().amax(dim=2)
    assert torch.equal(
        has_neighbour(a.positions, b.positions, radius), (apart <= radius).any(dim=1)
    )


@pytest.mark.parametrize(
    ("form", "length"), [("plain", 512), ("root", 512), ("fused", 768), ("whitened", 384)]
)
def test_every_form(photo: np.ndarray, form: str, length: int) -> None:
    features = D2Net.from_pretrained().extract(photo[:160, :200], descriptor=form)
    assert len(features) > 100
    assert features.descriptors.shape[1] == length
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))
    assert features.descriptor_id is not None
    assert features.descriptor_id.startswith("seasons ")
    assert features.descriptor_id.endswith(f" {form}")


def test_descriptors_are_whitened_where_the_weights_can(model: D2Net) -> None:
    assert model.settings.descriptor == "fused"
    assert D2Net.from_pretrained().settings.descriptor == "whitened"
    assert D2Net.from_pretrained(descriptor="root").settings.descriptor == "root"
    assert D2Net.from_pretrained(original=True).settings.descriptor == "plain"
    with pytest.raises(InputError, match="no descriptors of type 'whitened', only"):
        model.extract(PHOTO, descriptor="whitened")
    with pytest.raises(InputError, match="no descriptors of type 'whitened'"):
        D2Net.from_pretrained("ots", descriptor="whitened")


def test_original_has_its_own_kinds() -> None:
    for changes in ({"detector": "corner"}, {"detector": "both"}, {"descriptor": "fused"}):
        with pytest.raises(InputError, match="original reproduces the 2019 release"):
            ExtractionSettings.from_dict({"original": True, **changes})
    chosen = ExtractionSettings(detector="corner", descriptor="root").updated(original=True)
    assert (chosen.detector, chosen.descriptor, chosen.max_keypoints) == ("deep", "plain", None)
    assert ExtractionSettings(original=True).max_keypoints is None


def test_unknown_kinds_are_told() -> None:
    with pytest.raises(InputError, match="detector must be deep or corner or both, not 'sift'"):
        ExtractionSettings(detector="sift")
