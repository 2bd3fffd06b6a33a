import numpy as np
import pycolmap
import pytest

from d2net.errors import FormatError
from d2net.io.nvm import read_nvm

from .nvm import write_nvm


@pytest.fixture
def model():
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 5, 1, 30
    pycolmap.set_random_seed(0)
    return pycolmap.synthesize_dataset(options)


@pytest.fixture
def files(tmp_path, model):
    write_nvm(tmp_path / "m.nvm", tmp_path / "i.txt", model)
    return tmp_path / "m.nvm", tmp_path / "i.txt"


def test_cameras_poses_and_who_sees_which_point(files, model):
    read = read_nvm(*files)
    assert read.num_points3D() == 30
    for image in model.images.values():
        same = read.find_image_with_name(image.name)
        np.testing.assert_allclose(
            same.cam_from_world().matrix(), image.cam_from_world().matrix(), atol=1e-12
        )
        np.testing.assert_array_equal(same.camera.params, model.cameras[image.camera_id].params)
        assert same.num_points3D == image.num_points3D
    points = [read.points3D[i] for i in sorted(read.points3D)]
    for point, same in zip(model.points3D.values(), points, strict=True):
        np.testing.assert_allclose(same.xyz, point.xyz)
        assert same.color.tolist() == point.color.tolist()
        for element in same.track.elements:
            image = read.images[element.image_id]
            expected = next(
                model.find_image_with_name(image.name).points2D[e.point2D_idx].xy
                for e in point.track.elements
                if model.images[e.image_id].name == image.name
            )
            np.testing.assert_allclose(image.points2D[element.point2D_idx].xy, expected)


def change(files, old, new):
    text = files[0].read_text()
    assert old in text
    files[0].write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("NVM_V3", "NVM_V2", "does not begin with NVM_V3"),
        ("NVM_V3\n\n5\n", "NVM_V3\n\nfive\n", "line 3: expected the number of cameras"),
        ("NVM_V3\n\n5\n", "NVM_V3\n\n0\n", "contains no cameras"),
        ("NVM_V3\n\n5\n", "NVM_V3\n\n4\n", "expected the number of points"),
        ("\n\n30\n", "\n\n31\n", "lacks its position"),
        (" 0 0\n", "\n", "lacks its focal length"),
    ],
)
def test_broken_models_are_told(files, old, new, message):
    change(files, old, new)
    with pytest.raises(FormatError, match=message) as error:
        read_nvm(*files)
    assert "\n" not in str(error.value)


def test_a_photo_without_intrinsics_is_told(files):
    first, rest = files[1].read_text().split("\n", 1)
    files[1].write_text(rest)
    with pytest.raises(FormatError, match=f"no camera for the photo {first.split()[0]}"):
        read_nvm(*files)


def test_a_point_seen_in_no_photo_of_the_model_is_told(files):
    lines = files[0].read_text().split("\n")
    words = lines[lines.index("30") + 1].split()
    words[7] = "5"
    lines[lines.index("30") + 1] = " ".join(words)
    files[0].write_text("\n".join(lines))
    with pytest.raises(FormatError, match="a photo that the model does not have"):
        read_nvm(*files)


def test_a_model_that_was_cut_off_is_told(files):
    text = files[0].read_text()
    files[0].write_text(text[: text.index("\n\n30\n") + 5])
    with pytest.raises(FormatError, match="ends after 0 of 30 points"):
        read_nvm(*files)
