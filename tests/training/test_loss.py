"""The loss: against the 2019 release, against its definition written out, and on hopeless input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2net.errors import InputError
from d2net.networks.detection import soft_scores
from d2net.networks.vgg import VGG
from d2net.networks.weights import load_weights
from d2net.training import loss as loss_module
from d2net.training.loss import Loss, PaddedCorrespondences, matching_loss

from ..release_outputs import released


def of(*pairs: tuple[Tensor, Tensor]) -> PaddedCorrespondences:
    """Correspondences of several pairs, padded with what must not matter."""
    length = max(len(a) for a, _ in pairs)
    padding = torch.full((length, 2), 77.0)
    a = [torch.cat([a, padding[len(a) :]]) for a, _ in pairs]
    b = [torch.cat([b, padding[len(b) :] / 3]) for _, b in pairs]
    valid = [torch.arange(length) < len(a) for a, _ in pairs]
    return PaddedCorrespondences(torch.stack(a), torch.stack(b), torch.stack(valid))


def some(count: int, seed: int = 0, size: int = 96) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(count, 2, generator=generator) * (size - 1)
    b = torch.rand(count, 2, generator=generator) * (size - 1)
    return a, b


def some_maps(pairs: int, seed: int = 0, cells: tuple[int, int] = (12, 12)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * pairs, 6, *cells, generator=generator)


def written_out(map_a: Tensor, map_b: Tensor, a: Tensor, b: Tensor, radius: int = 4) -> Tensor:
    """The loss of one pair, one correspondence after the other."""
    descriptors = [F.normalize(m, dim=0) for m in (map_a, map_b)]
    scores = [soft_scores(m[None])[0] for m in (map_a, map_b)]
    total, weights = torch.zeros(()), torch.zeros(())
    for point_a, point_b in zip(a, b, strict=True):
        ends = [((p - 3.5) / 8).round().long().tolist() for p in (point_a, point_b)]
        d = [m[:, y, x] for m, (x, y) in zip(descriptors, ends, strict=True)]
        distances = []
        for own, other in ((0, 1), (1, 0)):
            x, y = ends[other]
            for i in range(map_a.shape[1]):
                for j in range(map_a.shape[2]):
                    if max(abs(i - y), abs(j - x)) > radius:
                        distances.append((d[own] - descriptors[other][:, i, j]).square().sum())
        rank = (1 + (d[0] - d[1]).square().sum() - min(distances)).clamp_min(0)
        weight = scores[0][ends[0][1], ends[0][0]] * scores[1][ends[1][1], ends[1][0]]
        total, weights = total + weight * rank, weights + weight
    return total / weights


@pytest.mark.parametrize("name", ["loss_0", "loss_1"])
def test_equals_the_release(name: str) -> None:
    golden = np.load(released(f"{name}.npz"))
    network = load_weights("ots").network
    assert isinstance(network, VGG)
    backbone = network.backbone
    photos = torch.from_numpy(np.stack([golden["image1"], golden["image2"]]))
    maps = backbone(network.normalisation(photos.permute(0, 3, 1, 2).float()))
    points = [torch.from_numpy(golden[f"positions{k}_ij"].T.copy()).flip(1) for k in (1, 2)]
    loss = matching_loss(maps, of((points[0], points[1])))
    loss.mean().backward()

    assert loss.mean().item() == pytest.approx(golden["loss"], rel=1e-5)
    for kind in ("weight", "bias"):
        gradient = getattr(backbone.conv4_3, kind).grad
        assert gradient.norm().item() == pytest.approx(
            golden[f"conv4_3_{kind}_grad_norm"], rel=1e-4
        )
    expected = torch.from_numpy(golden["conv4_3_bias_grad"])
    torch.testing.assert_close(
        backbone.conv4_3.bias.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )
    for k in (0, 1):
        scores = torch.from_numpy(golden[f"scores{k + 1}"])
        torch.testing.assert_close(soft_scores(maps)[k], scores, rtol=1e-4, atol=0)


def test_equals_its_definition_in_a_batch_of_unequal_pairs() -> None:
    maps = some_maps(3)
    pairs = [some(7, 1), some(1, 2), some(20, 3)]
    loss = matching_loss(maps, of(*pairs))
    expected = [written_out(maps[k], maps[3 + k], *pair) for k, pair in enumerate(pairs)]
    torch.testing.assert_close(loss.per_pair, torch.stack(expected))
    assert loss.mean().item() == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_gradient_equals_that_of_the_definition() -> None:
    pair = some(15)
    maps = some_maps(1).requires_grad_()
    written_out(maps[0], maps[1], *pair).backward()
    expected = maps.grad
    maps.grad = None
    matching_loss(maps, of(pair)).mean().backward()
    assert expected is not None
    torch.testing.assert_close(maps.grad, expected, rtol=1e-4, atol=1e-7)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, correspondences = some_maps(2), of(some(30, 1), some(25, 2))
    whole = matching_loss(maps, correspondences).per_pair
    monkeypatch.setattr(loss_module, "_BLOCK", 3 * 2 * 144)
    torch.testing.assert_close(matching_loss(maps, correspondences).per_pair, whole)


def test_bilinear_equals_cells_at_the_centres_of_cells() -> None:
    maps = some_maps(1)
    a, b = (torch.randint(0, 12, (40, 2)) * 8 + 3.5 for _ in range(2))
    by_cells, bilinear = (
        matching_loss(maps, of((a, b)), sampling=sampling).per_pair
        for sampling in ("cells", "bilinear")
    )
    torch.testing.assert_close(bilinear, by_cells)


def test_bilinear_sees_half_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two cells the descriptor is their mean: it finds a partner that no cell equals."""
    monkeypatch.setattr("d2net.training.loss.MARGIN", 2.0)  # all negatives are that far away
    maps = torch.zeros(2, 2, 12, 12)
    maps[0, 0, 5, 5] = maps[0, 1, 5, 6] = 1.0
    maps[1, :, 5, 5] = 1.0
    a, b = torch.tensor([[47.5, 43.5]]), torch.tensor([[43.5, 43.5]])
    bilinear, cells = (
        matching_loss(maps, of((a, b)), sampling=sampling).mean().item()
        for sampling in ("bilinear", "cells")
    )
    assert cells - bilinear == pytest.approx(2 - 2**0.5)


