"""MegaDepth: its preparation, and what may be wrong with it, in miniature."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from PIL import Image

from d2net.errors import FormatError, InputError
from d2net.training.check_pairs import check_source
from d2net.training.sources import detect_kind, open_source
from d2net.training.sources.base import pair_generator
from d2net.training.sources.megadepth import prepare_megadepth, scene_list
from d2net.training.sources.reading import read_depth_map

from ..megadepth import JPEGS, flat_plane, photo_number, write_raw
from ..plane import write_depth_h5

CROP = 64
DENSE = "phoenix/S6/zl548/MegaDepth_v1/0001/dense0"


def opened(folder, **options):
    options = {"min_correspondences": 10, **options}
    return open_source("megadepth", folder, CROP, options)


def offset(photo, crop):
    """Where a plain crop was cut from its photo, (x, y)."""
    edge = len(crop)
    for top in range(photo.shape[0] - edge + 1):
        for left in range(photo.shape[1] - edge + 1):
            if np.array_equal(photo[top : top + edge, left : left + edge], crop):
                return np.array([left, top])
    raise AssertionError("the crop is no part of the photo")


def largest_error(source, count=6):
    """How far partners are from where the plane puts them."""
    plane, worst = flat_plane(), 0.0
    for step in range(count):
        rng = pair_generator(0, step)
        pair = source.pair(int(rng.integers(len(source))), rng)
        offsets = []
        for path, crop in zip(pair.photos, (pair.image_a, pair.image_b), strict=True):
            with Image.open(path) as photo:
                offsets.append(offset(np.asarray(photo), crop))
        a, b = map(photo_number, pair.photos)
        there = plane.carried(a, b, pair.points_a + offsets[0]) - offsets[1]
        worst = max(worst, np.abs(there - pair.points_b).max())
    return worst


def test_published_form(tmp_path):
    root = write_raw(tmp_path / "megadepth", "0001", "0003", "0015")
    reported = []
    done = prepare_megadepth(root, tmp_path / "out", progress=lambda *a: reported.append(a))
    assert [(scene.name, scene.photos, scene.pairs, scene.left_out) for scene in done] == [
        ("0001/0", 4, 12, {}),
        ("0003/0", 4, 12, {}),
    ]  # 0015 is MegaDepth-1500's
    assert reported == [
        ("preparing", 0, 2),
        ("preparing: 0001/0", 1, 2),
        ("preparing: 0003/0", 2, 2),
    ]
    source = opened(tmp_path / "out")
    assert detect_kind(tmp_path / "out") == "megadepth"
    assert len(source) == 200  # the release's 100 pairs of each scene
    assert largest_error(source) < 0.1
    checked = check_source(opened(tmp_path / "out", photometric=0.0), 10)
    assert checked.warnings == ()
    assert checked.figures["track_error_pixels"] < 0.01 and checked.figures["depth_error"] < 0.001


def test_what_is_broken_is_left_out_and_counted(tmp_path):
    root = write_raw(tmp_path / "megadepth", "0001")
    plane, depths = flat_plane(), root / DENSE / "depths"
    stems = [name.removesuffix(".jpg") for name in JPEGS]

    def prepared(name):
        (scene,) = prepare_megadepth(root, tmp_path / name)
        return scene.photos, scene.left_out

    write_depth_h5(depths / f"{stems[0]}.h5", -np.sign(plane.depth(0)))
    write_depth_h5(depths / f"{stems[1]}.h5", 2 * plane.depth(1))
    assert prepared("a") == (
        2,
        {"ordinal depth": 1, "depth that contradicts the points": 1},
    )
    (depths / f"{stems[0]}.h5").write_bytes(b"\x89HDF\r\n\x1a\nhalf a file")
    write_depth_h5(depths / f"{stems[1]}.h5", 0 * plane.depth(1))
    assert prepared("b") == (2, {"a broken depth map": 1, "an empty depth map": 1})
    write_depth_h5(depths / f"{stems[0]}.h5", plane.depth(0)[:-1])
    (depths / f"{stems[1]}.h5").unlink()
    assert prepared("c") == (2, {"a depth map of another size": 1, "no depth map": 1})
    (root / DENSE / "imgs" / JPEGS[2]).unlink()
    Image.new("RGB", (50, 40)).save(root / DENSE / "imgs" / JPEGS[3])
    assert prepared("d")[0] == 0
    with pytest.raises(InputError, match="none of the 1 scenes in"):
        opened(tmp_path / "d")


def test_a_broken_model_does_not_stop_the_others(tmp_path):
    root = write_raw(tmp_path / "megadepth", "0001", "0003")
    model = root / "MegaDepth_v1_SfM" / "0001" / "sparse" / "manhattan" / "0"
    (model / "images.bin").write_bytes(b"\x07")
    broken, sound = prepare_megadepth(root, tmp_path / "out")
    assert "cut off or damaged" in broken.error and not sound.error
    assert len(opened(tmp_path / "out")) == 100


@pytest.mark.slow
def test_a_stopped_run_goes_on(tmp_path):
    """Killed in the middle, started again: the same files, and what was done is not redone."""
    scenes = ("0001", "0003", "0004", "0005", "0007", "0011")
    root = write_raw(tmp_path / "megadepth", *scenes)
    code = (
        "import sys; from pathlib import Path; "
        "from d2net.training.sources.megadepth import prepare_megadepth; "
        "prepare_megadepth(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, root, out], env=environment)
    while not (out / "0003-0.h5").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert len(prepare_megadepth(root, out)) == 6
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    prepare_megadepth(root, tmp_path / "undisturbed")
    for path in sorted((tmp_path / "undisturbed").glob("*.h5")):
        with h5py.File(path) as a, h5py.File(out / path.name) as b:
            assert all(np.array_equal(a[name][()], b[name][()]) for name in a)


def test_photos_gone_since_and_a_damaged_file(tmp_path):
    root = write_raw(tmp_path / "megadepth", "0001")
    prepare_megadepth(root, tmp_path / "out")
    source = opened(tmp_path / "out")
    sent = pickle.loads(pickle.dumps(source))
    a, b = (s.pair(0, pair_generator(0, 0)) for s in (source, sent))
    assert np.array_equal(a.image_a, b.image_a)
    path = tmp_path / "out" / "0001-0.h5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FormatError, match="delete it and prepare it again"):
        opened(tmp_path / "out")
    prepare_megadepth(root, tmp_path / "out")
    prepared = path.read_bytes()
    with pytest.raises(InputError, match="choose another output"):
        prepare_megadepth(write_raw(tmp_path / "other", "0003"), tmp_path / "out")
    root.rename(tmp_path / "moved")
    read_depth_map.cache_clear()
    with pytest.raises(FormatError, match="there is no depth map"):
        opened(tmp_path / "out").pair(0, pair_generator(0, 0))
    prepare_megadepth(tmp_path / "moved", tmp_path / "out")
    assert opened(tmp_path / "out").pair(0, pair_generator(0, 0))
    assert path.read_bytes() == prepared  # or a stopped training could not go on


def test_scene_lists():
    tests = {"0008", "0015", "0019", "0021", "0022", "0024", "0025", "0032", "0063", "0078", "1589"}
    default, paper = scene_list("default"), scene_list("paper")
    assert len(paper) == 117
    assert not tests & set(default)
    assert {f"{scene}/0" for scene in default} | {f"{s}/0" for s in tests - {"0078"}} == set(paper)
    with pytest.raises(InputError, match="there is no list of scenes 'papre'"):
        scene_list("papre")


def test_lists_choose_scenes(tmp_path):
    root = write_raw(tmp_path / "megadepth", "0001", "0015", "9999")

    def names(scenes):
        return [s.name for s in prepare_megadepth(root, tmp_path / f"out-{len(scenes)}", scenes)]

    assert names("paper") == ["0001/0", "0015/0"]
    assert names("all") == ["0001/0", "0015/0", "9999/0"]
    (root / DENSE.replace("0001", "9999")).rename(root / "elsewhere")
    (root / DENSE).rename(root / "elsewhere too")
    with pytest.raises(InputError, match="none of the scenes of the list 'default'"):
        names("default")


def test_no_megadepth(tmp_path):
    with pytest.raises(InputError, match="does not hold MegaDepth: phoenix"):
        prepare_megadepth(tmp_path, tmp_path / "out")
    (write_raw(tmp_path / "megadepth", "0001") / "MegaDepth_v1_SfM").rename(tmp_path / "sfm")
    with pytest.raises(InputError, match="MegaDepth_v1_SfM is missing"):
        prepare_megadepth(tmp_path / "megadepth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds no prepared scenes"):
        opened(tmp_path)
