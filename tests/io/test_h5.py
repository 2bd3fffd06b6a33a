"""hloc's layout: what we write, what hloc writes, and what neither of them wrote."""

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2net.errors import FormatError, InputError, OutputError
from d2net.features import Matches
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile, MatchWriter

from ..tiny import default_type
from .samples import as_set, assert_same_features, make_features, make_matches

SETTINGS = {"version": "1.0", "weights": {"name": "ots", "sha256": "ab" * 32}, "multiscale": False}


def write(path, photos, made_with=SETTINGS):
    with FeatureWriter(path, made_with) as writer:
        for name, features in photos.items():
            writer.add(name, features)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.h5"


# What we write


def test_closed_files_say_so(tmp_path):
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.add("a", make_features())
    with MatchWriter(tmp_path / "m.h5", {}) as writer:
        writer.add("a", "b", make_matches(), 20)
    with FeatureFile(tmp_path / "f.h5") as features, MatchFile(tmp_path / "m.h5") as matches:
        pass
    for use in (
        lambda: features["a"],
        lambda: "a" in features,
        lambda: len(features),
        lambda: matches.get("a", "b"),
        lambda: ("a", "b") in matches,
    ):
        with pytest.raises(InputError, match="is closed"):
            use()


def test_features_come_back_as_they_were(path):
    photos = {
        "b/night.jpg": make_features(30, seed=1),
        "a.png": make_features(7, seed=2).half(),
        "b/empty.png": make_features(0),
        "c/d/one.tif": make_features(1, seed=3, image_size=(20000, 40)),
    }
    write(path, photos)
    with FeatureFile(path) as file:
        assert tuple(file) == ("a.png", "b/empty.png", "b/night.jpg", "c/d/one.tif")
        assert file.settings == SETTINGS
        assert set(file) == set(photos)
        for name, features in photos.items():
            assert_same_features(file[name], features)


def test_hloc_finds_what_it_expects(path):
    """The layout as hloc's own readers use it."""
    features = make_features(9, dimension=512)
    write(path, {"night/a.jpg": features, "b.jpg": make_features(0, dimension=512)})
    with h5py.File(path, "r", libver="latest") as file:
        group = file["night/a.jpg"]
        assert group["keypoints"].dtype == np.float32
        assert group["keypoints"].shape == (9, 2)
        assert group["descriptors"].shape == (512, 9)
        assert group["scores"].shape == (9,)
        assert tuple(group["image_size"]) == (640, 480)
        for dataset in group.values():  # hloc's matchers make a float tensor of every one
            torch.from_numpy(dataset.__array__()).float()
        assert group["keypoints"].attrs.get("uncertainty") == features.uncertainty.median()
        assert file["b.jpg"]["keypoints"].attrs["uncertainty"] == 1
        assert file["b.jpg"]["descriptors"].shape == (512, 0)


def test_keypoints_of_large_photos_keep_their_precision(path):
    """Half precision is 2 px wrong at 4000 px."""
    features = make_features(500, image_size=(8000, 6000)).half()
    write(path, {"a": features})
    with FeatureFile(path) as file:
        assert torch.equal(file["a"].keypoints, features.keypoints)


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=20
)
paths = st.lists(names.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map(
    "/".join
)


@settings(max_examples=12, deadline=None)
@given(st.sets(paths, min_size=1, max_size=4), st.integers(0, 5), st.integers(1, 9))
def test_any_name_that_a_photo_can_have(tmp_path_factory, chosen, n, dimension):
    folders = {name[:i] for name in chosen for i, c in enumerate(name) if c == "/"}
    photos = {name: make_features(n, i, dimension) for i, name in enumerate(chosen - folders)}
    path = write(tmp_path_factory.mktemp("names") / "features.h5", photos)
    with FeatureFile(path) as file:
        assert set(file) == set(photos)
        for name, features in photos.items():
            assert_same_features(file[name], features)


@settings(max_examples=12, deadline=None)
@given(st.lists(paths, min_size=2, max_size=2, unique=True), st.integers(0, 5), st.integers(0, 5))
def test_any_pair_of_names(tmp_path_factory, pair, k, extra):
    path = tmp_path_factory.mktemp("names") / "matches.h5"
    matches = make_matches(k, num0=k + extra)
    with MatchWriter(path, {}) as writer:
        writer.add(*pair, matches, k + extra)
    with MatchFile(path) as file:
        assert file.pairs == [tuple(pair)]
        assert as_set(file.get(*pair)) == as_set(matches)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "a//b", "a/", "./a", "../a", "a/../b", "a\0b", "a\udcff.jpg"]
)
def test_names_that_no_photo_can_have(path, name):
    with pytest.raises(InputError, match="cannot name a photo"):
        write(path, {name: make_features()})
    write(path, {"a": make_features()})
    with FeatureFile(path) as file:
        assert name not in file
        with pytest.raises(InputError):
            file[name]


