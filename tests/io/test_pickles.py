"""Pickles of strangers are read without being executed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from d2net.errors import FormatError, InputError
from d2net.io.pickles import read_npz


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("kind", ["bare", "in an array", "in a dict"])
def test_pickles_are_not_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    rows = {"bare": Malicious(), "in an array": [Malicious()], "in a dict": {1: Malicious()}}
    array = np.empty(1, object)
    array[0] = rows[kind]
    np.savez("0001.npz", image_paths=array)
    with pytest.raises(FormatError, match=r"asks to run (posix|nt)\.mkdir"):
        read_npz(tmp_path / "0001.npz")
    assert not (tmp_path / "executed").exists()


def test_plain_objects_of_npz_files_are_read(tmp_path):
    rows = np.empty(3, object)
    rows[:] = [None, {1: [0.5, 2.0], 2: np.float64(3.25)}, np.arange(6.0).reshape(2, 3).T]
    np.savez(tmp_path / "a.npz", rows=rows, text=np.array(["x", "yy"]), numbers=np.eye(2))
    entries = read_npz(tmp_path / "a.npz")
    assert entries["rows"][:2] == [None, {1: [0.5, 2.0], 2: 3.25}]
    assert np.array_equal(entries["rows"][2], np.arange(6.0).reshape(2, 3).T)
    assert entries["text"].tolist() == ["x", "yy"]
    assert np.array_equal(entries["numbers"], np.eye(2))


@pytest.mark.parametrize("dtype", ["O", "M8[s]", "V4"])
def test_arrays_of_other_things_than_numbers_are_refused(tmp_path, dtype):
    rows = np.empty(1, object)
    inner = np.zeros(2, dtype)
    rows[0] = inner
    np.savez(tmp_path / "a.npz", rows=rows)
    if dtype == "O":
        assert read_npz(tmp_path / "a.npz")["rows"] == [[0, 0]]
        return
    with pytest.raises(FormatError, match="other than numbers"):
        read_npz(tmp_path / "a.npz")


def test_missing_and_other_files(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(FormatError, match="cannot be read safely"):
        read_npz(tmp_path / "a.npz")
