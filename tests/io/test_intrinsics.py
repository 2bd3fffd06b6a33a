import pytest

from d2net.errors import FormatError, InputError
from d2net.io.intrinsics import read_intrinsics


def test_cameras_are_read_as_the_benchmarks_write_them(tmp_path):
    (tmp_path / "q.txt").write_text(
        "# comment\nquery/day/a.jpg SIMPLE_RADIAL 1600 1200 1469.2 800 600 -0.0353\n\n"
        "my query 2.jpg OPENCV 10 20 1 2 3 4 0.1 0.2 0.3 0.4\n"
    )
    cameras = read_intrinsics(tmp_path / "q.txt")
    assert list(cameras) == ["query/day/a.jpg", "my query 2.jpg"]
    first = cameras["query/day/a.jpg"]
    assert (first.model_name, first.width, first.height) == ("SIMPLE_RADIAL", 1600, 1200)
    assert list(first.params) == [1469.2, 800, 600, -0.0353]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a.jpg\n", "line 1: expected name CAMERA_MODEL"),
        ("a.jpg pinhole 10 10 1 1 5 5\n", "expected name CAMERA_MODEL"),
        (
            "a.jpg PINHOLE 10 10 1 1 5\n",
            "PINHOLE takes the parameters fx, fy, cx, cy, not 3",
        ),
        ("a.jpg PINHOLE 10 ten 1 1 5 5\n", "expected name"),
        (
            "a.jpg SIMPLE_PINHOLE 10 10 0 5 5\n",
            "positive focal length, not 0, 5, 5",
        ),
        ("a.jpg SIMPLE_PINHOLE 10 10 nan 5 5\n", "expected name"),
        ("a.jpg SIMPLE_PINHOLE 10 10 -9 5 5\n", "positive focal length, not -9, 5, 5"),
        ("a.jpg SIMPLE_PINHOLE 10 10 9 5 50\n", "9, 5, 50 is outside a photo of 10 x 10"),
        ("a.jpg INVALID 10 10 1\n", "no camera model 'INVALID'"),
        ("../a.jpg SIMPLE_PINHOLE 10 10 9 5 5\n", "cannot name a photo"),
        ("a SIMPLE_PINHOLE 10 10 9 5 5\na SIMPLE_PINHOLE 10 10 9 5 5\n", "line 2: .* occurs twice"),
    ],
)
def test_broken_lists_are_told(tmp_path, text, message):
    (tmp_path / "q.txt").write_text(text)
    with pytest.raises(FormatError, match=message) as error:
        read_intrinsics(tmp_path / "q.txt")
    assert "\n" not in str(error.value)


def test_names_that_a_list_would_misread_have_a_dot_and_a_slash_in_front(tmp_path):
    names = [" b  c.jpg", "#a.jpg"]
    lines = [f"./{name} SIMPLE_PINHOLE 10 10 9 5 5\n" for name in names]
    (tmp_path / "q.txt").write_text("".join(lines))
    assert list(read_intrinsics(tmp_path / "q.txt")) == names


def test_a_missing_list_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_intrinsics(tmp_path / "q.txt")
    (tmp_path / "q.txt").write_bytes(b"\xff\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        read_intrinsics(tmp_path / "q.txt")
