"""Descriptors of the paper's network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.vgg import VGG, Whitening

from ..tiny import make_tiny_network

POSITIONS = torch.tensor([[12.5, 17.25], [20.0, 9.0]])


def describe(deep: Tensor, shallow: Tensor, descriptor: str, whitening: Whitening | None = None):
    return VGG(make_tiny_network(), whitening=whitening).describe(
        (deep, shallow), POSITIONS, descriptor
    )


def test_plain_descriptors_are_samples_of_the_deep_map_of_unit_length() -> None:
    """Cell c of the deep map is centred at pixel 4c + 3.5."""
    i, j = torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    deep = torch.stack([torch.ones_like(i), j, i], dim=2).float()
    found = describe(deep, torch.rand(9, 10, 2), "plain")
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(found[:, 1:] / found[:, :1], (POSITIONS - 3.5) / 4)


def test_fused_is_the_root_of_the_deep_map_beside_a_shorter_one_of_the_shallow_map() -> None:
    """Cell c of the shallow map is centred at pixel 4c + 1.5."""
    deep, shallow = torch.rand(8, 9, 4), torch.rand(9, 10, 3)
    root = describe(deep, shallow, "root")
    torch.testing.assert_close(root, F.normalize(describe(deep, shallow, "plain").sqrt(), dim=1))
    shallow_grid = torch.nn.functional.pad(shallow, (0, 0, 0, 1, 0, 1), mode="constant")
    beside = VGG(make_tiny_network()).describe((shallow_grid, shallow), POSITIONS + 2, "root")
    expected = F.normalize(torch.cat([root, 0.8 * beside], dim=1), dim=1)
    torch.testing.assert_close(describe(deep, shallow, "fused"), expected)


def test_whitened_descriptors_are_a_linear_map_of_deep_shallow_and_context() -> None:
    deep, shallow = torch.rand(12, 12, 3), torch.rand(13, 13, 2)
    turned = Whitening(torch.eye(8).flip(0), torch.ones(8))
    found = describe(deep, shallow, "whitened", turned)
    unwhitened = VGG(make_tiny_network()).describe_unwhitened((deep, shallow), POSITIONS)
    torch.testing.assert_close(found, F.normalize(unwhitened.flip(1) + 1, dim=1))
    torch.testing.assert_close(
        unwhitened[:, :3] * 3**0.5, describe(deep, shallow, "root"), rtol=1e-5, atol=1e-5
    )
