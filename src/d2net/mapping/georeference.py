"""A map's place on the earth: upright; with GPS positions in its photos, in metres and to north.

A map by COLMAP has an arbitrary frame. Its cameras say which direction is up, because people hold
cameras level. North, position and scale come from GPS, whose errors are metres or more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from d2net.errors import FormatError, InputError
from d2net.geometry.coordinates import Array
from d2net.io.exif import Position

KnownDistance = tuple[str, str, float]

FILE = "georeference.json"
_UP = np.array([0.0, 0.0, 1.0])

_GPS_DEVIATION = np.array([5.0, 5.0, 10.0])
_UP_DEVIATION = np.radians(5.0)
"""Standard deviations of a GPS position (east, north, up) in metres, and of a direction that the
cameras call level in radians: their weights in the alignment."""

_MAX_GPS_ERROR = 3 * _GPS_DEVIATION
_MIN_POSITIONS = 4
_MAX_SCALE_DEVIATION = 0.1
"""A GPS position agrees with the map within these errors in metres. A map is georeferenced if this
many photos and at least half of the positions agree, and its scale is known to this share. Ten
photos within a few metres of each other do not determine the scale."""

_TILTS = (0, 0.25, 0.5, 0.75, 1)  # at the start; 1 makes the mean view point straight down
_MIN_GAIN = 12.0  # a tilt must reduce the sum of squares by this, and by half the positions
_DOWN = -0.3
"""A tilt is accepted only if 90 % of the cameras look below this sine. The GPS altitudes of two
walks differ by metres, which would otherwise tilt a street."""

_NUM_HYPOTHESES = 5000  # pairs of photos that RANSAC tries at most
_MAX_REFINEMENTS = 5  # rounds in which the positions that agree change
_LEVEL = 0.05
"""Weight of the mean of the cameras' up directions against level horizons. Level horizons do not
determine up where all photos look in one direction."""


@dataclass(frozen=True)
class Georeference:
    """The place on the earth of a map whose axes point east, north and up, in metres.

    Attributes:
        latitude, longitude: of the map's origin in degrees (WGS84).
        altitude: of the origin in metres as in the photos' EXIF data; 0 if they have none.
        num_positions: number of photos with a GPS position.
        num_agreeing: number of these that agree with the map; the origin is their centre.
        error: standard deviation of their GPS positions along east or north, in metres.
        spread: root mean square horizontal distance of the agreeing photos from the origin.
    """

    latitude: float
    longitude: float
    altitude: float
    num_positions: int
    num_agreeing: int
    error: float
    spread: float

    def position(self, point: Array) -> Position:
        """The position on the earth of a point of the map (3 numbers in metres)."""
        origin = self.latitude, self.longitude, self.altitude
        return Position(*pycolmap.GPSTransform().enu_to_ellipsoid(point[None], *origin)[0].tolist())

    def deviation(self, point: Array) -> float:
        """Standard deviation in metres of the horizontal position of a point of the map.

        It follows from the fit of shift, turn and scale to positions with independent errors, so it
        grows with the distance from the origin.
        """
        distance = float(np.linalg.norm(point[:2])) / self.spread
        return self.error * float(np.sqrt((2 + 2 * distance**2) / self.num_agreeing))

    def write(self, folder: Path) -> None:
        """Write the georeference beside a model."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Georeference | None:
        """Read the georeference of a model; None if the model has none."""
        path = folder / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
        except (ValueError, TypeError) as error:
            raise FormatError(f"{path} is damaged ({error}): make the map again") from error


