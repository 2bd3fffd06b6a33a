"""Sampling a dense map at positions and on other grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from d2net.geometry import coordinates
from d2net.networks.sampling import describe, resample
from d2net.networks.whitening import Whitening


def linear_map(height: int, width: int) -> torch.Tensor:
    """Channels: 1, column, row. Bilinear sampling is exact on it."""
    i, j = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.ones_like(i), j, i], dim=2).float()


def test_descriptors_are_bilinear_and_unit_length() -> None:
    positions = torch.tensor([[2.25, 3.5], [0.0, 0.0], [6.0, 4.0], [5.999, 0.001]])
    found = describe(linear_map(5, 7), linear_map(6, 8), positions, "plain")
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(found[:, 1:] / found[:, :1], positions, rtol=1e-4, atol=1e-4)


def test_the_root_is_of_the_normalised_sample_and_normalised_again() -> None:
    maps = torch.rand(5, 7, 4)
    positions = torch.tensor([[2.25, 3.5], [4.0, 1.0]])
    plain = describe(maps, maps, positions, "plain")
    root = describe(maps, maps, positions, "root")
    torch.testing.assert_close(root, F.normalize(plain.sqrt(), dim=1))
    similarity = plain[0].sqrt() @ plain[1].sqrt() / (plain.sum(dim=1).prod().sqrt())
    assert float(root[0] @ root[1]) == pytest.approx(float(similarity), abs=1e-6)


def test_fused_is_the_deep_root_beside_a_shorter_shallow_one() -> None:
    """The shallow map's cells lie half a cell before the deep one's."""
    deep, shallow = torch.rand(5, 7, 4), torch.rand(6, 8, 3)
    positions = torch.tensor([[2.25, 3.5]])
    found = describe(deep, shallow, positions, "fused")[0]
    parts = [
        describe(deep, shallow, positions, "root")[0],
        0.8 * describe(shallow, shallow, positions + 0.5, "root")[0],
    ]
    torch.testing.assert_close(found, torch.cat(parts) / (1 + 0.8**2) ** 0.5)


def test_what_is_whitened_is_deep_shallow_and_the_mean_around() -> None:
    """A linear map's mean around a place is the map there."""
    deep, shallow = linear_map(12, 12), torch.rand(13, 13, 2)
    positions = torch.tensor([[5.25, 6.5]])
    identity = Whitening(torch.eye(8), torch.zeros(8))
    found = describe(deep, shallow, positions, "whitened", identity)[0]
    parts = [
        describe(deep, shallow, positions, "root")[0],
        describe(shallow, shallow, positions + 0.5, "root")[0],
        describe(deep, shallow, positions, "root")[0],
    ]
    torch.testing.assert_close(found, torch.cat(parts) / 3**0.5)
    turned = Whitening(torch.eye(8).flip(0), torch.ones(8))
    found = describe(deep, shallow, positions, "whitened", turned)[0]
    torch.testing.assert_close(found, F.normalize(torch.cat(parts).flip(0) / 3**0.5 + 1, dim=0))


def test_no_positions_give_no_descriptors() -> None:
    maps = linear_map(5, 7).bfloat16()
    for form, length in (("plain", 3), ("root", 3), ("fused", 6)):
        assert describe(maps, maps, torch.empty(0, 2), form).shape == (0, length)
    whitening = Whitening(torch.ones(4, 9), torch.zeros(4))
    assert describe(maps, maps, torch.empty(0, 2), "whitened", whitening).shape == (0, 4)


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