def assert_finite(loss: Loss, maps: Tensor) -> None:
    loss.mean().backward()
    assert maps.grad is not None
    assert bool(maps.grad.isfinite().all())
    assert bool(loss.per_pair.isfinite().all())


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 5),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    content=st.sampled_from(["noise", "zero", "negative", "constant", "one cell", "huge", "tiny"]),
    sampling=st.sampled_from(["cells", "bilinear"]),
)
def test_is_finite_on_any_input(
    count: int, height: int, width: int, content: str, sampling: loss_module.Sampling
) -> None:
    maps = some_maps(2, cells=(height, width))
    if content == "zero":
        maps.zero_()
    elif content == "negative":
        maps = -maps.abs()
    elif content == "constant":
        maps.fill_(3.0)
    elif content == "one cell":
        maps[:, :, 1:] = maps[:, :, :, 1:] = 0
    elif content in ("huge", "tiny"):
        maps *= 1e15 if content == "huge" else 1e-15
    maps.requires_grad_()
    points = some(count), some(3 * count, 1)
    assert_finite(matching_loss(maps, of(*points), sampling=sampling), maps)


def test_a_pair_without_correspondences_takes_no_part() -> None:
    maps = some_maps(2).requires_grad_()
    loss = matching_loss(maps, of(some(10), some(0)))
    assert loss.usable.tolist() == [True, False]
    assert loss.mean().item() == loss.per_pair[0].item()
    assert_finite(loss, maps)
    assert maps.grad is not None
    assert not maps.grad[[1, 3]].any()
    assert maps.grad[[0, 2]].any()


def test_what_is_wrong_is_seen() -> None:
    maps = some_maps(1)
    assert matching_loss(maps, of(some(10))).similarity.abs().max() < 0.1
    maps[0] = 1 + 1e-3 * maps[0]
    maps[1, :, 2:] = -1
    maps[1, :, :2] = 0
    maps[1, 3, 0, 0] = 1
    loss = matching_loss(maps, of(some(10)))
    assert loss.similarity[0] > 0.999  # collapsed
    assert loss.inactive.tolist() == pytest.approx([0, 143 / 144])
    assert loss.peak[1] == pytest.approx(1)  # all score on one cell


def test_maps_and_pairs_must_fit() -> None:
    with pytest.raises(InputError, match="2 pairs need 4 maps, not 2"):
        matching_loss(some_maps(1), of(some(3), some(3)))
