import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from d2net.errors import FormatError, InputError, OutputError
from d2net.io.global_descriptors import GlobalDescriptorFile, write_global_descriptors

VECTORS = {
    "day 1/ü b.jpg": np.array([0, 1, 0, 0], np.float16),
    "a.jpg": np.array([1, 0, 0, 0], np.float16),
}
CODEBOOK = np.arange(64 * 512, dtype=np.float32).reshape(64, 512)  # more than HDF5's old 64 KB


@pytest.fixture
def path(tmp_path):
    write_global_descriptors(tmp_path / "g.h5", VECTORS, CODEBOOK, {"method": "some"})
    return tmp_path / "g.h5"


def test_what_was_written_is_read(path):
    with GlobalDescriptorFile(path) as file:
        names, vectors = file.read()
        assert names == ("a.jpg", "day 1/ü b.jpg")
        assert_array_equal(vectors, [VECTORS[name] for name in names])
        assert vectors.dtype == np.float16
        assert_array_equal(file.read_codebook(), CODEBOOK)
        assert file.settings == {"method": "some"}


def hloc_names(path):
    """As hloc's `list_h5_names`: the groups of all datasets."""
    names = []
    with h5py.File(path, "r", libver="latest") as file:
        file.visititems(
            lambda _, found: (
                names.append(found.parent.name.strip("/"))
                if isinstance(found, h5py.Dataset)
                else None
            )
        )
    return sorted(set(names))


def test_hloc_sees_photos_and_nothing_else(path):
    assert hloc_names(path) == sorted(VECTORS)
    with h5py.File(path) as file:
        assert file["a.jpg"]["global_descriptor"].shape == (4,)


def test_a_file_of_hloc_is_read_but_has_no_codebook(tmp_path):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        group = file.create_group("db/a.jpg")
        group["global_descriptor"] = np.ones(6, np.float32)
        group["image_size"] = np.array([640, 480])
    with GlobalDescriptorFile(tmp_path / "g.h5") as file:
        assert file.read()[0] == ("db/a.jpg",)
        with pytest.raises(FormatError, match="no array 'codebook'"):
            file.read_codebook()


def test_vectors_of_different_lengths(tmp_path):
    vectors = {"a": np.ones(3, np.float16), "b": np.ones(4, np.float16)}
    write_global_descriptors(tmp_path / "g.h5", vectors, CODEBOOK, {})
    with (
        GlobalDescriptorFile(tmp_path / "g.h5") as file,
        pytest.raises(FormatError, match=r"different lengths \(3 and 4\)"),
    ):
        file.read()


def test_other_files(tmp_path):
    (tmp_path / "g.h5").write_text("no HDF5")
    with pytest.raises(FormatError, match="not an HDF5 file"):
        GlobalDescriptorFile(tmp_path / "g.h5")
    with pytest.raises(InputError, match="cannot be opened"):
        GlobalDescriptorFile(tmp_path / "none.h5")


def test_an_error_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(InputError, match="cannot name a photo"):
        write_global_descriptors(path, {"../a": np.ones(3)}, CODEBOOK, {})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["g.h5"]
    with pytest.raises(OutputError, match="does not exist"):
        write_global_descriptors(path.parent / "no" / "g.h5", VECTORS, CODEBOOK, {})
