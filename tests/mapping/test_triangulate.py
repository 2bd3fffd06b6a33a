from itertools import combinations

import numpy as np
import pycolmap
import pytest

from d2net.errors import InputError
from d2net.mapping.triangulate import triangulate


def true_model(rigs):
    """Photos of a cloud of points by distorting cameras, alone or two on a rig."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = (2, 3) if rigs else (6, 1)
    options.num_cameras_per_rig = 2 if rigs else 1
    options.num_points3D = 150
    pycolmap.set_random_seed(0)
    return pycolmap.synthesize_dataset(options)


def seen(model):
    """Keypoints (pixel centres at integers), points of every photo, and matches from the truth."""
    keypoints, points = {}, {}
    for image in model.images.values():
        keypoints[image.name] = np.array([p.xy - 0.5 for p in image.points2D])
        points[image.name] = np.array(
            [p.point3D_id if p.has_point3D() else 0 for p in image.points2D]
        )
    matches = []
    for a, b in combinations(sorted(keypoints), 2):
        rows_a, rows_b = np.nonzero(points[a][:, None] == points[b])
        real = points[a][rows_a] > 0
        matches.append((a, b, np.stack([rows_a, rows_b], 1)[real]))
    return keypoints, points, matches


@pytest.mark.parametrize("rigs", [False, True])
def test_points_are_where_they_are_and_poses_stay(rigs):
    truth = true_model(rigs)
    keypoints, points, matches = seen(truth)
    found = triangulate(truth, keypoints, matches)
    assert found.num_points3D() > 140
    for image in found.images.values():
        before = truth.image(image.image_id)
        np.testing.assert_allclose(
            image.cam_from_world().matrix(), before.cam_from_world().matrix(), atol=1e-9
        )
        np.testing.assert_array_equal(image.camera.params, before.camera.params)
        np.testing.assert_allclose(
            [p.xy for p in image.points2D], keypoints[image.name] + 0.5, atol=1e-4
        )
        for row, point in enumerate(image.points2D):
            if point.has_point3D():
                true = truth.points3D[points[image.name][row]].xyz
                np.testing.assert_allclose(found.points3D[point.point3D_id].xyz, true, atol=1e-3)
    assert truth.num_points3D() == 150  # what was given is left as it was


def test_matches_off_the_known_geometry_are_left_out():
    truth = true_model(rigs=False)
    keypoints, points, matches = seen(truth)
    rng = np.random.default_rng(0)
    wrong = [(a, b, np.c_[rows[:, 0], rng.permutation(rows[:, 1])]) for a, b, rows in matches]
    mixed = [
        (a, b, np.vstack([r[:100], w[100:]]))
        for (a, b, r), (_, _, w) in zip(matches, wrong, strict=True)
    ]
    found = triangulate(truth, keypoints, mixed)
    pure = []
    for point in found.points3D.values():
        tracks = point.track.elements
        ids = {points[found.images[e.image_id].name][e.point2D_idx] for e in tracks}
        pure.append(len(ids) == 1)
        if pure[-1]:
            np.testing.assert_allclose(point.xyz, truth.points3D[ids.pop()].xyz, atol=1e-3)
    assert np.mean(pure) > 0.9
    assert sum(pure) > 90


def test_twice_gives_the_same():
    truth = true_model(rigs=False)
    keypoints, _, matches = seen(truth)
    rng = np.random.default_rng(0)
    keypoints = {name: p + rng.normal(0, 1, p.shape) for name, p in keypoints.items()}
    first, second = (triangulate(truth, keypoints, matches) for _ in range(2))
    assert [p.xyz.tolist() for p in first.points3D.values()] == [
        p.xyz.tolist() for p in second.points3D.values()
    ]


def test_without_matches_there_are_no_points():
    truth = true_model(rigs=False)
    keypoints, _, _ = seen(truth)
    none = {name: np.empty((0, 2), np.float32) for name in keypoints}
    assert triangulate(truth, none, []).num_points3D() == 0
    assert triangulate(truth, keypoints, []).num_images() == 6


def test_a_photo_without_a_pose_is_refused():
    truth = true_model(rigs=False)
    keypoints, _, matches = seen(truth)
    posed = next(iter(truth.images.values()))
    truth.deregister_frame(posed.frame_id)
    with pytest.raises(InputError, match=f"no pose of the photo {posed.name}"):
        triangulate(truth, keypoints, matches)
