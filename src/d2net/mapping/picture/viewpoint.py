"""From where a person should look at a cloud: which way is up, where its middle is, how far away.

The scene has axes of its own: x to the right, y away from the viewer, z up. A direction of view is
a yaw (0: as the photos look on average; positive turns the viewer to the right) and a pitch
(positive looks down), in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2net.mapping.cloud import Array, Cloud

_RIDGE = 0.01  # how much the mean of the photos' up counts beside their horizons
_CELLS = 30  # of a coarse grid, over half the picture
_ROUNDS = 5
_SAME_WAY = np.cos(np.radians(40))  # photos that are held alike
_YAW, _PITCH = 25, 20  # degrees beside and above the photos' mean view
_INSIDE = 0.012  # share of the points that may lie beyond each end of the frame
_ROOM = 1.2, 4.0  # sizes of the cloud, from which and up to which cameras are framed


def scene_from_world(cloud: Cloud) -> Array:
    """3 x 3 rotation into the scene's axes, guessed from how the photos were held.

    Nobody tilts a camera sideways on purpose, so up is at right angles to the photos' rows (as in
    Szeliski, Image alignment and stitching, 2006, section 5.1); where these are nearly parallel,
    it is the photos' mean up. Photos held otherwise than most are left out. Away is where the
    photos look on average, each counting as much as it sees. Photos that look straight down,
    turned in all ways, give the opposite of their view. Without photos the world's axes are taken
    as COLMAP's cameras have them: y down, z away.
    """
    if not cloud.views:
        return np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    rotations = np.stack([view.world_from_cam for view in cloud.views])
    rights, ups, aways = rotations[:, :, 0], -rotations[:, :, 1], rotations[:, :, 2]
    up = _up(rights, ups)
    if np.linalg.norm(ups.mean(axis=0)) < 0.4 and np.linalg.norm(aways.mean(axis=0)) > 0.8:
        up = _unit(-aways.mean(axis=0))
    weights = np.array([1 + len(view.points) for view in cloud.views])
    away = np.average(aways, axis=0, weights=weights)
    away = away - up * (up @ away)
    if np.linalg.norm(away) < 0.1:  # from all sides: any direction does
        away = np.cross(rights[0], up) * -1
        away = away if np.linalg.norm(away) > 0.1 else np.cross(up, ups[0])
    away = _unit(away)
    return np.stack([np.cross(away, up), away, up])


def _up(rights: Array, ups: Array) -> Array:
    alike = ups @ ups.T > _SAME_WAY
    held = alike[np.argmax(alike.sum(axis=1))]
    rows = rights[held]
    horizon = rows.T @ rows / len(rows)
    return _unit(np.linalg.solve(horizon + _RIDGE * np.eye(3), ups[held].mean(axis=0)))


def _unit(vector: Array) -> Array:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


def view_from_scene(yaw: float, pitch: float) -> Array:
    """3 x 3 rotation into a viewer's axes: x right, y down, z away from the viewer."""
    right = np.array([np.cos(yaw), -np.sin(yaw), 0])
    away = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    return np.stack([right, np.cross(away, right), away])


@dataclass(frozen=True)
class Look:
    """How to look at a cloud.

    Attributes:
        scene_from_world: 3 x 3 rotation.
        yaw: of the view, in the scene's axes.
        pitch: of the view.
        frame: what is seen.
    """

    scene_from_world: Array
    yaw: float
    pitch: float
    frame: Frame

    @property
    def view_from_world(self) -> Array:
        """3 x 3 rotation into the viewer's axes."""
        return np.asarray(view_from_scene(self.yaw, self.pitch) @ self.scene_from_world)


