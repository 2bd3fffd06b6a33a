import numpy as np
import pycolmap
import pytest

from d2net.errors import FormatError, InputError
from d2net.io.poses import read_poses, write_poses

R = np.array([[0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, 0.96]])
POSE = pycolmap.Rigid3d(pycolmap.Rotation3d(R), np.array([1 / 3, -2, 1e-9]))


def test_poses_are_written_as_the_benchmark_wants_them_and_come_back(tmp_path):
    write_poses(tmp_path / "p.txt", {"query/night/a.jpg": POSE, "b.jpg": POSE.inverse()})
    name, *numbers = (tmp_path / "p.txt").read_text().splitlines()[0].split(" ")
    assert name == "a.jpg"
    w, x, y, z, *translation = map(float, numbers)
    # The world turned by the rotation about y that takes x to (0.96, 0, -0.28): w = cos, y = sin
    # of half of it.
    half = np.arcsin(0.28) / 2
    np.testing.assert_allclose([w, x, y, z], [np.cos(half), 0, np.sin(half), 0], atol=1e-12)
    assert translation == [1 / 3, -2, 1e-9]
    back = read_poses(tmp_path / "p.txt")
    assert list(back) == ["a.jpg", "b.jpg"]
    np.testing.assert_allclose(back["a.jpg"].matrix(), POSE.matrix(), atol=1e-15)


def test_names_with_spaces_and_equal_names_in_two_folders(tmp_path):
    names = ["day/a.jpg", "night/a.jpg", "WhatsApp Image 2024-01-01 at 10.00.00.jpeg"]
    write_poses(tmp_path / "p.txt", dict.fromkeys(names, POSE))
    assert list(read_poses(tmp_path / "p.txt")) == names
    with pytest.raises(InputError, match="line break"):
        write_poses(tmp_path / "p.txt", {"a\nb.jpg": POSE})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a.jpg 1 0 0 0 0 0\n", "line 1: expected"),
        ("a.jpg 1 0 0 0 0 0 x\n", "line 1: expected"),
        ("a.jpg 1 0 0 0 0 0 nan\n", "line 1: expected"),
        ("a.jpg 0 0 0 0 1 1 1\n", "line 1: expected"),
        ("a.jpg 1 0 0 0 0 0 0\na.jpg 1 0 0 0 0 0 0\n", "line 2: .*twice"),
    ],
)
def test_broken_lists_are_told(tmp_path, text, message):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(FormatError, match=message) as error:
        read_poses(tmp_path / "p.txt")
    assert "\n" not in str(error.value)
