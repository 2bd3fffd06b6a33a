"""Many pairs: what is stored, bad input, and runs that are cut off."""

from __future__ import annotations

import random
import signal
import unicodedata
from dataclasses import replace
from itertools import combinations
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from d2net import match
from d2net.errors import FormatError, InputError, OutputBusyError, OutputError
from d2net.features import Features
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile
from d2net.matching.match_pairs import match_pairs

from ..io.samples import make_features
from ..io.workers import watched
from . import workers

NAMES = ("a.jpg", "day 1/ü b.jpg", "new\nline.jpg", "z.jpg")
PAIRS = list(combinations(NAMES, 2))


@pytest.fixture
def photos() -> dict[str, Features]:
    return {name: make_features(40, seed=i) for i, name in enumerate(NAMES)}


@pytest.fixture
def features(photos: dict[str, Features], tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    with FeatureWriter(path, {"made by": "a test"}) as writer:
        for name, photo in photos.items():
            writer.add(name, photo)
    return path


def test_every_pair_is_stored(features: Path, photos: dict[str, Features], tmp_path: Path) -> None:
    finished: list[int] = []
    summary = match_pairs(
        features, PAIRS, tmp_path / "m.h5", progress=lambda _, done, __: finished.append(done)
    )
    with MatchFile(tmp_path / "m.h5") as file:
        assert file.pairs == PAIRS
        for first, second in PAIRS:
            expected = match(photos[first], photos[second])
            assert len(expected) > 0
            found = file.get(first, second)
            assert torch.equal(found.indices, expected.indices)
            assert torch.equal(found.similarity, expected.similarity)
    assert list(summary.matched) == PAIRS
    assert finished == [0, 1, 2, 3, 4, 5, 6]


def test_of_verified_matches_the_inliers(
    graf: tuple[Features, Features, Any], tmp_path: Path
) -> None:
    a, b, _ = graf
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.add("graf1", a)
        writer.add("graf3", b)
    summary = match_pairs(
        tmp_path / "f.h5", [("graf1", "graf3")], tmp_path / "m.h5", verify="homography"
    )
    expected = match(a, b, verify="homography")
    assert 0 < expected.num_inliers < len(expected)
    assert summary.matched == {("graf1", "graf3"): expected.num_inliers}
    with MatchFile(tmp_path / "m.h5") as file:
        assert torch.equal(file.get("graf1", "graf3").indices, expected.verified().indices)


def test_rows_above_32767(tmp_path: Path) -> None:
    many = make_features(33_000)
    few = many[torch.arange(32_760, 32_780)]
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.add("few", few)
        writer.add("many", many)
    match_pairs(tmp_path / "f.h5", [("few", "many")], tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["few/many/matches0"][()].tolist() == list(range(32_760, 32_780))


def test_a_pair_is_matched_once(features: Path, tmp_path: Path) -> None:
    pairs = [("a.jpg", "z.jpg"), ("z.jpg", "a.jpg"), ("a.jpg", "a.jpg"), ("a.jpg", "z.jpg")]
    summary = match_pairs(features, pairs, tmp_path / "m.h5")
    assert list(summary.matched) == [("a.jpg", "z.jpg")]
    again = match_pairs(features, [("z.jpg", "a.jpg")], tmp_path / "m.h5")
    assert again.matched == {}
    assert again.skipped == [("z.jpg", "a.jpg")]


def test_pairs_of_an_earlier_list_stay_and_are_counted(features: Path, tmp_path: Path) -> None:
    assert match_pairs(features, PAIRS[:5], tmp_path / "m.h5").num_others == 0
    shorter = [PAIRS[1][::-1], PAIRS[2], PAIRS[5]]
    assert match_pairs(features, shorter, tmp_path / "m.h5").num_others == 3
    with MatchFile(tmp_path / "m.h5") as file:
        assert len(file) == 6


def test_pairs_may_be_in_a_text_file(features: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a.jpg z.jpg\n")
    for path in (tmp_path / "pairs.txt", str(tmp_path / "pairs.txt")):
        match_pairs(features, path, tmp_path / "m.h5")
    with MatchFile(tmp_path / "m.h5") as file:
        assert file.pairs == [("a.jpg", "z.jpg")]


def test_names_in_another_unicode_form_are_those_of_the_features(
    features: Path, tmp_path: Path
) -> None:
    listed = [("a.jpg", unicodedata.normalize("NFD", "day 1/ü b.jpg"))]
    assert list(match_pairs(features, listed, tmp_path / "m.h5").matched) == PAIRS[:1]


def test_features_of_unknown_origin_are_known_by_their_content(
    features: Path, photos: dict[str, Features], tmp_path: Path
) -> None:
    output = tmp_path / "m.h5"
    match_pairs(features, PAIRS, output)
    changed = {**photos, NAMES[0]: make_features(40, seed=9)}
    with FeatureWriter(tmp_path / "other.h5", {"made by": "a test"}) as writer:
        for name, photo in changed.items():
            writer.add(name, photo)
    with (
        FeatureFile(tmp_path / "other.h5") as file,
        MatchFile(output) as matches,
        pytest.raises(InputError, match="and match again"),
    ):
        matches.check_features(file)
    (tmp_path / "other.h5").replace(features)
    again = match_pairs(features, PAIRS, output)
    assert list(again.matched) == [pair for pair in PAIRS if NAMES[0] in pair]
    with MatchFile(output) as matches:
        expected = match(changed[NAMES[0]], changed[NAMES[1]])
        assert torch.equal(matches.get(*PAIRS[0]).indices, expected.indices)


def test_pairs_of_features_that_were_extracted_again_are_matched_again(
    photos: dict[str, Features], tmp_path: Path
) -> None:
    def write(changed: str) -> None:
        (tmp_path / "f.h5").unlink(missing_ok=True)
        with FeatureWriter(tmp_path / "f.h5", {}) as writer:
            for name, photo in photos.items():
                new = name == changed
                writer.add(name, photo[: 20 if new else 40], "new photo" if new else "photo")

    write("")
    match_pairs(tmp_path / "f.h5", PAIRS, tmp_path / "m.h5")
    write("z.jpg")
    summary = match_pairs(
        tmp_path / "f.h5", [(second, first) for first, second in PAIRS], tmp_path / "m.h5"
    )
    assert [set(pair) for pair in summary.matched] == [set(p) for p in PAIRS if "z.jpg" in p]
    with MatchFile(tmp_path / "m.h5") as file:
        assert file.pairs == PAIRS
        assert file.get("a.jpg", "z.jpg").indices[:, 1].max() < 20


def test_features_of_another_program(tmp_path: Path, photos: dict[str, Features]) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name in ("a.jpg", "z.jpg"):
            group = file.create_group(name)
            group["keypoints"] = photos[name].keypoints.numpy().astype(np.float16)
            group["descriptors"] = photos[name].descriptors.numpy().T
            group["image_size"] = photos[name].image_size
    summary = match_pairs(tmp_path / "f.h5", [("a.jpg", "z.jpg")], tmp_path / "m.h5")
    assert summary.matched["a.jpg", "z.jpg"] == len(match(photos["a.jpg"], photos["z.jpg"]))


@pytest.mark.parametrize(
    ("pairs", "arguments", "message"),
    [
        ([("a.jpg", "b.jpg"), ("c.jpg", "z.jpg")], {}, "'b.jpg' and 1 more, but .*features.h5"),
        ([], {}, "no pairs"),
        ([("a.jpg", "a.jpg")], {}, "no pairs"),
        (PAIRS, {"device": "cuda:77"}, "cannot use device 'cuda:77'"),
        (PAIRS, {"device": "meta"}, "cannot use device 'meta'"),
        (PAIRS, {"device": "abacus"}, "cannot use device 'abacus'"),
        (PAIRS, {"ratio": 2.0}, "ratio"),
        (PAIRS, {"threshold": 3.0}, "threshold"),
        (PAIRS, {"verify": "fundamental", "threshold": "3"}, "threshold must be a number"),
        (PAIRS, {"ratio": "0.9"}, "ratio must be a number"),
        (PAIRS, {"matcher": None}, "no file None"),
        (PAIRS[0], {}, "names of two photos, not 'a.jpg'"),
        (["a.jpg z.jpg"], {}, "names of two photos, not 'a.jpg z.jpg'"),
        ([("a.jpg", "z.jpg", 0.5)], {}, "names of two photos"),
        ([(0, 1)], {}, "names of two photos"),
        (PAIRS, {"verify": "affine"}, "affine"),
    ],
)
def test_wrong_arguments(
    features: Path,
    tmp_path: Path,
    pairs: Any,
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        match_pairs(features, pairs, tmp_path / "m.h5", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["features.h5"]


def test_features_that_are_none(
    features: Path, photos: dict[str, Features], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="No such file"):
        match_pairs(tmp_path / "none.h5", PAIRS, tmp_path / "m.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(FormatError, match="not an HDF5 file"):
        match_pairs(tmp_path / "text.h5", PAIRS, tmp_path / "m.h5")
    with h5py.File(features, "a") as file:
        del file["a.jpg/descriptors"]
        file["a.jpg/descriptors"] = np.zeros((8, 3), np.float32)
    with pytest.raises(FormatError, match="'descriptors' must be D x 40, not 8 x 3"):
        match_pairs(features, PAIRS, tmp_path / "m.h5")
    with FeatureWriter(tmp_path / "mixed.h5", {}) as writer:
        writer.add("a.jpg", photos["a.jpg"])
        writer.add("z.jpg", make_features(40, dimension=16))
    with pytest.raises(InputError, match="descriptors"):
        match_pairs(tmp_path / "mixed.h5", [("a.jpg", "z.jpg")], tmp_path / "m.h5")
    assert not (tmp_path / "m.h5").exists()


def test_photos_without_keypoints(photos: dict[str, Features], tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.add("a.jpg", photos["a.jpg"])
        writer.add("empty.jpg", photos["a.jpg"][:0])
    match_pairs(
        tmp_path / "f.h5", [("a.jpg", "empty.jpg")], tmp_path / "m.h5", verify="fundamental"
    )
    with MatchFile(tmp_path / "m.h5") as file:
        assert len(file.get("a.jpg", "empty.jpg")) == 0


# --- Runs that are cut off -------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on(features: Path, tmp_path: Path) -> None:
    def cut_off(stage: str, done: int, total: int | None) -> None:
        if done == len(PAIRS) - 2:
            raise KeyboardInterrupt

    match_pairs(features, PAIRS, tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        match_pairs(features, PAIRS, tmp_path / "m.h5", progress=cut_off)
    summary = match_pairs(features, PAIRS, tmp_path / "m.h5")
    assert summary.skipped == PAIRS[:4]
    assert list(summary.matched) == PAIRS[4:]
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_killed_at_any_moment_and_resumed_gives_the_same_file(
    processes: ForkServerContext, features: Path, tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole.h5", tmp_path / "killed.h5"
    steps = watched(None, workers.match, features, PAIRS, whole)
    chance = random.Random(0)
    kills = 0
    for _ in range(5):
        step = chance.randrange(1, steps)
        process = processes.Process(
            target=watched, args=(step, workers.match, features, PAIRS, output)
        )
        process.start()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 1
    match_pairs(features, PAIRS, output)
    assert output.read_bytes() == whole.read_bytes()


def test_an_output_of_other_settings_is_left_alone(
    features: Path, photos: dict[str, Features], tmp_path: Path
) -> None:
    match_pairs(features, PAIRS[:1], tmp_path / "m.h5")
    with pytest.raises(OutputError, match=r"ratio was None, is now 0\.9"):
        match_pairs(features, PAIRS, tmp_path / "m.h5", ratio=0.9)
    features.unlink()
    with FeatureWriter(features, {"made by": "another test"}) as writer:
        for name, photo in photos.items():
            writer.add(name, replace(photo, scores=photo.scores + 1))
    with pytest.raises(OutputError, match="another test"):
        match_pairs(features, PAIRS, tmp_path / "m.h5")


def test_two_processes_cannot_write_one_output(
    processes: ForkServerContext, features: Path, tmp_path: Path
) -> None:
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(
        target=workers.hold, args=(features, PAIRS, tmp_path / "m.h5", sender)
    )
    process.start()
    try:
        assert receiver.poll(60)
        with pytest.raises(OutputBusyError, match="another process"):
            match_pairs(features, PAIRS, tmp_path / "m.h5")
    finally:
        process.kill()
        process.join()
    assert match_pairs(features, PAIRS, tmp_path / "m.h5").skipped == PAIRS[:1]
