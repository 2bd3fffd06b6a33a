"""Descriptor types as settings of the model, and neighbours of keypoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2net import D2Net, ExtractionSettings, InputError
from d2net.extraction.suppression import has_neighbour

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def model() -> D2Net:
    return D2Net.from_pretrained("ots")


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO))[100:340, 200:520]


def some_points() -> st.SearchStrategy[torch.Tensor]:
    coordinate = st.integers(0, 80).map(lambda quarter: quarter / 4)
    point = st.tuples(coordinate, coordinate)
    return st.lists(point, max_size=30).map(lambda points: torch.tensor(points).view(-1, 2))


@settings(max_examples=100, deadline=None)
@given(a=some_points(), b=some_points(), radius=st.floats(0, 9, width=32))
def test_near_is_the_larger_of_both_distances(
    a: torch.Tensor, b: torch.Tensor, radius: float
) -> None:
    apart = (a[:, None] - b[None]).abs().amax(dim=2)
    assert torch.equal(has_neighbour(a, b, radius), (apart <= radius).any(dim=1))


@pytest.mark.parametrize(
    ("form", "length"), [("plain", 512), ("root", 512), ("fused", 768), ("whitened", 384)]
)
def test_every_form(photo: np.ndarray, form: str, length: int) -> None:
    features = D2Net.from_pretrained("seasons").extract(photo[:160, :200], descriptor=form)
    assert len(features) > 100
    assert features.descriptors.shape[1] == length
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))
    assert features.descriptor_id is not None
    assert features.descriptor_id.startswith("seasons ")
    assert features.descriptor_id.endswith(f" {form}")


def test_descriptors_are_whitened_where_the_weights_can(model: D2Net) -> None:
    assert model.settings.descriptor == "fused"
    assert D2Net.from_pretrained("seasons").settings.descriptor == "whitened"
    assert D2Net.from_pretrained("seasons", descriptor="root").settings.descriptor == "root"
    assert D2Net.from_pretrained(original=True).settings.descriptor == "plain"
    with pytest.raises(InputError, match="no descriptors of type 'whitened', only"):
        model.extract(PHOTO, descriptor="whitened")
    with pytest.raises(InputError, match="no descriptors of type 'whitened'"):
        D2Net.from_pretrained("ots", descriptor="whitened")


def test_original_has_its_own_kinds() -> None:
    with pytest.raises(InputError, match="original reproduces the 2019 release"):
        ExtractionSettings(original=True, descriptor="fused")
    chosen = ExtractionSettings(descriptor="root").updated(original=True)
    assert (chosen.descriptor, chosen.max_keypoints) == ("plain", None)
    assert ExtractionSettings(original=True).max_keypoints is None


def test_unknown_kinds_are_told() -> None:
    with pytest.raises(InputError, match=r"descriptor must be plain or root .*, not 'sift'"):
        ExtractionSettings(descriptor="sift")
