import time

import numpy as np
import pytest
import scipy.io
import torch

from d2net.errors import FormatError, InputError, OutputError
from d2net.io.release import read_release, write_release

from . import workers
from .samples import make_features

SIZE = (640, 480)
pytestmark = pytest.mark.filterwarnings("error")


def arrays_of(n=5):
    return {
        "keypoints": np.ones((n, 3), np.float32),
        "scores": np.ones(n, np.float32),
        "descriptors": np.ones((n, 512), np.float32),
    }


def save_npz(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)


@pytest.mark.parametrize("format", ["npz", "mat"])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_features_come_back(tmp_path, format, n):
    path = tmp_path / "a.jpg.d2-net"
    features = make_features(n)
    write_release(path, features, format)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg.d2-net"]
    read = read_release(path, SIZE)
    for name in ("keypoints", "scores", "scales", "descriptors"):
        assert torch.equal(getattr(read, name), getattr(features, name)), name
    assert read.image_size == SIZE
    assert (read.uncertainty == 1).all()


def test_programs_made_for_the_release_read_ours(tmp_path):
    features = make_features(5).half()
    write_release(tmp_path / "a.d2-net", features)
    write_release(tmp_path / "b.d2-net", features, "mat")
    with np.load(tmp_path / "a.d2-net") as npz:
        assert npz["keypoints"].dtype == npz["descriptors"].dtype == np.float32
        assert npz["keypoints"].shape == (5, 3)
        assert npz["scores"].shape == (5,)
        assert npz["descriptors"].shape == (5, 8)
        assert np.array_equal(npz["keypoints"][:, 2], features.scales)
        mat = scipy.io.loadmat(str(tmp_path / "b.d2-net"), appendmat=False)
        for key in npz:
            assert np.array_equal(np.squeeze(mat[key]), npz[key])


@pytest.mark.parametrize("format", ["npz", "mat"])
def test_equal_features_give_equal_bytes(tmp_path, format):
    write_release(tmp_path / "a", make_features(), format)
    time.sleep(1.1)
    write_release(tmp_path / "b", make_features(), format)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("key", ["keypoints", "scores", "descriptors"])
def test_pickles_are_refused_and_not_executed(tmp_path, key):
    path = tmp_path / "a.d2-net"
    save_npz(path, **{**arrays_of(), key: np.array([Bomb()], object)})
    with pytest.raises(FormatError, match="pickled"):
        read_release(path, SIZE)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"keypoints": np.ones((5, 2))}, "'keypoints' must be N x 3, not 5 x 2"),
        ({"scores": np.ones(4)}, "'scores' must be 5, not 4"),
        ({"scores": np.ones((2, 5))}, "'scores' must be 5"),
        ({"descriptors": np.ones((512, 5))}, "'descriptors' must be 5 x D, not 512 x 5"),
        ({"descriptors": np.full((5, 512), np.nan)}, "'descriptors' contains NaN"),
        ({"descriptors": np.ones((5, 512), np.int64)}, "floating-point"),
        ({"descriptors": np.full((5, 512), "x")}, "floating-point"),
    ],
)
def test_wrong_arrays_are_one_sentence(tmp_path, changes, complaint):
    path = tmp_path / "a.d2-net"
    save_npz(path, **{**arrays_of(), **changes})
    with pytest.raises(FormatError, match=complaint) as caught:
        read_release(path, SIZE)
    assert str(path) in str(caught.value)


def test_arrays_that_are_missing_or_no_arrays(tmp_path):
    path = tmp_path / "a.d2-net"
    arrays = arrays_of()
    del arrays["scores"]
    save_npz(path, **arrays)
    with pytest.raises(FormatError, match="no array 'scores'"):
        read_release(path, SIZE)
    with path.open("wb") as file:
        scipy.io.savemat(file, {**arrays, "scores": {"a": 1}})
    with pytest.raises(FormatError, match="'scores' must be"):
        read_release(path, SIZE)


@pytest.mark.parametrize("format", ["npz", "mat"])
def test_damaged_files(tmp_path, format):
    path = tmp_path / "a.d2-net"
    write_release(path, make_features(), format)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 100, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_release(path, SIZE)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "a.d2-net"
    path.write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(FormatError, match="neither an npz nor a mat"):
        read_release(path, SIZE)
    with pytest.raises(InputError, match="cannot be read"):
        read_release(tmp_path, SIZE)
    with pytest.raises(InputError, match="cannot be read"):
        read_release(tmp_path / "missing", SIZE)


def test_a_format_that_does_not_exist_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="'npz' or 'mat', not 'h5'"):
        write_release(tmp_path / "a", make_features(), "h5")
    with pytest.raises(OutputError, match="does not exist"):
        write_release(tmp_path / "missing" / "a", make_features())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, processes):
    path = tmp_path / "a.d2-net"
    write_release(path, make_features(3))
    old = path.read_bytes()
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(
        target=workers.with_file_size_limit, args=(1000, sender, workers.write_release_of, path)
    )
    process.start()
    process.join(60)
    assert "the disk is full" in receiver.recv()
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.d2-net"]
