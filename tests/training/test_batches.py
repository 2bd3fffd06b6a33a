"""Batches: an order that nothing but the settings decide, and nobody's pairs twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2net.errors import InputError
from d2net.training.batches import (
    Drawn,
    Mixture,
    PairBatch,
    PairBatches,
    collate,
    input_files,
    load,
    open_part,
    training_part,
)
from d2net.training.settings import SourceSettings, TrainingSettings
from d2net.training.sources.base import TrainingPair, pair_generator

from ..tiny import write_photos
from . import made as made
from .plane import NAMES, Plane, write_depth_h5

HERE = Path()
ROOT = Path(__file__).parents[2]
MADE = {"kind": "made", "path": "here"}


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.from_dict({"sources": [MADE], "crop": 64, "batch": 4, **changes})


def batches(
    settings: TrainingSettings, data: Path = HERE, rank: int = 0, processes: int = 1
) -> PairBatches[TrainingPair]:
    return PairBatches(settings, training_part(settings, data), collate, rank, processes)


def batch(dataset: PairBatches[TrainingPair], step: int) -> PairBatch:
    drawn = dataset[step]
    assert isinstance(drawn, Drawn), drawn
    assert isinstance(drawn.content, PairBatch)
    return drawn.content


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    one, other = batches(settings()), batches(settings())
    for step in range(5):
        batch(one, step)
    assert torch.equal(batch(one, 5).images, batch(other, 5).images)
    assert not torch.equal(batch(one, 6).images, batch(other, 5).images)
    assert not torch.equal(batch(batches(settings(seed=2)), 5).images, batch(one, 5).images)


def test_processes_share_a_batch() -> None:
    whole = batch(batches(settings()), 3)
    parts = [batch(batches(settings(), rank=rank, processes=2), 3) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.images[:2], whole.images[:4][rank::2])
        assert torch.equal(part.images[2:], whole.images[4:][rank::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_keeps_the_order(workers: int, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(made.DATA)
    table = {"kind": "photos", "path": "photos", "min_correspondences": 16}
    dataset = batches(settings(sources=[table], batch=1), tmp_path)
    found = list(load(dataset, range(2, 7), workers))
    assert len(found) == 5
    for step, loaded in zip(range(2, 7), found, strict=True):
        assert torch.equal(loaded.content.images, batch(dataset, step).images)


def test_lists_of_correspondences_are_padded() -> None:
    crop = np.zeros((16, 16, 3), np.uint8)
    points = [np.full((count, 2), count, np.float32) for count in (3, 0, 5)]
    pairs = [
        TrainingPair(crop + i, crop + 10 + i, p, p + 1, str(i), ("a", "b"))
        for i, p in enumerate(points)
    ]
    joined = collate(pairs)
    assert joined.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    c = joined.correspondences
    assert c.valid.sum(1).tolist() == [3, 0, 5]
    for i, p in enumerate(points):
        assert torch.equal(c.points_a[i][c.valid[i]], torch.from_numpy(p))
        assert torch.equal(c.points_b[i][c.valid[i]], torch.from_numpy(p + 1))


def test_held_out_pairs_and_the_rest_are_the_whole() -> None:
    source = SourceSettings("made", "here", hold_out=5)
    rest, held_out = (open_part(source, 64, HERE, held_out=flag) for flag in (False, True))
    assert len(rest) == 10
    assert len(held_out) == 2
    few = SourceSettings("made", "here", hold_out=20)
    assert len(open_part(few, 64, HERE, held_out=True)) == 1


def test_a_single_pair_cannot_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "one.png").symlink_to(made.DATA / "graf1.jpg")
    with pytest.raises(InputError, match="has a single pair"):
        open_part(SourceSettings("photos", ".", hold_out=2), 64, tmp_path, held_out=False)


def test_groups_choose_sources() -> None:
    sources = [{**MADE, "group": group} for group in ("free", "academic")]
    drawn = batches(settings(sources=sources, groups=["free"]))
    assert len(batch(drawn, 0).images) == 8
    nothing = batches(settings(sources=sources, groups=["other"]))[0]
    assert isinstance(nothing, InputError)
    assert "no source of training pairs of the groups other" in str(nothing)


def test_shares_are_kept_whatever_takes_part() -> None:
    sources = [
        {**MADE, "part": "near", "weight": 1, "group": "free"},
        {**MADE, "part": "near", "weight": 3},
        {**MADE, "part": "far", "weight": 5, "group": "free"},
    ]
    shares = {"near": 0.25, "far": 0.75}
    everything = settings(sources=sources, shares=shares)
    assert everything.source_weights() == pytest.approx([0.0625, 0.1875, 0.75])
    free = settings(sources=sources, shares=shares, groups=["free"])
    assert free.source_weights() == pytest.approx([0.25, 0.75])


EMPTY = np.empty((0, 2), np.float32)


class Known:
    """Pairs that carry their index; every n-th has no correspondences (n = 0: none)."""

    def __init__(self, name: str, count: int, empty: int = 3) -> None:
        self.name, self._count, self._empty = name, count, empty

    def __len__(self) -> int:
        return self._count

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        if self._empty and index % self._empty == 0:
            return None
        crop = np.full((8, 8, 3), rng.integers(256), np.uint8)
        return TrainingPair(crop, crop, EMPTY, EMPTY, self.name, (str(index), ""))


def test_shares_follow_weights() -> None:
    mixture = Mixture([Known("a", 5, empty=0), Known("b", 50, empty=0)], [3, 1])
    drawn = [mixture.draw(pair_generator(1, step))[0] for step in range(2000)]
    share = np.mean([pair.source == "a" for pair in drawn])
    assert 0.71 < share < 0.79
    assert {pair.photos[0] for pair in drawn if pair.source == "a"} == set("01234")


def test_a_step_is_a_function_of_seed_and_number() -> None:
    mixture = Mixture([Known("a", 50), Known("b", 50)])

    def step(number: int, seed: int = 4, row: int = 0) -> tuple[str, tuple[str, str], int]:
        pair, _ = mixture.draw(pair_generator(seed, number, row))
        return pair.source, pair.photos, int(pair.image_a[0, 0, 0])

    forward = [step(number) for number in range(20)]
    assert [step(number) for number in reversed(range(20))] == forward[::-1]
    assert [step(number, row=1) for number in range(20)] != forward
    assert [step(number, seed=5) for number in range(20)] != forward


def test_pairs_without_correspondences_are_drawn_again() -> None:
    mixture = Mixture([Known("a", 3)])
    drawn = [mixture.draw(pair_generator(0, step))[0].photos[0] for step in range(50)]
    assert set(drawn) == {"1", "2"}
    with pytest.raises(InputError, match="none of 100 pairs drawn from a, b has enough"):
        Mixture([Known("a", 5, empty=1), Known("b", 5, empty=1)]).draw(pair_generator(0, 0))


def test_the_files_of_a_run(tmp_path: Path) -> None:
    scene = Plane().write(tmp_path / "scene")
    write_depth_h5(scene / "depths" / "a.h5", Plane().depth(0))
    (scene / "sparse" / "frames.txt").write_text("")  # of a model as text
    (tmp_path / "view").mkdir()
    for name in ("offsets.json", "notes.txt"):
        (tmp_path / "view" / name).write_text("{}")
    sources = SourceSettings("colmap", "scene"), SourceSettings("aligned", "view")
    settings = TrainingSettings(sources=sources[:1], validation=sources[1:])
    names = ("cameras", "frames", "images", "points3D", "rigs")
    model = {f"scene/sparse/{name}.bin" for name in names}
    photos = {f"scene/images/{name}" for name in NAMES}
    expected = (
        model | photos | {"scene/depths/a.h5", "scene/sparse/frames.txt", "view/offsets.json"}
    )
    assert input_files(settings, tmp_path).keys() == expected


def test_files_that_photos_do_not_need_are_no_files_of_the_run(tmp_path: Path) -> None:
    """Such as those of a map that was made of the photos after the training was stopped."""
    write_photos(tmp_path, "a.png")
    for name in ("retrieval.h5", "points3D.bin"):
        (tmp_path / name).write_bytes(b"made later")
    settings = TrainingSettings(sources=(SourceSettings("photos", "."),))
    assert input_files(settings, tmp_path).keys() == {"a.png"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_ends_if_the_run_is_killed_while_it_starts() -> None:
    code = "from tests.training.workers import be_killed; be_killed()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        process.communicate(timeout=60)  # until the worker has closed the pipe, too
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