def test_a_name_that_python_misreads_is_not_called_invalid(path, monkeypatch):
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    misread = "é.jpg".encode().decode("ascii", "surrogateescape")
    with pytest.raises(InputError, match="as ascii here; set PYTHONUTF8=1"):
        write(path, {misread: make_features()})


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b/c", "a"), ("a/b/c", "a/b")])
def test_a_photo_named_like_another_ones_folder(path, first, second):
    with FeatureWriter(path, SETTINGS) as writer:
        writer.add(first, make_features())
        with pytest.raises(InputError, match="is the folder of another"):
            writer.add(second, make_features())
    with FeatureFile(path) as file:
        assert tuple(file) == (first,)


@pytest.mark.parametrize("folder", ["keypoints", "scene/keypoints", "scene/scores/keypoints"])
def test_a_folder_of_photos_that_is_named_like_a_dataset(path, folder):
    names = {f"{folder}/a.jpg", f"{folder}/b.jpg", "c.jpg"}
    with FeatureWriter(path, SETTINGS) as writer:
        for name in names:
            writer.add(name, make_features())
    with FeatureFile(path) as file:
        assert set(file) == names
        assert "scene" not in file
        assert len(file[f"{folder}/a.jpg"]) == len(make_features())


def test_the_same_photo_twice_is_refused(path):
    with FeatureWriter(path, SETTINGS) as writer:
        writer.add("a", make_features())
        with pytest.raises(InputError, match="already"):
            writer.add("a", make_features(seed=1))


@pytest.mark.parametrize("key", ["keypoints", "scores", "descriptors"])
def test_nan_is_not_written(path, key):
    features = make_features()
    getattr(features, key)[3] = torch.nan
    with FeatureWriter(path, SETTINGS) as writer:
        with pytest.raises(InputError, match=f"the {key} of 'a' contain NaN"):
            writer.add("a", features)
        assert not writer.done()


# Going on with a file


def test_adding_to_a_file_is_as_if_written_at_once(path, tmp_path):
    photos = {f"{i}.jpg": make_features(seed=i) for i in range(5)}
    write(path, dict(list(photos.items())[:2]))
    with FeatureWriter(path, SETTINGS) as writer:
        assert writer.done() == {"0.jpg", "1.jpg"}
        for name in list(photos)[2:]:
            writer.add(name, photos[name])
        assert writer.done() == set(photos)
    assert path.read_bytes() == write(tmp_path / "once.h5", photos).read_bytes()


def test_a_writer_may_be_used_again_and_by_threads(path):
    writer = FeatureWriter(path, SETTINGS)
    for name in ("a.jpg", "b.jpg"):
        with writer, ThreadPoolExecutor() as pool:
            pool.submit(writer.add, name, make_features(5, 4)).result()
    with FeatureFile(path) as file:
        assert file.entries() == ("a.jpg", "b.jpg")
    path.unlink()
    with writer:
        writer.add("c.jpg", make_features(5, 4))
    with FeatureFile(path) as file:
        assert file.entries() == ("c.jpg",)


def test_a_writer_of_matches_may_be_used_again(path):
    writer = MatchWriter(path, SETTINGS)
    for _ in range(2):
        with writer:
            writer.add("a.jpg", "b.jpg", make_matches(5), 20)
        path.unlink()


def test_a_finished_run_started_again_touches_nothing(path):
    write(path, {"a": make_features()})
    before = path.stat()
    write(path, {})
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino


