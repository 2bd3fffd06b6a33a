from dataclasses import replace

import numpy as np
import pytest
import torch

from d2net.errors import InputError
from d2net.geometry.homography import transfer, transfer_error
from d2net.matching import match
from d2net.matching.nearest import mutual_nearest

CORNERS = np.array([[0.0, 0.0], [799.0, 0.0], [799.0, 639.0], [0.0, 639.0]])


def true_error(a, b, matches, H):
    """How far from the truth the matches of a pair of photos of a plane are, in pixels."""
    rows_a, rows_b = matches.indices.unbind(1)
    return transfer_error(
        H, a.keypoints[rows_a].double().numpy(), b.keypoints[rows_b].double().numpy()
    )


def test_homography_of_two_real_photos(graf):
    a, b, H = graf
    matches = match(a, b, verify="homography", threshold=3)
    found = transfer(matches.matrix, CORNERS)
    assert np.linalg.norm(found - transfer(H, CORNERS), axis=1).mean() < 5
    assert np.median(true_error(a, b, matches.verified(), H)) < 1.5
    assert matches.num_inliers > 200


def test_fundamental_matrix_removes_wrong_matches_of_two_real_photos(graf):
    a, b, H = graf
    matches = match(a, b, verify="fundamental")
    right = true_error(a, b, matches, H) < 5
    inliers = matches.inliers.numpy()
    assert right.mean() < 0.7
    assert inliers[right].mean() > 0.95
    assert right[inliers].mean() > 0.8


def test_without_verification_all_mutual_neighbours_come_back(graf):
    a, b, _ = graf
    matches = match(a, b)
    assert matches.inliers is None
    assert matches.model is None
    assert matches.matrix is None
    assert torch.equal(matches.indices, mutual_nearest(a.descriptors, b.descriptors).indices)


def test_the_ratio_leaves_fewer_and_better_matches(graf):
    a, b, H = graf
    everything = match(a, b)
    share = (true_error(a, b, everything, H) < 5).mean()
    fewer = match(a, b, ratio=0.8)
    assert 0 < len(fewer) < len(everything)
    assert (true_error(a, b, fewer, H) < 5).mean() > share + 0.1


def test_arguments_of_verification_without_it_are_refused(graf):
    a, b, _ = graf
    with pytest.raises(InputError, match='verify="fundamental"'):
        match(a, b, threshold=3)


def test_descriptors_of_different_kinds_are_not_compared(graf):
    a, b, _ = graf
    plain, root = replace(a, descriptor_id="ots plain"), replace(b, descriptor_id="ots root")
    with pytest.raises(InputError, match="'ots plain' and 'ots root' cannot be compared"):
        match(plain, root)
    unknown = replace(b, descriptor_id=None)
    same = replace(b, descriptor_id="ots plain")
    assert len(match(plain, unknown)) == len(match(plain, same)) > 0


def test_what_is_no_features_is_refused(graf):
    a, b, _ = graf
    for wrong in (b.descriptors, b.to_dict(), "b.jpg", None):
        for pair in ((a, wrong), (wrong, a)):
            with pytest.raises(InputError, match="takes two Features"):
                match(*pair)
