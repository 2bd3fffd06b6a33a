"""Viewpoints for a cloud: which way is up, what its middle is, and how far away a viewer stands.

The scene has its own axes: x right, y forward (away from the viewer), z up. A viewing direction is
a yaw and a pitch in radians. Yaw 0 is the mean direction of the photos, positive yaw turns the
viewer to the right, and positive pitch looks down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2net.mapping.cloud import Array, Cloud

_UP_WEIGHT = 0.01  # of the photos' mean up direction, beside the constraint from their rows
_COS_SAME_UP = np.cos(np.radians(40))  # photos held alike
_ITERATIONS = 5
_YAW, _PITCH = -0.44, 0.35  # radians beside and above the photos' mean direction
_OUTSIDE = 0.012  # share of the points that may lie beyond each edge of the picture
_CAMERA_REACH = 1.2, 4.0  # limits in sizes of the cloud: how far from it cameras are shown


def scene_from_world(cloud: Cloud) -> Array:
    """3 x 3 rotation into the scene's axes, estimated from the photos' poses.

    Photographers rarely tilt a camera sideways, so up is perpendicular to the photos' rows (as in
    Szeliski, Image alignment and stitching, 2006, section 5.1). Where the rows are nearly parallel,
    up is the photos' mean up. Photos held differently from most are left out. Forward is the mean
    direction of the photos, weighted by the points that they observe. For photos that look straight
    down in all orientations, up is the opposite of their direction. Without photos, the world's
    axes are taken as COLMAP's camera axes: y down, z forward.
    """
    if not cloud.photos:
        return np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    rotations = np.stack([photo.world_from_cam for photo in cloud.photos])
    rights, ups, forwards = rotations[:, :, 0], -rotations[:, :, 1], rotations[:, :, 2]
    if np.linalg.norm(ups.mean(axis=0)) < 0.4 and np.linalg.norm(forwards.mean(axis=0)) > 0.8:
        up = _unit(-forwards.mean(axis=0))
    else:
        alike = ups @ ups.T > _COS_SAME_UP
        chosen = alike[np.argmax(alike.sum(axis=1))]
        scatter = rights[chosen].T @ rights[chosen] / chosen.sum()
        up = _unit(np.linalg.solve(scatter + _UP_WEIGHT * np.eye(3), ups[chosen].mean(axis=0)))
    weights = [1 + len(photo.point_rows) for photo in cloud.photos]
    forward = np.average(forwards, axis=0, weights=weights)
    forward = forward - up * (up @ forward)
    if np.linalg.norm(forward) < 0.1:  # photos from all sides: any direction will do
        forward = np.cross(up, rights[0])
        forward = forward if np.linalg.norm(forward) > 0.1 else np.cross(up, ups[0])
    forward = _unit(forward)
    return np.stack([np.cross(forward, up), forward, up])


def _unit(vector: Array) -> Array:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


def view_from_scene(yaw: float, pitch: float) -> Array:
    """3 x 3 rotation into a viewer's axes: x right, y down, z forward."""
    right = np.array([np.cos(yaw), -np.sin(yaw), 0])
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    return np.stack([right, np.cross(forward, right), forward])


@dataclass(frozen=True)
class Look:
    """A viewing direction, and the part of the world that is visible.

    Attributes:
        scene_from_world: 3 x 3 rotation.
        yaw: in the scene's axes.
        pitch: in the scene's axes.
        target: 3, the point of the world in the middle of the picture.
        extent: 2, half the width and half the height of the visible part, at the target's depth.
    """

    scene_from_world: Array
    yaw: float
    pitch: float
    target: Array
    extent: Array

    def distance(self, tan_half_fov: Array) -> float:
        """Distance from the target at which a viewer sees the whole visible part."""
        return float(np.max(self.extent / tan_half_fov))

    @property
    def view_from_world(self) -> Array:
        """3 x 3 rotation into the viewer's axes."""
        return np.asarray(view_from_scene(self.yaw, self.pitch) @ self.scene_from_world)


def oblique(cloud: Cloud, tan_half_fov: Array) -> Look:
    """Look from the photos' side, a little from above and beside their mean direction.

    Exactly the mean direction would put the cameras in front of the scene.

    Args:
        cloud: points and cameras.
        tan_half_fov: 2, of the viewer's picture, horizontal and vertical.
    """
    return _look(cloud, scene_from_world(cloud), _YAW, _PITCH, tan_half_fov)


def from_above(cloud: Cloud, tan_half_fov: Array) -> Look:
    """Look straight down, with the photos' side at the bottom of the picture."""
    return _look(cloud, scene_from_world(cloud), 0.0, np.pi / 2, tan_half_fov)


def _look(cloud: Cloud, scene: Array, yaw: float, pitch: float, tan_half_fov: Array) -> Look:
    """A look at most points and cameras. Far ones are left out."""
    view_from_world = view_from_scene(yaw, pitch) @ scene
    points = cloud.points @ view_from_world.T
    centres = cloud.centres @ view_from_world.T
    if not len(points) and not len(centres):
        return Look(scene, yaw, pitch, np.zeros(3), np.ones(2))
    if len(points):
        low, high = np.quantile(points, [_OUTSIDE, 1 - _OUTSIDE], axis=0)
        points = points[((points >= low) & (points <= high)).all(axis=1)]
        if len(centres):  # show at least the nearer half of the cameras, if that is not too far
            beyond = np.maximum(low - centres, centres - high).max(axis=1)
            least, most = np.multiply(_CAMERA_REACH, float(np.max(high - low)))
            centres = centres[beyond <= np.clip(1.05 * np.median(beyond), least, most)]
    both = np.concatenate([points, centres])
    target = (both.min(axis=0) + both.max(axis=0)) / 2
    extent = _not_flat(np.ptp(both, axis=0)[:2] / 2)
    for _ in range(_ITERATIONS):  # near things look larger, which moves the middle
        distance = float(np.max(extent / tan_half_fov))
        positions = _projected(centres - target, distance)
        if len(points):
            seen = _projected(points - target, distance)
            ends = np.quantile(seen, [_OUTSIDE, 1 - _OUTSIDE], axis=0)
            positions = np.concatenate([positions, ends])
        low, high = positions.min(axis=0), positions.max(axis=0)
        target[:2] += (low + high) / 2
        extent = _not_flat((high - low) / 2)
    return Look(scene, yaw, pitch, target @ view_from_world, extent)


def _projected(seen: Array, distance: float) -> Array:
    """N x 2 positions at the target's depth, of N x 3 from the target in the viewer's axes."""
    depth = np.maximum(1 + seen[:, 2] / distance, 0.2)
    return np.asarray(seen[:, :2] / depth[:, None])


def _not_flat(extent: Array) -> Array:
    """The extent with a minimum, for a single camera or points on a line."""
    largest = float(extent.max())
    return np.maximum(extent, 0.05 * largest if largest > 0 else 1.0)
