"""`d2net extract`."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net
from d2net.io.h5 import FeatureFile

from ..io.samples import assert_same_features
from ..tiny import SIZE, make_tiny_model, write_photos
from .conftest import Real, Result, Run, finished

NAMES = {"a.png", "day 1/ü b.png", "new\nline.png"}


# --- What the options do ---------------------------------------------------------------------


def test_folders_are_walked_and_counts_told(d2net: Run, photos: Path) -> None:
    run = d2net("extract", photos, "--output", "f.h5")
    assert run.code == 0
    assert run.err == ""
    with FeatureFile("f.h5") as file:
        assert set(file) == NAMES
        total = sum(len(photo) for photo in file.values())
        assert_same_features(file["a.png"], make_tiny_model().extract(photos / "a.png"))
    assert run.out == f"3 photos extracted, {total:,} keypoints: f.h5\n"
    (photos / "sorted").mkdir()
    (photos / "a.png").rename(photos / "sorted" / "a.png")
    assert "1 photo of earlier runs kept: f.h5" in d2net("extract", photos, "-o", "f.h5").out


def test_json_is_one_document_and_nothing_else(real: Real, photos: Path) -> None:
    (photos / "bad.jpg").write_text("no photo")
    run = real("extract", photos, "-o", "f.h5", "--json")
    assert run.code == 1
    assert set(run.json) == {"extracted", "failed", "skipped", "other_photos", "output"}
    assert set(run.json["extracted"]) == NAMES
    assert all(count > 0 for count in run.json["extracted"].values())
    assert "bad.jpg" in run.json["failed"]["bad.jpg"]
    assert run.json["skipped"] == []
    assert run.json["output"] == "f.h5"
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    model = D2Net.from_pretrained()
    with FeatureFile(real.folder / "f.h5") as file:
        expected = model.extract(photos / "a.png")
        assert torch.allclose(file["a.png"].keypoints, expected.keypoints, atol=1e-3)
        assert file.settings is not None
        assert file.settings["weights"] == model.weights


def test_quiet_prints_errors_only(d2net: Run, photos: Path) -> None:
    assert d2net("extract", photos, "-o", "f.h5", "--quiet").out == ""
    (photos / "bad.jpg").write_text("no photo")
    run = d2net("extract", photos, "-o", "f.h5", "-q")
    assert (run.code, run.out) == (1, "")
    assert run.err.startswith("error: cannot read")
    assert run.err.count("\n") == 1


def test_all_bad_is_exit_code_2(d2net: Run, here: Path) -> None:
    (here / "bad.jpg").write_text("no photo")
    run = d2net("extract", "bad.jpg", "-o", "f.h5")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: no photo could be extracted")
    assert "cannot read 'bad.jpg'" in run.err
    assert not (here / "f.h5").exists()


def test_photos_without_permission_to_read(d2net: Run, photos: Path, here: Path) -> None:
    run = d2net("extract", photos, "-o", "warm.h5")  # imports all that nobody else may read
    (photos / "a.png").chmod(0)
    below_temporary = takewhile(lambda p: p != Path(tempfile.gettempdir()), here.parents)
    for folder in (here, *below_temporary):  # folders of pytest, which other users may not enter
        folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        run = d2net("extract", "photos", "-o", "f.h5")
    finally:
        os.seteuid(user)
    assert run.code == 1
    assert run.err == "error: cannot read 'photos/a.png': Permission denied\n"


def test_options_reach_the_model(d2net: Run, photos: Path) -> None:
    d2net(
        *("extract", photos, "-o", "f.h5", "--half", "--max-keypoints", 7, "--multiscale"),
        *("--original", "--score-threshold", 0.25, "--max-edge", 90),
        *("--stored-orientation", "--precision", "bfloat16"),
    )
    with FeatureFile("f.h5") as file:
        assert file.settings is not None
        assert file.settings["extraction"] == {
            "original": True,
            "descriptor": "plain",
            "multiscale": True,
            "turns": 1,
            "max_edge": 90,
            "max_sum_edges": 2800,
            "max_keypoints": 7,
            "score_threshold": 0.25,
            "upright": False,
            "stretch": False,
            "precision": "bfloat16",
        }
        assert file["a.png"].descriptors.dtype == torch.float16
        assert file["a.png"].keypoints.dtype == torch.float32
        assert 0 < len(file["a.png"]) <= 7


def test_turns_are_extracted_and_remembered(d2net: Run, photos: Path) -> None:
    assert d2net("extract", photos, "-o", "f.h5", "--turns", 4).code == 0
    with FeatureFile("f.h5") as file:
        assert file.settings is not None
        assert file.settings["extraction"]["turns"] == 4
        assert_same_features(file["a.png"], make_tiny_model().extract(photos / "a.png", turns=4))
    run = d2net("extract", photos, "-o", "f.h5")
    assert run.code != 0
    assert "extraction.turns was 4, is now 1" in run.err


def test_types_of_descriptors(d2net: Run, photos: Path) -> None:
    d2net("extract", photos, "-o", "f.h5", "--descriptor", "root")
    with FeatureFile("f.h5") as file:
        assert file.settings is not None
        assert file.settings["extraction"]["descriptor"] == "root"
        expected = make_tiny_model().extract(photos / "a.png", descriptor="root")
        assert_same_features(file["a.png"], expected)
    run = d2net("extract", photos, "-o", "g.h5", "--descriptor", "root", "--original")
    assert run.code == 2
    assert "original reproduces the 2019 release, whose descriptor is 'plain'" in run.err


def test_full_resolution_and_large_edges_lift_the_limit_of_both(d2net: Run, photos: Path) -> None:
    d2net("extract", photos, "-o", "f.h5", "--full-resolution")
    with FeatureFile("f.h5") as file:
        assert file.settings is not None
        assert file.settings["extraction"]["max_edge"] is None
        assert file.settings["extraction"]["max_sum_edges"] is None
    d2net("extract", photos, "-o", "large.h5", "--max-edge", "1500")
    with FeatureFile("large.h5") as file:
        assert file.settings is not None
        assert file.settings["extraction"]["max_sum_edges"] is None
    run = d2net("extract", photos, "-o", "g.h5", "--full-resolution", "--max-edge", "100")
    assert (run.code, "--max-edge or --full-resolution" in run.err) == (2, True)


def test_image_list_and_root(d2net: Run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("list.txt").write_text("day 1/ü b.png\nmissing.png\n")
    run = d2net("extract", "--image-list", "list.txt", "--root", photos, "-o", "f.h5", "--json")
    assert run.code == 1
    assert set(run.json["extracted"]) == {"day 1/ü b.png"}
    assert set(run.json["failed"]) == {"missing.png"}
    monkeypatch.chdir(photos)  # without a root, names are relative to the current folder
    run = d2net("extract", "--image-list", "../list.txt", "-o", "../g.h5", "--json")
    assert set(run.json["extracted"]) == {"day 1/ü b.png"}


def test_root_names_the_photos(d2net: Run, photos: Path) -> None:
    run = d2net("extract", photos / "day 1", "--root", photos.parent, "-o", "f.h5", "--json")
    assert set(run.json["extracted"]) == {"photos/day 1/ü b.png"}


def test_masks(d2net: Run, photos: Path) -> None:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[:40] = 255
    Path("masks").mkdir()
    Image.fromarray(mask).save("masks/a.png")
    assert d2net("extract", photos, "-o", "f.h5", "--masks", "masks").code == 0
    with FeatureFile("f.h5") as file:
        assert 0 < len(file["a.png"]) < len(make_tiny_model().extract(photos / "a.png"))
        assert (file["a.png"].keypoints[:, 1] <= 40).all()


@pytest.mark.parametrize("format", ["npz", "mat"])
def test_the_releases_files(d2net: Run, photos: Path, format: str) -> None:
    for output in (photos, "new/folder"):
        assert d2net("extract", photos, "--format", format, "-o", output).code == 0
    for name in NAMES:
        beside, below = (root / f"{name}.d2-net" for root in (photos, Path("new/folder")))
        assert beside.read_bytes() == below.read_bytes()
    again = d2net("extract", photos, "--format", format, "-o", photos, "--json").json
    assert set(again["skipped"]) == NAMES


def test_photos_without_keypoints_are_no_error(d2net: Run, here: Path) -> None:
    (here / "photos").mkdir()
    for name, size, colour in (
        ("pixel.png", (1, 1), 255),
        ("column.png", (1, 5000), 90),
        ("strip.png", (20000, 40), 0),
        ("black.png", SIZE, 0),
        ("tiny.png", (7, 9), 90),
    ):
        Image.new("RGB", size, (colour,) * 3).save(here / "photos" / name)
    run = d2net("extract", "photos", "-o", "f.h5", "--json")
    assert run.code == 0
    assert len(run.json["extracted"]) == 5
    assert set(run.json["extracted"].values()) == {0}


# --- Runs that are cut off -------------------------------------------------------------------


def wait_for(path: Path, size: int) -> None:
    """Wait until a file has grown to so many bytes."""
    for _ in range(20_000):
        if path.exists() and path.stat().st_size >= size:
            return
        time.sleep(0.01)
    pytest.fail(f"{path} did not reach {size} bytes")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    write_photos(folder, *(f"day {i % 3}/{i}.png" for i in range(9)))
    return folder


@pytest.fixture(scope="module")
def undisturbed(many: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run over `many` that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Real(folder)("extract", many, "-o", "f.h5", "--quiet")
    assert run == Result(0, "", "")
    return (folder / "f.h5").read_bytes()


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_same_file(real: Real, many: Path, undisturbed: bytes) -> None:
    partial = real.folder / "f.h5.partial"
    with real.start("extract", many, "-o", "f.h5") as process:
        wait_for(partial, 500_000)  # two photos
        process.kill()
        assert finished(process).code == -signal.SIGKILL
    assert not (real.folder / "f.h5").exists()
    run = real("extract", many, "-o", "f.h5", "--json")
    assert run.code == 0
    assert run.json["skipped"]
    assert not set(run.json["skipped"]) & set(run.json["extracted"])
    assert len(run.json["skipped"]) + len(run.json["extracted"]) == 9
    assert (real.folder / "f.h5").read_bytes() == undisturbed
    assert not list(real.folder.glob("f.h5.*"))


def test_ctrl_c_says_how_to_go_on_and_a_second_process_that_it_must_wait(
    real: Real, many: Path, d2net: Run
) -> None:
    write_photos(many, *(f"{i}.png" for i in range(150)))  # it must not end before the signal
    partial = real.folder / "f.h5.partial"
    with real.start("extract", many, "-o", "f.h5", "--multiscale", "--json") as process:
        wait_for(partial, 4_000_000)  # a few photos
        process.send_signal(signal.SIGSTOP)
        busy = d2net("extract", many, "-o", "f.h5")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        run = finished(process)
    assert (busy.code, busy.out) == (2, "")
    assert "is being written by another process" in busy.err
    assert run.code == 130
    assert run.err == f"error: {run.json['error']}\n"
    assert "run the same command again" in run.err
    assert partial.stat().st_size >= 1000


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_a_resume(
    real: Real, many: Path, undisturbed: bytes
) -> None:
    limit = len(undisturbed) // 2

    def nearly_full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = real("extract", many, "-o", "f.h5", preexec_fn=nearly_full)
    assert (run.code, run.out) == (2, "")
    assert "the disk is full" in run.err
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    assert not (real.folder / "f.h5").exists()
    resumed = real("extract", many, "-o", "f.h5", "--json")
    assert resumed.json["skipped"]
    assert (real.folder / "f.h5").read_bytes() == undisturbed


def test_other_settings_are_told(d2net: Run, photos: Path) -> None:
    d2net("extract", photos, "-o", "f.h5")
    content = Path("f.h5").read_bytes()
    run = d2net("extract", photos, "-o", "f.h5", "--multiscale", "--half")
    assert run.code == 2
    assert "extraction.multiscale was False, is now True" in run.err
    assert "half was False, is now True" in run.err
    assert Path("f.h5").read_bytes() == content


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_names_that_are_not_unicode(d2net: Run, photos: Path) -> None:
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "a.png").read_bytes())
    run = d2net("extract", photos, "-o", "f.h5", "--json")
    assert run.code == 1
    assert set(run.json["failed"]) == {os.fsdecode(b"caf\xe9.png")}
    assert d2net("extract", photos, "--format", "npz", "-o", photos).code == 0