def georeference(
    model: pycolmap.Reconstruction,
    positions: Mapping[str, Position],
    known_distance: KnownDistance | None = None,
) -> Georeference | None:
    """Turn a model upright in place; with GPS positions, also to metres and to north.

    A known distance sets the scale, except for a model without one of its photos.

    Returns:
        The place on the earth. None if too few positions agree, or they do not determine the scale.
    """
    images = sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.name)
    poses = {image.name: image.cam_from_world() for image in images}
    centres = {name: pose.inverse().translation for name, pose in poses.items()}
    rotations = np.array([pose.rotation.matrix() for pose in poses.values()])
    up = common_up(rotations)
    upright = Rotation.align_vectors(_UP[None], up[None])[0]
    scale = None
    if known_distance is not None and {*known_distance[:2]} <= centres.keys():
        first, second, metres = known_distance
        distance = float(np.linalg.norm(centres[first] - centres[second]))
        if distance == 0:
            raise InputError(f"{first} and {second} have one position, so they set no scale")
        scale = metres / distance
    turn = _similarity(scale or 1.0, upright, np.zeros(3))
    model.transform(turn)

    names = [name for name in centres if name in positions]
    if len(names) < _MIN_POSITIONS:
        return None
    on_earth = np.array([positions[name] for name in names], np.float64)  # no altitude is NaN
    known = on_earth[np.isfinite(on_earth[:, 2]), 2]
    on_earth[:, 2] = np.nan_to_num(on_earth[:, 2], nan=np.median(known) if len(known) else 0.0)
    transform = pycolmap.GPSTransform()
    # Not the median of degrees: longitudes jump from 180 to -180 in the Pacific.
    middle = np.median(transform.ellipsoid_to_ecef(on_earth), axis=0)
    reference = transform.ecef_to_ellipsoid(middle[None])[0]
    targets = transform.ellipsoid_to_enu(on_earth, *reference)
    sources = np.asarray(turn * np.array([centres[name] for name in names]))
    # Most cameras are level. A drone's may be tilted by any angle about one level axis.
    forwards = upright.apply(rotations[:, 2])
    down = Rotation.align_vectors(_UP[None], -forwards.mean(axis=0)[None])[0]
    axis = upright.apply(np.linalg.svd(rotations[:, 0], full_matrices=False)[2][:1])
    tilted = [(Rotation.from_rotvec(part * down.as_rotvec()), axis) for part in _TILTS]
    aligned, best = None, np.inf
    for tilt, level in [(Rotation.identity(), np.eye(3)[:2]), *tilted]:
        found = _align(tilt.apply(sources), targets, tilt.apply(level), scale is not None)
        if found is None:
            continue
        found *= _similarity(1.0, tilt, np.zeros(3))
        errors, slopes = _residuals(found, sources, targets, level)
        cost = np.minimum(np.square(errors).sum(axis=1), 3.0**2).sum() + np.square(slopes).sum()
        if level is not axis:
            cost -= max(_MIN_GAIN, len(names) / 2)
        elif np.quantile(forwards @ found.rotation.matrix()[2], 0.9) >= _DOWN:
            continue
        if cost < best:
            aligned, best = found, cost
    if aligned is None:
        return None
    moved = np.asarray(aligned * sources)
    agree = _agree(moved, targets)
    n = int(np.count_nonzero(agree))
    origin = targets[agree].mean(axis=0)
    spread = float(np.sqrt(moved[agree, :2].var(axis=0).sum()))
    error = float(np.sqrt(((moved - targets)[agree, :2] ** 2).sum() / (2 * n - 4)))
    if 2 * n < len(names) or error >= _MAX_SCALE_DEVIATION * spread * np.sqrt(n):
        return None
    model.transform(pycolmap.Sim3d(aligned.scale, aligned.rotation, aligned.translation - origin))
    latitude, longitude, altitude = transform.enu_to_ellipsoid(origin[None], *reference)[0].tolist()
    return Georeference(latitude, longitude, altitude, len(names), n, error, spread)


def common_up(cam_from_world: Array) -> Array:
    """The direction in the world that most cameras agree to be up, from N x 3 x 3 rotations.

    Up is normal to the cameras' horizontal axes and near the mean of their vertical axes. Photos
    that differ by more than 45 degrees are left out. Cameras that look in one direction and are
    held in all orientations look down.
    """
    rights, ups, forwards = cam_from_world[:, 0], -cam_from_world[:, 1], cam_from_world[:, 2]
    ahead = forwards.mean(axis=0)
    if np.linalg.norm(ups.mean(axis=0)) < 0.4 and np.linalg.norm(ahead) > 0.8:
        return np.asarray(-ahead / np.linalg.norm(ahead), dtype=np.float64)
    keep = np.ones(len(ups), np.bool_)
    up = ups[0]
    for _ in range(5):
        level = rights[keep].T @ rights[keep] / np.count_nonzero(keep)
        up = np.linalg.solve(level + _LEVEL * np.eye(3), ups[keep].mean(axis=0))
        up /= max(float(np.linalg.norm(up)), 1e-12)
        near = ups @ up > np.cos(np.pi / 4)
        if not near.any() or (near == keep).all():
            break
        keep = near
    return np.asarray(up if up.any() else ups[0], dtype=np.float64)


