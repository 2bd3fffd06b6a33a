"""Hard and soft detection: against the dense oracle, and where the answer is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2net.networks.detection import detect, soft_scores
from tests import oracle


def dense_cells(maps: Tensor) -> list[tuple[int, int, int]]:
    """(channel, row, column) of the dense transcription; maps is h x w x C."""
    found = oracle.hard_detections(maps.permute(2, 0, 1)[None])[0]
    return sorted(map(tuple, found.nonzero().tolist()))


def sparse_cells(maps: Tensor, *, original: bool) -> list[tuple[int, int, int]]:
    found = detect(maps, original=original, min_rise=0)
    columns = (found.channels.tolist(), *found.anchors.flip(1).T.tolist())
    return sorted(zip(*columns, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 6),
    levels=st.sampled_from([2, 3, 5, 1000]),  # few levels: ties, plateaus, zeros
    seed=st.integers(0, 10_000),
)
def test_original_equals_the_dense_computation(
    height: int, width: int, channels: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, levels, (height, width, channels), generator=generator).float()
    assert sparse_cells(maps, original=True) == dense_cells(maps)


def test_steps_equal_the_dense_computation() -> None:
    torch.manual_seed(3)
    maps = torch.rand(20, 25, 4)
    found = detect(maps, original=True, min_rise=0)
    step_i, step_j = oracle.displacements(maps.permute(2, 0, 1)[None])
    cols, rows = found.anchors.unbind(1)
    cells = (0, found.channels, rows, cols)
    dense = torch.stack([step_j[cells], step_i[cells]], dim=1)
    assert len(found) > 10
    torch.testing.assert_close(found.positions - found.anchors, dense, rtol=1e-4, atol=1e-5)


def bump(row: float, col: float, size: tuple[int, int] = (11, 13), channels: int = 3) -> Tensor:
    """A paraboloid in channel 1 with its peak at (row, col)."""
    i, j = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    maps = torch.zeros(*size, channels)
    maps[..., 1] = (20 - (i - row) ** 2 - (j - col) ** 2).clamp(min=0)
    return maps


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize(("row", "col"), [(5.0, 6.0), (4.7, 6.2), (5.45, 5.55), (3.1, 8.9)])
def test_sub_pixel_step_finds_the_peak_of_a_paraboloid(
    row: float, col: float, original: bool
) -> None:
    found = detect(bump(row, col), original=original)
    assert len(found) == 1
    assert found.located.all()
    assert found.channels.tolist() == [1]
    torch.testing.assert_close(found.positions, torch.tensor([[col, row]]), rtol=0, atol=1e-4)


def test_edges_are_no_keypoints() -> None:
    """A ridge eleven times as long as wide has a curvature ratio beyond 5."""
    i, j = torch.meshgrid(torch.arange(11.0), torch.arange(13.0), indexing="ij")
    ridge = (50 - (i - 5) ** 2 * 6 - (j - 6) ** 2)[..., None].clamp(min=0)
    blob = (50 - (i - 5) ** 2 * 3 - (j - 6) ** 2)[..., None].clamp(min=0)
    assert len(detect(ridge)) == 0
    assert len(detect(blob)) == 1


def test_of_equal_neighbours_the_default_takes_one() -> None:
    maps = bump(5, 6)
    maps[5, 6, 1] = maps[5, 7, 1] = 30
    assert len(detect(maps, original=True)) == 2
    found = detect(maps)
    assert found.anchors.tolist() == [[6, 5]]


def test_of_equal_channels_the_default_takes_one() -> None:
    maps = bump(5, 6)
    maps[..., 2] = maps[..., 1]
    assert len(detect(maps, original=True)) == 2
    assert detect(maps).channels.tolist() == [1]


def test_the_frame_detects_in_original_only() -> None:
    maps = torch.zeros(9, 13, 2)
    maps[0, 6, 0] = 20
    maps[0, [5, 7], 0] = maps[1, 6, 0] = 5
    assert len(detect(maps, original=True)) == 1
    assert len(detect(maps)) == 0


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("shape", [(0, 5, 4), (5, 0, 4), (1, 1, 4), (2, 9, 4), (30, 30, 4)])
def test_nothing_active_gives_nothing(shape: tuple[int, int, int], original: bool) -> None:
    assert len(detect(torch.zeros(shape), original=original)) == 0


def test_low_precision_is_compared_in_float32() -> None:
    found = detect(bump(5.2, 6.1).bfloat16())
    assert found.scores.dtype == found.positions.dtype == torch.float32
    assert len(found) == 1


def test_soft_scores_are_finite_and_sum_to_one() -> None:
    maps = torch.randn(3, 5, 9, 11) * 1000
    maps[0, :, 2:5, 2:5] = -1  # cells where every channel is zero
    maps[1] = -1  # an image where nothing is active
    maps.requires_grad_()
    scores = soft_scores(maps)
    assert scores.shape == (3, 9, 11)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores.sum(dim=(1, 2)), torch.tensor([1.0, 0.0, 1.0]))
    assert (scores[0, 2:5, 2:5] == 0).all()
    scores.square().sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()


def test_soft_scores_peak_where_hard_detection_does() -> None:
    scores = soft_scores(bump(5, 6).permute(2, 0, 1)[None])[0]
    assert divmod(int(scores.argmax()), scores.shape[1]) == (5, 6)
