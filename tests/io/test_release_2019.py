import time

import numpy as np
import pytest
import scipy.io

from d2net.io.release_2019 import write_release

from . import workers
from .samples import make_features

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("format", ["npz", "mat"])
@pytest.mark.parametrize("n", [0, 1, 30])
def test_features_come_back(tmp_path, format, n):
    path = tmp_path / "a.jpg.d2-net"
    features = make_features(n)
    write_release(path, features, format)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg.d2-net"]
    arrays = dict(np.load(path)) if format == "npz" else scipy.io.loadmat(path, appendmat=False)
    np.testing.assert_array_equal(arrays["keypoints"][:, :2], features.keypoints)
    np.testing.assert_array_equal(arrays["keypoints"][:, 2], features.scales)
    np.testing.assert_array_equal(arrays["scores"].reshape(-1), features.scores)
    np.testing.assert_array_equal(arrays["descriptors"], features.descriptors)


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
