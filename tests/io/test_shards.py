"""Many files that read as one: for us, for hloc, moved, incomplete, and begun again."""

from __future__ import annotations

import shutil

import h5py
import pytest
import torch

from d2net.errors import FormatError, OutputBusyError, OutputError
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile
from d2net.io.shards import PER_SHARD, Shards

from .samples import as_set, assert_same_features, make_features
from .workers import NAMES, PAIRS, SETTINGS, write_features, write_matches


def write_shards(index, names=NAMES, workers=1, settings=SETTINGS):
    """What a cluster does, one shard after the other."""
    with Shards(index, FeatureFile, settings) as shards:
        for path, part in shards.divide(names, str, workers):
            with FeatureWriter(path, settings) as writer:
                for name in part:
                    if name not in writer.done():
                        writer.add(name, make_features(20, seed=NAMES.index(name)))
        shards.join()


@pytest.fixture
def index(tmp_path):
    write_shards(tmp_path / "f.h5")
    return tmp_path / "f.h5"


def assert_whole(path):
    with FeatureFile(path) as file:
        assert file.names == tuple(sorted(NAMES))
        assert file.settings == SETTINGS
        for name in NAMES:
            assert name in file
            assert_same_features(file[name], make_features(20, seed=NAMES.index(name)))


def test_the_index_reads_as_one_file(index):
    assert_whole(index)
    assert len(list(index.with_name("f.h5.shards").glob("*.h5"))) > 1


def test_matches_too(tmp_path):
    with Shards(tmp_path / "m.h5", MatchFile, SETTINGS) as shards:
        for path, part in shards.divide(PAIRS, min, 2):
            write_matches(path, part)
        shards.join()
    write_matches(tmp_path / "one.h5")
    with MatchFile(tmp_path / "m.h5") as many, MatchFile(tmp_path / "one.h5") as one:
        assert many.pairs == one.pairs == sorted(PAIRS)
        for pair in PAIRS:
            assert as_set(many.get(*pair)) == as_set(one.get(*pair))
        counts = dict.fromkeys(NAMES, 20)
        assert len(list(many.among(counts))) == len(PAIRS)


def test_as_hloc_lists_and_reads_it(index):
    """hloc/utils/io.py: list_h5_names, get_keypoints; hloc/match_features.py."""
    names = []
    with h5py.File(index, "r") as file:

        def visit(_, item):
            if isinstance(item, h5py.Dataset):
                names.append(item.parent.name.strip("/"))

        file.visititems(visit)
        assert set(names) == set(NAMES)
        for i, name in enumerate(NAMES):
            expected = make_features(20, seed=i)
            keypoints = file[name]["keypoints"]
            assert torch.equal(torch.from_numpy(keypoints[()]), expected.keypoints)
            assert keypoints.attrs.get("uncertainty") > 0
            found = {k: torch.from_numpy(v.__array__()).float() for k, v in file[name].items()}
            assert torch.equal(found["descriptors"], expected.descriptors.T)
            assert found["image_size"].tolist() == [640, 480]


def test_photos_without_keypoints(tmp_path):
    with Shards(tmp_path / "f.h5", FeatureFile, SETTINGS) as shards:
        ((path, _),) = shards.divide(["a.jpg"], str, 1)
        with FeatureWriter(path, SETTINGS) as writer:
            writer.add("a.jpg", make_features(0))
        shards.join()
    shutil.rmtree(tmp_path / "f.h5.shards")  # nothing of it is needed: all is small
    with FeatureFile(tmp_path / "f.h5") as file:
        assert_same_features(file["a.jpg"], make_features(0))


def test_index_and_folder_move_together(index, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for path in (index, index.with_name("f.h5.shards")):
        path.rename(tmp_path / "elsewhere" / path.name)
    monkeypatch.chdir(tmp_path)
    assert_whole("elsewhere/f.h5")


def test_a_missing_shard_is_named(index):
    lost = sorted(index.with_name("f.h5.shards").iterdir())[0]
    with FeatureFile(lost) as file:
        names = file.names
    lost.unlink()
    with FeatureFile(index) as file:
        assert file.names == tuple(sorted(NAMES))
        with pytest.raises(FormatError, match=rf"{names[0]}.*{lost.name}, which is missing"):
            file[names[0]]
        other = next(name for name in NAMES if name not in names)
        assert_same_features(file[other], make_features(20, seed=NAMES.index(other)))


def test_more_entries_go_to_the_same_division(tmp_path):
    write_shards(tmp_path / "f.h5", NAMES[:3], workers=1)
    before = {path.name for path in (tmp_path / "f.h5.shards").iterdir()}
    write_shards(tmp_path / "f.h5", NAMES, workers=9)
    after = {path.name for path in (tmp_path / "f.h5.shards").iterdir()}
    assert before <= after
    assert len({name.partition("-of-")[2] for name in after}) == 1
    assert_whole(tmp_path / "f.h5")


def test_many_entries_make_shards_of_bounded_size(tmp_path):
    names = [str(i) for i in range(20 * PER_SHARD)]
    with Shards(tmp_path / "f.h5", FeatureFile, SETTINGS) as shards:
        parts = shards.divide(names, str, 2)
    sizes = [len(part) for _, part in parts]
    assert len(parts) == 20
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) < 1.2 * PER_SHARD
    assert sorted(name for _, part in parts for name in part) == sorted(names)


def test_other_settings_and_single_files_are_left_alone(index, tmp_path):
    with pytest.raises(OutputError, match="made with other settings"):
        write_shards(index, settings={"version": "2"})
    assert_whole(index)
    write_features(tmp_path / "one.h5")
    with pytest.raises(OutputError, match="is a single file"):
        write_shards(tmp_path / "one.h5")
    assert_whole(tmp_path / "one.h5")


def test_one_run_at_a_time(index):
    with Shards(index, FeatureFile, SETTINGS), pytest.raises(OutputBusyError):
        write_shards(index)


def test_without_a_cluster_an_index_becomes_one_file(index):
    write_features(index, NAMES)  # all is there: nothing happens
    with FeatureWriter(index, SETTINGS) as writer:
        writer.add("new.jpg", make_features(3))
    shutil.rmtree(index.with_name("f.h5.shards"))
    with FeatureFile(index) as file:
        assert set(file) == {*NAMES, "new.jpg"}
        assert_same_features(file[NAMES[0]], make_features(20, seed=0))


def test_a_name_that_is_the_folder_of_another_is_told(tmp_path):
    with Shards(tmp_path / "f.h5", FeatureFile, SETTINGS) as shards:
        for i, name in enumerate(("a/b", "a")):
            shards.folder.mkdir(exist_ok=True)
            with FeatureWriter(shards.folder / f"{i}-of-2.h5", SETTINGS) as writer:
                writer.add(name, make_features(1))
        with pytest.raises(OutputError, match="is the folder of another"):
            shards.join()
    assert not (tmp_path / "f.h5").exists()
