import numpy as np
import pycolmap

from d2net.geometry.cameras import project, rays


def test_a_point_projects_where_its_ray_starts_and_half_a_pixel_is_taken_off():
    lens = pycolmap.Camera(model="SIMPLE_RADIAL", width=80, height=60, params=[70, 40, 30, 0.1])
    pose = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([0.0, 0, 5]))
    points = np.array([[0.0, 0, 0], [1, -2, 3], [0, 0, -5], [0, 0, -6]])
    pixels = project(lens, pose, points)
    np.testing.assert_allclose(pixels[0], [39.5, 29.5])
    np.testing.assert_allclose(rays(lens, pixels[:2]), [[0, 0], [1 / 8, -2 / 8]], atol=1e-9)
    assert np.isnan(pixels[2:]).all()
    assert project(lens, pose, np.empty((0, 3))).shape == (0, 2)
