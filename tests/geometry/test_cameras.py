import numpy as np
import pycolmap
import pytest

from d2net.errors import InputError
from d2net.geometry.cameras import check_photo_size, project, rays


def test_a_point_projects_where_its_ray_starts_and_half_a_pixel_is_taken_off():
    lens = pycolmap.Camera(model="SIMPLE_RADIAL", width=80, height=60, params=[70, 40, 30, 0.1])
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.0, 0, 5]))
    points = np.array([[0.0, 0, 0], [1, -2, 3], [0, 0, -5], [0, 0, -6]])
    pixels = project(lens, np.asarray(pose * points))
    np.testing.assert_allclose(pixels[0], [39.5, 29.5])
    np.testing.assert_allclose(rays(lens, pixels[:2]), [[0, 0], [1 / 8, -2 / 8]], atol=1e-9)
    assert np.isnan(pixels[2:]).all()
    assert project(lens, np.empty((0, 3))).shape == (0, 2)


def test_a_photo_and_its_camera_have_the_same_size():
    lens = pycolmap.Camera(model="SIMPLE_PINHOLE", width=80, height=60, params=[70, 40, 30])
    check_photo_size("a.jpg", (80, 60), lens)
    with pytest.raises(InputError, match=r"a\.jpg has 60 x 80 pixels, but its camera 80 x 60"):
        check_photo_size("a.jpg", (60, 80), lens)
    lens.width = lens.height = 0  # unknown
    check_photo_size("a.jpg", (60, 80), lens)
