"""Where a person looks at a map from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap
import pytest

from d2net.mapping.cloud import read_cloud
from d2net.mapping.picture.viewpoint import from_above, oblique, scene_from_world, view_from_scene

from ..clouds import TAN_HALF_FOV, ball, front_row, upright


def tilt(made: pycolmap.Reconstruction, up: Any) -> float:
    """Degrees between the up that was guessed and the true one."""
    rotation = scene_from_world(read_cloud(made))
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-9)
    return float(np.degrees(np.arccos(min((rotation @ up)[2], 1.0))))


@pytest.mark.parametrize("seed", range(3))
def test_up_is_up_in_any_world(seed: int) -> None:
    made = upright(ball(), front_row())
    turn = pycolmap.Rotation3d(np.random.default_rng(seed).normal(size=3))  # axis times angle
    made.transform(pycolmap.Sim3d(2.5, turn, np.array([7.0, -100, 3])))
    assert tilt(made, turn.matrix() @ [0, 0, 1]) < 3


def test_one_photo_on_its_side_does_not_tilt_the_scene() -> None:
    made = upright(ball(), front_row())
    image = made.images[3]
    quarter = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0, np.pi / 2])), np.zeros(3))
    image.frame.rig_from_world = quarter * image.cam_from_world()
    assert tilt(made, [0, 0, 1]) < 3


def test_photos_from_the_air_give_up_by_their_view() -> None:
    centres = [[np.cos(a), np.sin(a), 12] for a in np.linspace(0, 5, 9)]
    assert tilt(upright(ball(), np.array(centres)), [0, 0, 1]) < 5


def test_the_scene_lies_before_the_viewer_with_its_cameras() -> None:
    cloud = read_cloud(upright(ball(), front_row()))
    for look in (oblique(cloud, TAN_HALF_FOV), from_above(cloud, TAN_HALF_FOV)):
        distance = look.distance(TAN_HALF_FOV)
        things = np.concatenate([cloud.points, cloud.centres]) - look.target
        x, y, z = (things @ look.view_from_world.T).T
        assert (np.abs(x / (z + distance)) < 1.1 * TAN_HALF_FOV[0]).all()
        assert (np.abs(y / (z + distance)) < 1.1 * TAN_HALF_FOV[1]).all()
        # From the photos' side: their cameras are nearer to the viewer than most points.
    centres = (cloud.centres - oblique(cloud, TAN_HALF_FOV).target) @ look.view_from_world.T
    assert centres[:, 1].mean() > 0  # seen from above, cameras are below the points


def test_far_points_do_not_shrink_the_scene() -> None:
    points = ball(300)
    far = np.concatenate([points, [[1e6, 1e6, 1e5], [-3e4, 5e5, 2]]])
    alone, with_far = (
        from_above(read_cloud(upright(p, front_row())), TAN_HALF_FOV) for p in (points, far)
    )
    assert with_far.extent == pytest.approx(alone.extent, rel=0.1)
    assert np.linalg.norm(with_far.target - alone.target) < 0.1 * alone.extent.max()


def test_far_cameras_are_shown_where_most_are_far_and_left_out_where_few_are() -> None:
    row = front_row()
    near = from_above(read_cloud(upright(ball(), row)), TAN_HALF_FOV)
    one_far = np.concatenate([row, [[0, -500.0, 0]]])
    found = from_above(read_cloud(upright(ball(), one_far)), TAN_HALF_FOV)
    assert found.extent == pytest.approx(near.extent, rel=0.1)
    assert near.extent[1] > 3  # down to the cameras, six from the middle of the points


def test_a_viewer_turns_and_looks_down() -> None:
    assert view_from_scene(0, 0) == pytest.approx(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))
    assert view_from_scene(0, np.pi / 2)[2] == pytest.approx([0, 0, -1])
    assert view_from_scene(np.pi / 2, 0)[2] == pytest.approx([1, 0, 0])
    some = view_from_scene(0.4, 0.3)
    assert some @ some.T == pytest.approx(np.eye(3))
    assert np.linalg.det(some) == pytest.approx(1)