def test_an_error_in_the_run_keeps_what_was_done_and_the_old_file(path):
    write(path, {"a": make_features()})
    old = path.read_bytes()
    with pytest.raises(ZeroDivisionError), FeatureWriter(path, SETTINGS) as writer:
        writer.add("b", make_features())
        raise ZeroDivisionError
    assert path.read_bytes() == old
    with FeatureWriter(path, SETTINGS) as writer:
        assert writer.done() == {"a", "b"}
    with FeatureFile(path) as file:
        assert tuple(file) == ("a", "b")


def test_a_run_that_found_nothing_leaves_an_empty_file_that_can_be_read(path):
    write(path, {})
    with FeatureFile(path) as file:
        assert tuple(file) == ()
        assert file.settings == SETTINGS


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(path, finished):
    if finished:
        write(path, {"a": make_features()})
    else:
        with pytest.raises(ZeroDivisionError), FeatureWriter(path, SETTINGS) as writer:
            writer.add("a", make_features())
            raise ZeroDivisionError
    others = {"version": "1.0", "weights": {"name": "tf"}, "multiscale": True}
    with pytest.raises(OutputError) as caught:
        write(path, {"b": make_features()}, others)
    message = str(caught.value)
    assert "multiscale was False, is now True" in message
    assert "weights.name was 'ots', is now 'tf'" in message
    assert "weights.sha256" in message
    assert "version" not in message
    with FeatureWriter(path, SETTINGS) as writer:
        assert writer.done() == {"a"}


def test_settings_that_json_cannot_hold_are_refused(path):
    with pytest.raises(InputError, match="JSON"):
        FeatureWriter(path, {"weights": path})
    with pytest.raises(InputError, match="JSON"):
        FeatureWriter(path, {"threshold": float("nan")})


def test_long_settings_are_kept(path):
    made_with = {f"key {i}": "x" * 100 for i in range(2000)}
    write(path, {"a": make_features()}, made_with)
    with FeatureFile(path) as file:
        assert file.settings == made_with


def test_files_of_others_are_not_added_to(path):
    path.write_text("my thesis")
    with pytest.raises(OutputError, match="not an HDF5 file"):
        write(path, {"a": make_features()})
    assert path.read_text() == "my thesis"
    as_hloc(path)
    with pytest.raises(OutputError, match="was not written by d2net"):
        write(path, {"a": make_features()})


def test_a_writer_is_used_in_a_with_block(path):
    with pytest.raises(InputError, match="`with` block"):
        FeatureWriter(path, {}).add("a", make_features())


# What hloc writes


def as_hloc(path, name="a/b.jpg", n=20, **changes):
    """A file as hloc's extraction writes it by default, with some datasets changed or removed."""
    features = make_features(n)
    datasets = {
        "keypoints": features.keypoints.numpy().astype(np.float16),
        "scores": features.scores.numpy().astype(np.float16),
        "descriptors": features.descriptors.numpy().T.astype(np.float16),
        "image_size": np.array([640, 480]),
    }
    datasets.update(changes)
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group(name)
        for key, value in datasets.items():
            if value is not None:
                group.create_dataset(key, data=value)
        if "keypoints" in group:
            group["keypoints"].attrs["uncertainty"] = np.float32(2.5)
    return path


def test_hlocs_half_precision_files_are_read(path):
    with FeatureFile(as_hloc(path)) as file:
        assert tuple(file) == ("a/b.jpg",)
        assert file.settings is None
        features = file["a/b.jpg"]
    expected = make_features(20)
    assert features.keypoints.dtype == torch.float32
    assert torch.allclose(features.keypoints, expected.keypoints, atol=0.25)
    assert features.descriptors.dtype == torch.float16
    assert torch.equal(features.descriptors, expected.descriptors.half())
    assert features.image_size == (640, 480)
    assert (features.scales == 1).all()
    assert (features.uncertainty == 2.5).all()


def test_scores_that_are_missing_are_one(path):
    with FeatureFile(as_hloc(path, scores=None)) as file:
        assert (file["a/b.jpg"].scores == 1).all()


def test_double_precision_is_read_as_single(path):
    with FeatureFile(as_hloc(path, descriptors=np.ones((8, 20)))) as file:
        assert file["a/b.jpg"].descriptors.dtype == torch.float32