def _similarity(scale: float, rotation: Rotation, shift: Array) -> pycolmap.Sim3d:
    return pycolmap.Sim3d(scale, pycolmap.Rotation3d(rotation.as_quat()), shift)


def _agree(moved: Array, targets: Array) -> NDArray[np.bool_]:
    errors = moved - targets
    horizontal = np.linalg.norm(errors[:, :2], axis=1) <= _MAX_GPS_ERROR[0]
    return np.asarray(horizontal & (np.abs(errors[:, 2]) <= _MAX_GPS_ERROR[2]))


def _align(
    sources: Array, targets: Array, level: Array, known_scale: bool
) -> pycolmap.Sim3d | None:
    """The similarity from upright sources to targets (N x 3), robust to wrong targets.

    `level` are K x 3 directions of the sources that are about level. The search starts from the
    best turn about the vertical, scale and shift from pairs of photos (MSAC). In the plane of
    complex numbers it is target = a source + b.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (sources, targets))
    number = min(_NUM_HYPOTHESES, 4 * len(z) ** 2)
    first, second = np.random.default_rng(0).integers(len(z), size=(2, number))
    apart = (z[second] != z[first]) & (w[second] != w[first])
    first, second = first[apart], second[apart]
    if not len(first):
        return None
    slopes = (w[second] - w[first]) / (z[second] - z[first])
    if known_scale:
        slopes /= np.abs(slopes)
    shifts = (w[first] + w[second] - slopes * (z[first] + z[second])) / 2
    costs = [
        np.minimum(np.abs(a * z + b - w), _MAX_GPS_ERROR[0]).sum()
        for a, b in zip(slopes, shifts, strict=True)
    ]
    a, b = slopes[np.argmin(costs)], shifts[np.argmin(costs)]
    height = np.median(targets[:, 2] - np.abs(a) * sources[:, 2])
    turn = Rotation.from_euler("z", np.angle(a))
    fitted = _similarity(float(np.abs(a)), turn, np.array([b.real, b.imag, height]))
    agree = np.zeros(len(z), np.bool_)
    for _ in range(_MAX_REFINEMENTS):
        before, agree = agree, _agree(np.asarray(fitted * sources), targets)
        if np.count_nonzero(agree) < _MIN_POSITIONS:
            return None
        if (agree == before).all():
            break
        fitted = _fit(sources[agree], targets[agree], level, fitted, known_scale)
    return fitted


def _residuals(
    similarity: pycolmap.Sim3d, sources: Array, targets: Array, level: Array
) -> tuple[Array, Array]:
    """The errors of N positions (N x 3) and of K level directions, in standard deviations."""
    errors = (np.asarray(similarity * sources) - targets) / _GPS_DEVIATION
    return errors, level @ similarity.rotation.matrix()[2] / _UP_DEVIATION


def _fit(
    sources: Array, targets: Array, level: Array, start: pycolmap.Sim3d, known_scale: bool
) -> pycolmap.Sim3d:
    """Least squares over positions and the directions (K x 3) that should be level."""
    centre, target_centre = sources.mean(axis=0), targets.mean(axis=0)
    turned = Rotation.from_quat(start.rotation.quat)

    def changed(change: Array) -> pycolmap.Sim3d:
        scale = float(start.scale) * (1.0 if known_scale else float(np.exp(change[6])))
        rotation = Rotation.from_rotvec(change[:3]) * turned
        shift = target_centre + change[3:6] - scale * rotation.apply(centre)
        return _similarity(scale, rotation, shift)

    def residuals(change: Array) -> Array:
        errors, slopes = _residuals(changed(change), sources, targets, level)
        return np.concatenate([errors.ravel(), slopes])

    return changed(least_squares(residuals, np.zeros(7)).x)
