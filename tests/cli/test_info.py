"""`d2net info` and `d2net weights`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import d2net as package
from d2net.networks.catalogue import CATALOGUE
from d2net.networks.weights import load_weights

from .conftest import Real, Run


def test_this_installation(d2net: Run) -> None:
    run = d2net("info", "--json")
    assert run.code == 0
    assert run.json["d2net"] == package.__version__
    assert run.json["packages"]["torch"] == torch.__version__
    lines = d2net("info").out.splitlines()
    assert lines[0].split() == ["d2net", package.__version__]
    assert ["packages.torch", torch.__version__] in [line.split() for line in lines]


def test_a_features_file_and_a_matches_file(d2net: Run, photos: Path) -> None:
    counts = d2net("extract", photos, "-o", "f.h5", "--json").json["extracted"]
    Path("p.txt").write_text("a.png\tday 1/ü b.png\n")
    d2net("match", "--features", "f.h5", "--pairs", "p.txt", "-o", "m.h5")
    features, matches = (d2net("info", name, "--json").json for name in ("f.h5", "m.h5"))
    assert features["kind"] == "features"
    assert features["photos"] == 3
    assert features["keypoints"] == sum(counts.values())
    assert features["settings"]["weights"]["name"] == "untrained"
    assert matches["kind"] == "matches"
    assert matches["pairs"] == 1
    assert matches["settings"]["verify"] == "fundamental"
    text = d2net("info", "f.h5").out
    assert "settings.extraction.max_edge" in text
    assert "…" not in text


def test_files_of_another_program(d2net: Run, here: Path) -> None:
    with h5py.File("f.h5", "w") as file:
        group = file.create_group("db/1.jpg")
        group["keypoints"] = np.zeros((4, 2), np.float16)
        group["descriptors"] = np.zeros((8, 4), np.float16)
        group["image_size"] = [640, 480]
    with h5py.File("m.h5", "w") as file:
        file["db-1.jpg/db-2.jpg/matches0"] = np.array([0, -1, 1, -1], np.int16)
    assert d2net("info", "f.h5", "--json").json["keypoints"] == 4
    assert d2net("info", "m.h5", "--json").json["pairs"] == 1
    assert "another program" in d2net("info", "f.h5").out
    with h5py.File("other.h5", "w") as file:
        file["numbers"] = [1, 2, 3]
    assert d2net("info", "other.h5").code == 2


@pytest.mark.parametrize("name", ["keypoints", "descriptors", "image_size"])
def test_features_that_are_damaged(d2net: Run, photos: Path, name: str) -> None:
    d2net("extract", photos, "-o", "f.h5")
    with h5py.File("f.h5", "a") as file:
        del file[f"a.png/{name}"]
        file[f"a.png/{name}"] = np.zeros((3, 3), "S5")
    run = d2net("info", "f.h5")
    assert (run.code, run.out) == (2, "")
    assert "f.h5, photo 'a.png'" in run.err


# --- Weights ---------------------------------------------------------------------------------


def test_all_weights(d2net: Run, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    found = {record["name"]: record for record in d2net("weights", "--json").json}
    assert found["seasons"]["state"] == found["ots"]["state"] == "packaged"
    for name in ("d2_ots", "d2_tf", "d2_tf_no_phototourism"):
        assert found[name]["state"] == "downloadable"
        assert found[name]["url"].endswith(f"/{name}.pth")
    text = d2net("weights").out
    assert "default: light+seasons" in text
    assert "seasons: packaged, 16.3 MB" in text
    assert all(record["advice"] in text for record in found.values())
    assert d2net("weights", "--quiet").out == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows asks nobody")
def test_a_user_without_a_home_folder(
    d2net: Run, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    """As in a container that runs under the number of a user whom it does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("HOME", "D2NET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(here))
    assert "d2_tf: downloadable" in d2net("weights").out
    assert CATALOGUE["d2_tf"].path == here / "d2net" / "d2_tf.pth"


def test_one_file(real: Real) -> None:
    loaded = load_weights("ots")
    shutil.copy(CATALOGUE["ots"].path, real.folder / "ü.safetensors")
    run = real("weights", "ü.safetensors", env={"PYTHONIOENCODING": "ascii"})
    assert (run.code, run.err) == (0, "")
    assert r"\xfc.safetensors" in run.out
    assert loaded.sha256 in run.out
    assert "CC BY 4.0" in run.out


def test_named_weights_as_json(d2net: Run) -> None:
    assert d2net("weights", "seasons", "--json").json["name"] == "seasons"
    both = d2net("weights", "default", "--json").json
    assert [record["name"] for record in both] == ["light", "seasons"]


def test_broken_weights(d2net: Run, here: Path) -> None:
    whole = CATALOGUE["ots"].path.read_bytes()
    for content in (b"", b"no weights", whole[:1000], whole[:-1]):
        Path("broken.pth").write_bytes(content)
        run = d2net("weights", "broken.pth")
        assert (run.code, run.out) == (2, "")
        assert run.err.startswith("error: ")
        assert "broken.pth" in run.err
        assert run.err.count("\n") == 1


def test_broken_weights_stop_an_extraction(real: Real, photos: Path) -> None:
    (real.folder / "broken.pth").write_bytes(b"\x80\x02no pickle is executed")
    run = real("extract", photos, "-o", "f.h5", "--weights", "broken.pth")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert "broken.pth" in run.err
    assert not (real.folder / "f.h5").exists()


@pytest.mark.parametrize("command", ["weights d2_tf", "extract photos -o f.h5 --weights d2_tf"])
def test_downloading_without_a_network(
    d2net: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, here: Path, command: str
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", offline)
    run = d2net(*command.split(), "--quiet")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: https://dusmanu.com/files/d2-net/d2_tf.pth")
    assert run.err.count("\n") == 1
