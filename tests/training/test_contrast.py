"""The contrastive loss: against its definition written out, and on hopeless input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.training.loss import (
    MIN_KEYPOINTS,
    SAFE_DISTANCE,
    TEMPERATURE,
    PaddedCorrespondences,
    contrastive_loss,
)


def at_cells(count: int, columns: int = 8) -> Tensor:
    """Centres of the first cells of a map, row by row, in pixels."""
    index = torch.arange(count)
    return torch.stack([index % columns, index // columns], dim=1) * 8.0 + 3.5


def one_pair(a: Tensor, b: Tensor, padding: int = 0) -> PaddedCorrespondences:
    """Correspondences of one pair, with padding that must not matter."""
    rows = torch.full((padding, 2), 20.0)
    valid = torch.arange(len(a) + padding) < len(a)
    return PaddedCorrespondences(
        torch.cat([a, rows])[None], torch.cat([b, rows])[None], valid[None]
    )


def written_out(a: Tensor, b: Tensor, points_a: Tensor, points_b: Tensor) -> float:
    total = 0.0
    for own, other, where in ((a, b, points_b), (b, a, points_a)):
        for i in range(len(own)):
            terms = [
                math.exp(float(own[i] @ other[j]) / TEMPERATURE)
                for j in range(len(other))
                if j == i or float((where[i] - where[j]).abs().max()) >= SAFE_DISTANCE
            ]
            total -= math.log(math.exp(float(own[i] @ other[i]) / TEMPERATURE) / sum(terms))
    return total / (2 * len(a))


def test_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(8)
    maps = torch.randn(2, 16, 8, 8, generator=generator)
    points_a = at_cells(20)
    points_b = at_cells(64)[torch.randperm(64, generator=generator)[:20]]
    loss, usable = contrastive_loss(maps, one_pair(points_a, points_b, padding=5))
    descriptors = F.normalize(F.relu(maps), dim=1).flatten(2).mT
    rows = [((p - 3.5) / 8).long() @ torch.tensor([1, 8]) for p in (points_a, points_b)]
    a, b = (own[row] for own, row in zip(descriptors, rows, strict=True))
    assert usable.tolist() == [True]
    assert float(loss) == pytest.approx(written_out(a, b, points_a, points_b), rel=1e-4)


def test_learns_to_tell_apart() -> None:
    """Descending it makes partners the most similar ones."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 16, 8, 8, generator=generator).requires_grad_()
    keypoints = one_pair(at_cells(64), at_cells(64)[torch.randperm(64, generator=generator)])
    optimizer = torch.optim.Adam([maps], lr=0.1)
    losses = []
    for _ in range(60):
        loss = contrastive_loss(maps, keypoints)[0].sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 < 2 < losses[0]


def test_pairs_with_few_keypoints_do_not_count() -> None:
    maps = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    few = one_pair(at_cells(MIN_KEYPOINTS - 1), at_cells(MIN_KEYPOINTS - 1), padding=9)
    none = one_pair(torch.empty(0, 2), torch.empty(0, 2), padding=9)
    for keypoints in (few, none):
        loss, usable = contrastive_loss(maps, keypoints)
        assert (loss.tolist(), usable.tolist()) == ([0.0], [False])
        (gradient,) = torch.autograd.grad(loss.sum(), maps)
        assert not gradient.any()


def test_maps_without_any_response_stay_finite() -> None:
    maps = torch.full((2, 16, 8, 8), -1.0, requires_grad=True)
    loss, _ = contrastive_loss(maps, one_pair(at_cells(16), at_cells(16)))
    (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