def oblique(cloud: Cloud, slope: Array) -> Look:
    """From the side that the photos were taken from, a little above.

    Looking exactly as the photos do would put the cameras before the scene, so the viewer stands
    aside of them: on the side where the points cover more of the picture.

    Args:
        cloud: what to look at.
        slope: 2, half the width and half the height of the viewer's picture over its distance.
    """
    scene = scene_from_world(cloud)
    looks = [_look(cloud, scene, np.radians(y), np.radians(_PITCH), slope) for y in (-_YAW, _YAW)]
    return max(looks, key=lambda look: _coverage(cloud, look, slope))


def from_above(cloud: Cloud, slope: Array) -> Look:
    """Straight down, with the side that the photos were taken from below."""
    return _look(cloud, scene_from_world(cloud), 0.0, np.pi / 2, slope)


def _look(cloud: Cloud, scene: Array, yaw: float, pitch: float, slope: Array) -> Look:
    return Look(scene, yaw, pitch, _frame(cloud, view_from_scene(yaw, pitch) @ scene, slope))


def _coverage(cloud: Cloud, look: Look, slope: Array) -> int:
    """How many cells of a coarse grid over the picture have points."""
    seen = (cloud.points - look.frame.target) @ look.view_from_world.T
    places = _projected(seen, look.frame.distance(slope)) / look.frame.distance(slope) / slope
    cells = np.floor(places[(np.abs(places) < 1).all(axis=1)] * _CELLS)
    return len(np.unique(cells, axis=0))


@dataclass(frozen=True)
class Frame:
    """What to look at, from one direction.

    Attributes:
        target: 3, in the world: what is seen in the middle.
        extent: 2, half the width and half the height of what is seen, on the plane of the target.
    """

    target: Array
    extent: Array

    def distance(self, slope: Array) -> float:
        """How far from the target a viewer stands who sees all of it (slope as for `oblique`)."""
        return float(np.max(self.extent / slope))


def _frame(cloud: Cloud, view_from_world: Array, slope: Array) -> Frame:
    """The part of the world that most points and cameras lie in, as a viewer sees it.

    Far points and cameras do not count: a person wants to see the scene.
    """
    points = cloud.points @ view_from_world.T
    centres = cloud.centres @ view_from_world.T
    if not len(points) and not len(centres):
        return Frame(np.zeros(3), np.ones(2))
    if len(points):
        low, high = np.quantile(points, [_INSIDE, 1 - _INSIDE], axis=0)
        points = points[((points >= low) & (points <= high)).all(axis=1)]
        beyond = np.maximum(low - centres, centres - high).max(axis=1, initial=0.0)
        centres = centres[beyond <= _room(beyond, float(np.max(high - low)))]
    both = np.concatenate([points, centres])
    target = (both.min(axis=0) + both.max(axis=0)) / 2
    extent = _at_least(np.ptp(both, axis=0)[:2] / 2)
    for _ in range(_ROUNDS):  # near things look larger, which moves the middle
        distance = float(np.max(extent / slope))
        places = _projected(centres - target, distance)
        if len(points):
            seen = _projected(points - target, distance)
            places = np.concatenate([places, np.quantile(seen, [_INSIDE, 1 - _INSIDE], axis=0)])
        low, high = places.min(axis=0), places.max(axis=0)
        target[:2] += (low + high) / 2
        extent = _at_least((high - low) / 2)
    return Frame(target @ view_from_world, extent)


def _room(beyond: Array, size: float) -> float:
    """How far from the points cameras are shown: at least the nearer half, if that is sensible."""
    half = float(np.median(beyond)) if len(beyond) else 0.0
    return float(np.clip(1.05 * half, _ROOM[0] * size, _ROOM[1] * size))


def _projected(seen: Array, distance: float) -> Array:
    """N x 2 on the plane of the target, of N x 3 from the target in the viewer's axes."""
    depth = np.maximum(1 + seen[:, 2] / distance, 0.2)
    return np.asarray(seen[:, :2] / depth[:, None])


def _at_least(extent: Array) -> Array:
    """Not flat, as of one camera or of points on a line."""
    largest = float(extent.max())
    return np.maximum(extent, 0.05 * largest if largest > 0 else 1.0)
