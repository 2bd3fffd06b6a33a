"""Batches: an order that nothing but the settings decide, and nobody's pairs twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2net.errors import InputError
from d2net.training.batches import Batch, Draws, collate, load, open_part
from d2net.training.settings import SourceSettings, TrainingSettings
from d2net.training.sources import TrainingPair

from . import made as made

HERE = Path()
MADE = {"kind": "made", "path": "here"}


def settings(**changes: Any) -> TrainingSettings:
    return TrainingSettings.from_dict({"sources": [MADE], "crop": 64, "batch": 4, **changes})


def batch(draws: Draws, step: int) -> Batch:
    drawn = draws[step]
    assert isinstance(drawn, Batch), drawn
    return drawn


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    one, other = Draws(settings(), HERE), Draws(settings(), HERE)
    for step in range(5):
        batch(one, step)
    assert torch.equal(batch(one, 5).images, batch(other, 5).images)
    assert not torch.equal(batch(one, 6).images, batch(other, 5).images)
    assert not torch.equal(batch(Draws(settings(seed=2), HERE), 5).images, batch(one, 5).images)


def test_processes_share_a_batch() -> None:
    whole = batch(Draws(settings(), HERE), 3)
    parts = [batch(Draws(settings(), HERE, rank, 2), 3) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.images[:2], whole.images[:4][rank::2])
        assert torch.equal(part.images[2:], whole.images[4:][rank::2])


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_keeps_the_order(workers: int, tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to(made.DATA)
    table = {"kind": "photos", "path": "photos", "min_correspondences": 16}
    draws = Draws(settings(sources=[table], batch=1), tmp_path)
    found = list(load(draws, range(2, 7), workers))
    assert len(found) == 5
    for step, loaded in zip(range(2, 7), found, strict=True):
        assert torch.equal(loaded.images, batch(draws, step).images)


def test_lists_of_correspondences_are_padded() -> None:
    crop = np.zeros((16, 16, 3), np.uint8)
    points = [np.full((count, 2), count, np.float32) for count in (3, 0, 5)]
    pairs = [
        TrainingPair(crop + i, crop + 10 + i, p, p + 1, str(i), ("a", "b"))
        for i, p in enumerate(points)
    ]
    joined = collate(pairs, empty=2)
    assert joined.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    c = joined.correspondences
    assert c.valid.sum(1).tolist() == [3, 0, 5]
    for i, p in enumerate(points):
        assert torch.equal(c.points_a[i][c.valid[i]], torch.from_numpy(p))
        assert torch.equal(c.points_b[i][c.valid[i]], torch.from_numpy(p + 1))
    assert joined.sources == ("0", "1", "2")
    assert joined.empty == 2


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
    drawn = Draws(settings(sources=sources, groups=["free"]), HERE)
    assert len(batch(drawn, 0).sources) == 4
    nothing = Draws(settings(sources=sources, groups=["other"]), HERE)[0]
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
    assert everything.weights(everything.trained_on) == pytest.approx([0.0625, 0.1875, 0.75])
    free = settings(sources=sources, shares=shares, groups=["free"])
    assert free.weights(free.trained_on) == pytest.approx([0.25, 0.75])
