"""Sampling a dense map at positions and on other grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from d2net.geometry import coordinates
from d2net.networks.sampling import resample, sample


def linear_map(height: int, width: int) -> torch.Tensor:
    """Channels: 1, column, row. Bilinear sampling is exact on it."""
    i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.ones_like(i), j, i], dim=2).float()


def test_samples_are_bilinear() -> None:
    positions = torch.tensor([[2.25, 3.5], [0.0, 0.0], [6.0, 4.0], [5.999, 0.001]])
    for maps in (linear_map(5, 7), linear_map(5, 7).bfloat16()):
        found = sample(maps, positions)
        torch.testing.assert_close(found[:, 1:], positions, rtol=1e-4, atol=1e-4)
        assert sample(maps, positions[:0]).shape == (0, 3)


def test_resample_equals_interpolate_with_aligned_corners() -> None:
    maps = torch.randn(2, 9, 14, 3)
    size = (21, 31)
    source_from_target = coordinates.resize_corners((14, 9), (31, 21)).inverse()
    found = resample(maps, range(21), range(31), source_from_target)
    expected = F.interpolate(maps.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)


def test_resample_equals_interpolate_with_aligned_borders() -> None:
    maps = torch.randn(1, 9, 14, 3)
    source_from_target = coordinates.resize((14, 9), (28, 18)).inverse()
    found = resample(maps, range(18), range(28), source_from_target)
    expected = F.interpolate(maps.permute(0, 3, 1, 2), (18, 28), mode="bilinear")
    torch.testing.assert_close(found.permute(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)


def test_a_window_is_cut_out_of_the_whole() -> None:
    maps = torch.randn(1, 40, 50, 2)
    source_from_target = coordinates.resize((50, 40), (90, 77)).inverse()
    whole = resample(maps, range(77), range(90), source_from_target)
    part = resample(maps, range(10, 60), range(33, 71), source_from_target)
    torch.testing.assert_close(part, whole[:, 10:60, 33:71])


def test_result_is_added_to_out() -> None:
    maps = linear_map(6, 8)[None]
    out = torch.full((1, 6, 8, 3), 10.0)
    same = coordinates.resize((8, 6), (8, 6))
    assert resample(maps, range(6), range(8), same, out=out) is out
    torch.testing.assert_close(out, maps + 10)
