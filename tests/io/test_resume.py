import os
import sys
import time

import pytest

from d2net.errors import FormatError, InputError, OutputError
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile, MatchWriter
from d2net.io.resume import WorkRecord, are_unchanged, fingerprint, record_files

from .samples import assert_same_features, make_features, make_matches


def test_fingerprints_tell_different_inputs_apart(tmp_path):
    a = {"folder": tmp_path, "limit": 3}
    assert fingerprint(a) == fingerprint({"limit": 3, "folder": str(tmp_path)})
    assert fingerprint(a) != fingerprint({**a, "limit": 4})


def test_a_file_is_unchanged_if_its_content_is(tmp_path):
    photo, mask = tmp_path / "a.jpg", tmp_path / "a.png"
    photo.write_bytes(b"photo")
    without_mask = record_files(photo, None)
    assert are_unchanged(without_mask, photo, None)
    assert not are_unchanged("", photo, None)
    mask.write_bytes(b"mask")
    assert not are_unchanged(without_mask, photo, mask)
    with_mask = record_files(photo, mask)
    os.utime(photo, ns=(1, 1))  # as copies have other times
    assert are_unchanged(with_mask, photo, mask)
    assert are_unchanged(with_mask, photo)
    mask.write_bytes(b"other")
    assert not are_unchanged(with_mask, photo, mask)
    mask.write_bytes(b"MASK")
    os.utime(mask, ns=(1, 1))
    assert not are_unchanged(with_mask, photo, mask)
    assert not are_unchanged(with_mask, photo, None)
    photo.unlink()
    assert not are_unchanged(without_mask, photo, None)


def test_a_renamed_file_of_equal_size_and_time_is_another_one(tmp_path):
    """Scans from an archive can share one date."""
    scans = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for scan, content in zip(scans, (b"one", b"two"), strict=True):
        scan.write_bytes(content)
        os.utime(scan, ns=(1, 1))
    record = record_files(scans[1])
    time.sleep(0.02)  # clocks of file systems are coarse
    scans[0].replace(scans[1])
    assert not are_unchanged(record, scans[1])


def test_features_of_a_changed_photo_are_replaced(tmp_path):
    path = tmp_path / "features.h5"
    old, new = make_features(10, seed=1), make_features(20, seed=2)
    with FeatureWriter(path, {}) as writer:
        writer.add("a.jpg", old, "old")
        writer.add("b.jpg", old, "old")
        assert writer.inputs("a.jpg") == "old"
    with FeatureWriter(path, {}) as writer:
        assert writer.inputs("a.jpg") == writer.inputs("b.jpg") == "old"
        writer.add("a.jpg", new, "new")
        assert writer.inputs("a.jpg") == "new"
    with FeatureFile(path) as file:
        assert_same_features(file["a.jpg"], new)
        assert_same_features(file["b.jpg"], old)
        assert (file.inputs("a.jpg"), file.inputs("b.jpg")) == ("new", "old")


def test_a_killed_run_remembers_which_photo_it_replaced(tmp_path):
    path = tmp_path / "features.h5"
    with FeatureWriter(path, {}) as writer:
        writer.add("a.jpg", make_features(10), "old")
    with pytest.raises(KeyboardInterrupt), FeatureWriter(path, {}) as writer:
        writer.add("a.jpg", make_features(20), "new")
        raise KeyboardInterrupt
    with FeatureWriter(path, {}) as writer:
        assert writer.inputs("a.jpg") == "new"
    with FeatureFile(path) as file:
        assert len(file["a.jpg"]) == 20


def test_matches_of_changed_features_are_replaced(tmp_path):
    path = tmp_path / "matches.h5"
    with MatchWriter(path, {}) as writer:
        writer.add("a", "b", make_matches(5), 30, "old")
    with MatchWriter(path, {}) as writer:
        assert writer.is_done("a", "b", "old")
        assert not writer.is_done("a", "b", "new")
        writer.add("a", "b", make_matches(9), 30, "new")
    with MatchFile(path) as file:
        assert len(file.get("a", "b")) == 9


def test_a_record_of_work_is_resumed_with_the_same_settings_only(tmp_path):
    path = tmp_path / "work.json"
    record = WorkRecord(path, {"size": 1})
    record.values["photos"] = ["a"]
    record.finish("match", "old")
    again = WorkRecord(path, {"size": 1})
    assert again.inputs("match") == "old"
    assert again.inputs("map") == ""
    assert again.values == {"photos": ["a"]}
    assert WorkRecord(path).settings == {"size": 1}
    with pytest.raises(OutputError, match="size was 1, is now 2"):
        WorkRecord(path, {"size": 2})


def test_of_many_differences_the_weights_are_named(tmp_path):
    made = {"extraction": dict.fromkeys("abcd", 1), "weights": {"name": "light"}}
    WorkRecord(tmp_path / "work.json", made).save()
    given = {"extraction": dict.fromkeys("abcd", 2), "weights": {"name": "ots"}}
    message = r"weights\.name was 'light', is now 'ots';.*; use those, or choose"
    with pytest.raises(OutputError, match=message):
        WorkRecord(tmp_path / "work.json", given)


def test_a_damaged_record_is_one_sentence(tmp_path):
    path = tmp_path / "work.json"
    path.write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        WorkRecord(path)


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    WorkRecord(tmp_path / "work.json").finish("step")
    (tmp_path / "features.h5").touch()
    monkeypatch.setattr("pathlib.Path.read_text", refuse)  # chmod does not stop the superuser
    monkeypatch.setattr("h5py.File", refuse)
    with pytest.raises(PermissionError):
        WorkRecord(tmp_path / "work.json")
    with (
        pytest.raises(InputError, match=r"\(Permission denied\); expected a file of features\.$"),
        FeatureWriter(tmp_path / "features.h5", {}),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to create such folders")
def test_a_path_that_is_too_long_for_sqlite_is_named(tmp_path):
    folder = tmp_path / ("x" * 200) / ("y" * 200) / ("z" * 200)
    folder.mkdir(parents=True)
    with (
        pytest.raises(OutputError, match=r"features\.h5\.partial .*the path is too long"),
        FeatureWriter(folder / "features.h5", {}),
    ):
        pytest.fail("SQLite opens no path beyond 512 characters")
    assert list(folder.iterdir()) == []
