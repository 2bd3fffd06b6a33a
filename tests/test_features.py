"""Features and Matches: shapes are checked, rows stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from d2net import Features, InputError, Matches


def make(n: int = 5) -> Features:
    return Features(
        keypoints=torch.arange(2 * n).view(n, 2).float(),
        scores=torch.arange(n).float(),
        scales=torch.ones(n),
        descriptors=torch.nn.functional.normalize(torch.eye(n, 8) + 0.1, dim=1),
        image_size=(640, 480),
        uncertainty=torch.full((n,), 1.5),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("keypoints", torch.zeros(5, 3)),
        ("keypoints", torch.zeros(5, 2).half()),
        ("scores", torch.zeros(4)),
        ("scales", torch.zeros(5, 1)),
        ("uncertainty", torch.zeros(5).double()),
        ("descriptors", torch.zeros(8, 5)),
        ("descriptors", torch.zeros(5, 8).int()),
    ],
)
def test_wrong_shapes_and_types_are_refused(name: str, value: torch.Tensor) -> None:
    with pytest.raises(InputError, match=f"{name} must be"):
        replace(make(), **{name: value})


@pytest.mark.parametrize("name", ["keypoints", "scores", "scales", "uncertainty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_must_be_finite(name: str, value: float) -> None:
    array = getattr(make(), name).clone()
    array[2] = value
    with pytest.raises(InputError, match=f"{name} must be finite"):
        replace(make(), **{name: array})


@pytest.mark.parametrize("name", ["scales", "uncertainty"])
def test_lengths_must_not_be_negative(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be 0 or more"):
        replace(make(), **{name: torch.full((5,), -1.0)})


def test_numpy_arrays_are_refused_as_such() -> None:
    with pytest.raises(InputError, match="keypoints must be a tensor, not ndarray"):
        Features(**make().numpy(), image_size=(640, 480))
    with pytest.raises(InputError, match="indices must be a tensor, not ndarray"):
        Matches(np.zeros((0, 2), np.int64), torch.zeros(0))


def test_gradients_are_left_out() -> None:
    arrays = {name: torch.from_numpy(array) for name, array in make().numpy().items()}
    features = Features(
        **{name: array.requires_grad_() for name, array in arrays.items()}, image_size=(640, 480)
    )
    assert np.array_equal(features.numpy()["keypoints"], make().numpy()["keypoints"])
    assert not features.descriptors.requires_grad


@pytest.mark.parametrize("size", [[640, 480], torch.tensor([640, 480]), np.array([640.0, 480.0])])
def test_the_size_may_be_any_pair(size: object) -> None:
    assert replace(make(), image_size=size).image_size == (640, 480)


def test_a_photo_without_pixels_has_no_features() -> None:
    with pytest.raises(InputError, match="image_size must be"):
        replace(make(), image_size=(0, 480))


def test_rows_stay_together() -> None:
    some = make()[torch.tensor([3, 1])]
    assert len(some) == 2
    assert some.keypoints.tolist() == [[6, 7], [2, 3]]
    assert some.scores.tolist() == [3, 1]
    assert some.image_size == (640, 480)
    assert len(make()[:0]) == 0
    assert make()[::-1].scores.tolist() == make().scores.tolist()[::-1]
    assert len(make()[0:0:-1]) == 0
    assert make()[np.array([3, 1])[::-1]].scores.tolist() == [1, 3]


def test_best_goes_by_score() -> None:
    assert make().best(2).scores.tolist() == [4, 3]
    with pytest.raises(InputError, match="0 or more"):
        make().best(-1)
    assert make().best(None).scores.tolist() == make().best(9).scores.tolist() == [0, 1, 2, 3, 4]


def test_half_halves_descriptors_only() -> None:
    halved = make().half()
    assert halved.descriptors.dtype == torch.float16
    assert halved.keypoints.dtype == halved.scores.dtype == torch.float32


def test_to_dict_has_lightglues_keys_and_batch_dimension() -> None:
    values = make().half().to_dict()
    assert set(values) == {"keypoints", "keypoint_scores", "descriptors", "image_size"}
    assert values["keypoints"].shape == (1, 5, 2)
    assert values["descriptors"].shape == (1, 5, 8)
    assert values["descriptors"].dtype == torch.float32
    assert values["image_size"].tolist() == [[640, 480]]


def test_to_opencv_has_the_positions_and_scores() -> None:
    features = make()
    keypoints, descriptors = features.to_opencv()
    positions = torch.tensor([k.pt for k in keypoints])
    assert torch.allclose(positions, features.keypoints)
    assert [k.response for k in keypoints] == pytest.approx(features.scores.tolist())
    assert torch.equal(torch.from_numpy(descriptors), features.descriptors.float())


def test_verified_keeps_the_inliers() -> None:
    indices = torch.tensor([[0, 4], [1, 3], [2, 2]])
    matches = Matches(indices, torch.tensor([0.9, 0.8, 0.7]))
    assert matches.verified() is matches
    assert matches.num_inliers == 3
    marked = replace(matches, inliers=torch.tensor([True, False, True]), model="homography")
    assert marked.num_inliers == 2
    kept = marked.verified()
    assert kept.indices.tolist() == [[0, 4], [2, 2]]
    assert kept.similarity.tolist() == pytest.approx([0.9, 0.7])
    assert kept.num_inliers == len(kept) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("indices", torch.zeros(3, 2).float()),
        ("indices", torch.zeros(2, 3).long()),
        ("similarity", torch.zeros(2)),
        ("inliers", torch.zeros(3)),
        ("inliers", torch.zeros(2).bool()),
    ],
)
def test_matches_are_checked(name: str, value: torch.Tensor) -> None:
    matches = Matches(torch.zeros(3, 2).long(), torch.zeros(3))
    with pytest.raises(InputError, match=name):
        replace(matches, **{name: value})


def test_they_print_in_a_line() -> None:
    assert repr(make()) == "Features(5 keypoints, 8-D float32, 640 x 480 px)"
    assert repr(Matches(torch.zeros(3, 2).long(), torch.zeros(3))) == "Matches(3)"