def test_what_other_programs_add_is_ignored(path, matches_path):
    """deep-image-matching adds texts, for example."""
    as_hloc(path, im_path="photos/a.jpg", empty=h5py.Empty("f4"))
    matches_as_hloc(matches_path, [("a", "b")])
    for file, entry in ((path, "a/b.jpg"), (matches_path, "a/b")):
        with h5py.File(file, "a") as opened:
            opened[entry].create_dataset("more/numbers", data=np.zeros(3))
            opened[entry]["time"] = 0.5
    with h5py.File(path, "a") as opened:
        opened["a/b.jpg/keypoints"].attrs["uncertainty"] = 2
    with FeatureFile(path) as file:
        assert list(file) == ["a/b.jpg"]
        assert len(file["a/b.jpg"]) == 20
        assert (file["a/b.jpg"].uncertainty == 2).all()
    with MatchFile(matches_path) as file:
        assert len(file.get("a", "b")) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_missing_numbers_whatever_torchs_default_type_is(path, matches_path, dtype):
    as_hloc(path, scores=None)
    with h5py.File(matches_path, "w") as file:
        file.create_dataset("a/b/matches0", data=np.array([-1, 3]))
    with default_type(dtype), FeatureFile(path) as features, MatchFile(matches_path) as matches:
        assert (features["a/b.jpg"].scales == 1).all()
        assert matches.get("a", "b").scores.tolist() == [1]


# What nobody should have written


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"keypoints": np.zeros((20, 3), "f4")}, "'keypoints' must be N x 2, not 20 x 3"),
        ({"keypoints": np.zeros(20, "f4")}, "'keypoints' must be N x 2, not 20"),
        ({"keypoints": np.zeros((19, 2), "f4")}, "'descriptors' must be D x 19, not 8 x 20"),
        ({"keypoints": np.full((20, 2), np.nan)}, "'keypoints' contains NaN"),
        ({"keypoints": np.full((20, 2), 1e300)}, "'keypoints' contains NaN or infinity"),
        ({"keypoints": np.zeros((20, 2), "S8")}, "'keypoints' must be N x 2 floating"),
        ({"keypoints": 3.0}, "'keypoints' must be N x 2, not a single number"),
        ({"descriptors": np.zeros((20, 8), "f4")}, "'descriptors' must be D x 20, not 20 x 8"),
        ({"descriptors": None}, "there is no array 'descriptors'"),
        ({"descriptors": np.full((8, 20), np.inf)}, "'descriptors' contains NaN"),
        ({"descriptors": np.zeros((8, 20), complex)}, "'descriptors' must be D x 20 floating"),
        ({"scores": np.zeros(7, "f4")}, "'scores' must be 20, not 7"),
        ({"scores": np.void(pickle.dumps([1, 2]))}, "'scores' must be 20 floating"),
        ({"scores": np.array(["x"] * 20, object)}, "'scores' must be 20 floating"),
        ({"image_size": None}, "'image_size' must be"),
        ({"image_size": np.array([0, 480])}, "'image_size' must be"),
        ({"image_size": np.array([640, 480, 3])}, "'image_size' must be"),
    ],
)
def test_wrong_arrays_are_one_sentence_naming_file_photo_and_fault(path, changes, complaint):
    with FeatureFile(as_hloc(path, **changes)) as file, pytest.raises(FormatError) as caught:
        file["a/b.jpg"]
    message = str(caught.value)
    assert complaint in message
    assert str(path) in message
    assert "'a/b.jpg'" in message
    assert "\n" not in message


def test_files_that_are_not_features(path, tmp_path):
    with pytest.raises(InputError, match="No such file"):
        FeatureFile(path)
    with pytest.raises(InputError, match="cannot be opened"):
        FeatureFile(tmp_path)
    for content in [b"", b"PK\3\4 an npz", b"\x89HDF\r\n\x1a\n", bytes(5000)]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match="not an HDF5 file or is damaged"):
            FeatureFile(path)
    with h5py.File(path, "w") as file:
        file.create_dataset("a/global_descriptor", data=np.zeros(5))
    with FeatureFile(path) as file, pytest.raises(FormatError, match="contains no features"):
        list(file)
    for wrong in ["{", "[1]", np.zeros(3)]:
        with h5py.File(path, "w") as file:
            file.attrs["d2net"] = wrong
        with pytest.raises(FormatError, match="damaged"):
            FeatureFile(path)


