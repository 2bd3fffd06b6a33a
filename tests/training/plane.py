"""A textured plane seen by cameras with known poses: photos, depth and tracks, all exact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
from PIL import Image

from ..tiny import DATA

SIZE = (160, 128)
UNREDUCED = (240, 192)
"""Photos of which `undistorted` planes show the undistorted version, made smaller."""
NAMES = ("a.png", "b.png", "c.png", "d.png")
_CENTRES = ((0.0, 0.0, -4.0), (0.5, 0.1, -4.2), (-0.4, -0.2, -3.8), (0.2, 0.3, -4.5))
_TURNS = ((0.0, 0.0, 0.0), (0.02, -0.12, 0.05), (-0.05, 0.1, -0.03), (0.06, -0.05, 0.1))
_PIXELS_PER_UNIT = 130  # of the texture


def camera(model: str = "SIMPLE_RADIAL", size: tuple[int, int] = SIZE) -> pycolmap.Camera:
    width, height = size
    params = {
        "SIMPLE_RADIAL": [1.1 * width, width / 2, height / 2, -0.12],
        "PINHOLE": [1.1 * width, 1.1 * width, width / 2, height / 2],
        "OPENCV": [1.1 * width, 1.05 * width, width / 2, height / 2, -0.1, 0.02, 0.002, -0.001],
    }[model]
    return pycolmap.Camera(model=model, width=width, height=height, params=params, camera_id=1)


def pose(number: int) -> pycolmap.Rigid3d:
    """cam_from_world: the world's plane is z = 0, and cameras look along +z."""
    rotation = cv2.Rodrigues(np.array(_TURNS[number]))[0]
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ _CENTRES[number])


def on_plane(camera: pycolmap.Camera, number: int, pixels: np.ndarray) -> np.ndarray:
    """N x 3 world points that N x 2 pixels (centres at integers) see."""
    rays = np.hstack([camera.cam_from_img(pixels + 0.5), np.ones((len(pixels), 1))])
    matrix = pose(number).matrix()
    directions, centre = rays @ matrix[:, :3], -matrix[:, :3].T @ matrix[:, 3]
    return centre - directions * (centre[2] / directions[:, 2])[:, None]


def seen(camera: pycolmap.Camera, number: int, points: np.ndarray) -> np.ndarray:
    """N x 2 pixels of N x 3 world points."""
    matrix = pose(number).matrix()
    return camera.img_from_cam(points @ matrix[:, :3].T + matrix[:, 3]) - 0.5


def depth_of(number: int, points: np.ndarray) -> np.ndarray:
    matrix = pose(number).matrix()
    return points @ matrix[2, :3] + matrix[2, 3]


@dataclass(frozen=True)
class Plane:
    """The scene as one camera model sees it."""

    model: str = "SIMPLE_RADIAL"
    size: tuple[int, int] = SIZE
    undistorted: bool = False

    @property
    def camera(self) -> pycolmap.Camera:
        if not self.undistorted:
            return camera(self.model, self.size)
        options = pycolmap.UndistortCameraOptions()
        options.max_image_size = max(self.size)
        flat = pycolmap.undistort_camera(options, camera(self.model, UNREDUCED))
        flat.camera_id = 1
        assert (flat.width, flat.height) == self.size
        return flat

    def _pixels(self) -> np.ndarray:
        columns, rows = np.meshgrid(np.arange(self.size[0]), np.arange(self.size[1]))
        return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)

    def photo(self, number: int) -> np.ndarray:
        texture = np.asarray(Image.open(DATA / "graf1.jpg").convert("RGB"))
        height, width = texture.shape[:2]
        points = on_plane(self.camera, number, self._pixels())
        places = points[:, :2] * _PIXELS_PER_UNIT + (width / 2, height / 2)
        maps = places.astype(np.float32).reshape(self.size[1], self.size[0], 2)
        return cv2.remap(texture, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    def depth(self, number: int) -> np.ndarray:
        points = on_plane(self.camera, number, self._pixels())
        return depth_of(number, points).reshape(self.size[::-1]).astype(np.float32)

    def carried(self, a: int, b: int, pixels: np.ndarray) -> np.ndarray:
        """Where photo b shows what photo a shows at N x 2 pixels."""
        return seen(self.camera, b, on_plane(self.camera, a, pixels))

    def reconstruction(
        self, names: tuple[str, ...] = NAMES, points: int = 400
    ) -> pycolmap.Reconstruction:
        """COLMAP's model with random points on the plane."""
        rng = np.random.default_rng(0)
        world = np.hstack(
            [rng.uniform((-1.6, -1.3), (1.6, 1.3), (points, 2)), np.zeros((points, 1))]
        )
        model = pycolmap.Reconstruction()
        model.add_camera_with_trivial_rig(self.camera)
        tracks = [pycolmap.Track() for _ in range(points)]
        for number, name in enumerate(names):
            pixels = seen(self.camera, number, world)
            inside = np.flatnonzero(
                ((pixels >= 0) & (pixels <= np.array(self.size) - 1)).all(axis=1)
            )
            image = pycolmap.Image(
                name=name, keypoints=pixels[inside] + 0.5, camera_id=1, image_id=number + 1
            )
            model.add_image_with_trivial_frame(image, pose(number))
            for row, point in enumerate(inside):
                tracks[point].add_element(number + 1, row)
        for xyz, track in zip(world, tracks, strict=True):
            if track.length() >= 2:
                model.add_point3D(xyz, track)
        return model

    def write(self, folder: Path, names: tuple[str, ...] = NAMES) -> Path:
        """Photos in `images` and the model in `sparse`."""
        (folder / "images").mkdir(parents=True)
        (folder / "sparse").mkdir()
        for number, name in enumerate(names):
            Image.fromarray(self.photo(number)).save(folder / "images" / name)
        self.reconstruction(names).write_binary(folder / "sparse")
        return folder


def write_depth_h5(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["depth"] = depth


def write_depth_png(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(1000 * depth).astype(np.uint16)).save(path)


def write_depth_colmap(path: Path, depth: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pycolmap.DepthMap.from_array(depth, 0.1, 100.0).write(path)