def test_a_photo_that_is_not_there(path):
    write(path, {"a/b.jpg": make_features()})
    with FeatureFile(path) as file:
        assert "a" not in file
        assert "a/b.jpg/keypoints" not in file
        assert file.get("c.jpg") is None
        with pytest.raises(InputError) as caught:
            file["c.jpg"]
    assert str(caught.value) == f"{path} contains no features of 'c.jpg'."


def test_damaged_files_give_one_of_our_errors_or_features(path):
    write(path, {f"{i}/a.jpg": make_features(seed=i) for i in range(4)})
    whole = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        if chance.random() < 0.3:
            del damaged[chance.randrange(len(damaged)) :]
        for _ in range(chance.randrange(1, 20)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            with FeatureFile(path) as file:
                for name in file:
                    assert len(file[name]) >= 0
        except (FormatError, InputError):
            refused += 1
    assert refused > 20


# Matches


@pytest.fixture
def matches_path(tmp_path):
    return tmp_path / "matches.h5"


def test_matches_come_back_in_both_orders(matches_path):
    matches = make_matches(k=6, num0=10, num1=50)
    with MatchWriter(matches_path, SETTINGS) as writer:
        writer.add("night/a.jpg", "day/b.jpg", matches, 10)
        writer.add("a", "b", Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)), 0)
    with MatchFile(matches_path) as file:
        assert file.pairs == [("a", "b"), ("night/a.jpg", "day/b.jpg")]
        assert file.settings == SETTINGS
        assert as_set(file.get("night/a.jpg", "day/b.jpg")) == as_set(matches)
        swapped = file.get("day/b.jpg", "night/a.jpg")
        assert as_set(swapped) == {(j, i, s) for i, j, s in as_set(matches)}
        rows = swapped.indices[:, 0].tolist()
        assert rows == sorted(rows)  # RANSAC must not depend on the order in which they were stored
        assert len(file.get("a", "b")) == 0
        assert ("b", "a") in file
        assert ("a", "c") not in file
        with pytest.raises(InputError, match="no matches of 'a' and 'c'"):
            file.get("a", "c")


def test_hloc_finds_matches_where_it_looks(matches_path):
    with MatchWriter(matches_path, {}) as writer:
        writer.add("q/a.jpg", "db/x/b.jpg", Matches(torch.tensor([[1, 7]]), torch.tensor([0.5])), 3)
    with h5py.File(matches_path, "r", libver="latest") as file:
        group = file["q-a.jpg/db-x-b.jpg"]
        assert group["matches0"].__array__().tolist() == [-1, 7, -1]
        assert group["matching_scores0"].__array__().tolist() == [0, 0.5, 0]


def test_more_keypoints_than_sixteen_bits_hold(matches_path):
    n = 40_000
    rows = torch.arange(n)
    matches = Matches(torch.stack([rows, rows.flip(0)], dim=1), torch.rand(n))
    with MatchWriter(matches_path, {}) as writer:
        writer.add("a", "b", matches, n)
    with MatchFile(matches_path) as file:
        assert torch.equal(file.get("a", "b").indices, matches.indices)


def test_of_verified_matches_the_inliers_are_kept(matches_path):
    matches = make_matches(k=4)
    inliers = torch.tensor([True, False, True, False])
    verified = Matches(matches.indices, matches.similarity, inliers, "homography")
    with MatchWriter(matches_path, {}) as writer:
        writer.add("a", "b", verified, 20)
    with MatchFile(matches_path) as file:
        assert as_set(file.get("a", "b")) == as_set(verified.verified())


@pytest.mark.parametrize("rows", [[[0, 1], [0, 2]], [[20, 1]], [[-1, 1]], [[1, -1]]], ids=str)
def test_matches_that_do_not_fit_are_refused(matches_path, rows):
    matches = Matches(torch.tensor(rows), torch.ones(len(rows)))
    with MatchWriter(matches_path, {}) as writer:
        with pytest.raises(InputError, match="the matches of 'a' and 'b'"):
            writer.add("a", "b", matches, 20)
        assert not writer.done()


def test_matches_with_nan_are_refused(matches_path):
    matches = Matches(torch.tensor([[0, 1], [1, 2]]), torch.tensor([1.0, torch.nan]))
    with MatchWriter(matches_path, {}) as writer:
        with pytest.raises(InputError, match="NaN"):
            writer.add("a", "b", matches, 20)
        assert not writer.done()


def test_the_orientation_of_other_settings_is_upright(path):
    with FeatureWriter(path, {"extraction": "sift"}):
        pass
    with FeatureFile(path) as file:
        assert file.upright


def test_a_pair_is_written_once(matches_path):
    with MatchWriter(matches_path, {}) as writer:
        writer.add("x/a", "b", make_matches(), 20)
        for pair in [("x/a", "b"), ("b", "x/a"), ("b", "b"), ("x-a", "b")]:
            with pytest.raises(InputError):
                writer.add(*pair, make_matches(), 20)
        assert writer.done() == {("x/a", "b")}
    with MatchFile(matches_path) as file:  # one group's name, two pairs
        assert ("x/a", "b") in file
        assert ("x-a", "b") not in file


def test_a_pair_does_not_replace_another_one_of_the_same_group(matches_path):
    with MatchWriter(matches_path, {}) as writer:
        writer.add("x/a", "b", make_matches(), 20, inputs="1")
        with pytest.raises(InputError, match="rename"):
            writer.add("x-a", "b", make_matches(), 20, inputs="2")
    with MatchFile(matches_path) as file:
        assert file.pairs == [("x/a", "b")]


def matches_as_hloc(path, pairs, dtype=np.int16):
    with h5py.File(path, "w", libver="latest") as file:
        for i, (first, second) in enumerate(pairs):
            group = file.create_group(first.replace("/", "-") + "/" + second.replace("/", "-"))
            group.create_dataset("matches0", data=np.array([-1, i, -1, 2], dtype))
            group.create_dataset("matching_scores0", data=np.array([0, 0.5, 0, 0.25], np.float16))
    return path


def test_hlocs_matches_are_read(matches_path):
    pairs = [("q/a_1.jpg", "db/b_2.jpg"), ("db/b_2.jpg", "c.jpg")]
    with MatchFile(matches_as_hloc(matches_path, pairs)) as file:
        assert as_set(file.get("q/a_1.jpg", "db/b_2.jpg")) == {(1, 0, 0.5), (3, 2, 0.25)}
        assert as_set(file.get("c.jpg", "db/b_2.jpg")) == {(1, 1, 0.5), (2, 3, 0.25)}
        with pytest.raises(FormatError, match="ask for each pair by name"):
            _ = file.pairs
        assert file.pairs_among(["c.jpg", "db/b_2.jpg", "q/a_1.jpg"]) == sorted(pairs)
        assert file.pairs_among(["c.jpg", "q/a_1.jpg"]) == []


def test_each_pair_among_photos_once_and_checked(matches_path):
    pairs = [("a", "b"), ("b", "a"), ("a", "c")]
    with MatchFile(matches_as_hloc(matches_path, pairs)) as file:
        found = [(first, second) for first, second, _ in file.among({"a": 4, "b": 4, "c": 4})]
        assert found == [("a", "b"), ("a", "c")]
        with pytest.raises(FormatError, match="keypoints that the features do not have"):
            list(file.among({"a": 4, "b": 2}))
        # Other pairs may have been matched before their features were extracted again.
        chosen = file.among({"a": 4, "b": 2, "c": 4}, [frozenset("ac")])
        assert [(first, second) for first, second, _ in chosen] == [("a", "c")]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (np.array([0, -20000], np.int16), "overflow"),
        (np.array([[0, 1]]), "must be a vector of integers"),
        (np.array([0.0, 1.0]), "must be a vector of integers"),
        (3, "must be a vector of integers, not 0-dimensional"),
        ("text", "must be a vector of integers"),
    ],
)
def test_wrong_matches_are_one_sentence(matches_path, rows, complaint):
    with h5py.File(matches_path, "w") as file:
        file.create_dataset("a/b/matches0", data=rows)
    with MatchFile(matches_path) as file, pytest.raises(FormatError, match=complaint):
        file.get("a", "b")


def test_a_features_file_is_no_matches_file(path, matches_path):
    with MatchWriter(matches_path, SETTINGS) as writer:
        writer.add("a.jpg", "b.jpg", make_matches(k=6, num0=10, num1=50), 10)
    ours = write(path, {"a.jpg": make_features(5)})
    theirs = as_hloc(path.with_name("hloc.h5"))
    for file in (FeatureFile(matches_path), MatchFile(ours), MatchFile(theirs)):
        with file, pytest.raises(FormatError, match="contains no "):
            len(file)
