"""The transformer that matches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.matcher import Assignment, KeypointBatch, MatcherSettings, MatchingTransformer
from d2net.networks.weights import load_matcher, save_weights


@pytest.fixture(scope="module")
def matcher() -> MatchingTransformer:
    torch.manual_seed(0)
    settings = MatcherSettings(descriptor_length=16, width=32, heads=2, layers=2)
    network = MatchingTransformer(settings).eval()
    for parameter in network.parameters():
        if not parameter.any():  # updates are zero before training, so attention has no effect
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def keypoints(n: int, seed: int) -> KeypointBatch:
    generator = torch.Generator().manual_seed(seed)
    return KeypointBatch(
        F.normalize(torch.randn(1, n, 16, generator=generator), dim=2),
        torch.rand(1, n, 2, generator=generator) * torch.tensor([640.0, 480.0]),
        torch.tensor([[640.0, 480.0]]),
    )


def padded(batch: KeypointBatch, n: int) -> KeypointBatch:
    more = n - batch.descriptors.shape[1]
    valid = torch.arange(n)[None] < batch.descriptors.shape[1]
    pad = (0, 0, 0, more)
    return KeypointBatch(
        F.pad(batch.descriptors, pad), F.pad(batch.positions, pad), batch.sizes, valid
    )


def match(
    matcher: MatchingTransformer, a: KeypointBatch, b: KeypointBatch
) -> tuple[Tensor, Tensor]:
    descriptors = a.descriptors[0], b.descriptors[0]
    return matcher.match(matcher.prepare(a), matcher.prepare(b), descriptors)


def log_probability(assignment: Assignment) -> Tensor:
    """B x N x M, the assignment of LightGlue."""
    both = assignment.similarity.log_softmax(2) + assignment.similarity.log_softmax(1)
    of_a, of_b = F.logsigmoid(assignment.matchability_a), F.logsigmoid(assignment.matchability_b)
    return both + of_a[:, :, None] + of_b[:, None, :]


@torch.no_grad()
def test_the_order_of_keypoints_does_not_matter(matcher: MatchingTransformer) -> None:
    a, b = keypoints(40, 1), keypoints(50, 2)
    order = torch.randperm(40)
    turned = KeypointBatch(a.descriptors[:, order], a.positions[:, order], a.sizes)
    plain, changed = (log_probability(matcher(x, b)[-1]) for x in (a, turned))
    torch.testing.assert_close(plain[:, order], changed, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_padding_does_not_matter(matcher: MatchingTransformer) -> None:
    a, b = keypoints(40, 1), keypoints(50, 2)
    alone = log_probability(matcher(a, b)[-1])
    together = log_probability(matcher(padded(a, 64), padded(b, 60))[-1])
    torch.testing.assert_close(together[:, :40, :50], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_pairs_of_a_batch_do_not_affect_each_other(matcher: MatchingTransformer) -> None:
    """Not even a photo with a single keypoint, or with none."""
    pairs = [(keypoints(n, 1), keypoints(m, 2)) for n, m in ((40, 50), (1, 50), (0, 7), (3, 1))]
    a, b = (
        KeypointBatch(*(torch.cat(part) for part in zip(*sides, strict=True)))
        for sides in ([padded(pair[side], 60) for pair in pairs] for side in (0, 1))
    )
    together = log_probability(matcher(a, b)[-1])
    for row, (one, other) in enumerate(pairs):
        alone = log_probability(matcher(one, other)[-1])[0]
        n, m = alone.shape
        torch.testing.assert_close(together[row, :n, :m], alone, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_order_of_photos_does_not_matter(matcher: MatchingTransformer) -> None:
    a, b = keypoints(40, 1), keypoints(50, 2)
    (pairs, confidence), (swapped, same) = match(matcher, a, b), match(matcher, b, a)
    order = swapped[:, 1].argsort()
    assert len(pairs) > 5
    assert torch.equal(swapped[order].flip(1), pairs)
    torch.testing.assert_close(same[order], confidence, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_the_size_of_the_photo_does_not_matter(matcher: MatchingTransformer) -> None:
    a, b = keypoints(40, 1), keypoints(50, 2)
    large = KeypointBatch(a.descriptors, 2 * a.positions + 0.5, 2 * a.sizes)
    one, two = (log_probability(matcher(x, b)[-1]) for x in (a, large))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def dense_mutual_best(assignment: Assignment) -> tuple[list[list[int]], Tensor]:
    probability = log_probability(assignment)[0].exp()
    rows = torch.arange(len(probability))
    best = probability.argmax(1)
    mutual = probability.argmax(0)[best] == rows
    pairs = torch.stack([rows, best], 1)[mutual]
    return pairs.tolist(), probability[pairs[:, 0], pairs[:, 1]]


@torch.no_grad()
def test_mutual_best_equals_the_dense_probabilities(matcher: MatchingTransformer) -> None:
    assignment = matcher(keypoints(40, 1), keypoints(50, 2))[-1]
    pairs, probability = assignment.mutual_best()
    expected, dense = dense_mutual_best(assignment)
    assert pairs.tolist() == expected
    torch.testing.assert_close(probability, dense, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_keypoints_that_leave_early_do_not_change_the_others_rows(
    matcher: MatchingTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = keypoints(40, 1), keypoints(50, 2)
    expected, probability = matcher(a, b)[-1].mutual_best()
    monkeypatch.setattr("d2net.networks.matcher._MIN_MATCHABILITY", 0.0)
    pairs, confidence = match(matcher, a, b)
    assert pairs.tolist() == expected.tolist()
    torch.testing.assert_close(confidence, matcher.calibrated(probability))
    logits = matcher(a, b)[-1].matchability_a[0]
    monkeypatch.setattr(
        "d2net.networks.matcher._MIN_MATCHABILITY", float(logits.median().sigmoid())
    )
    some, _ = match(matcher, a, b)
    assert 0 < len(some) < len(pairs)
    monkeypatch.setattr("d2net.networks.matcher._MIN_MATCHABILITY", 1.0)
    for x, y in ((a, b), (keypoints(0, 1), b), (a, keypoints(0, 2))):
        none, confidence = match(matcher, x, y)
        assert none.shape == (0, 2)
        assert len(confidence) == 0


def test_untrained_it_trusts_the_descriptors_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    settings = MatcherSettings(descriptor_length=16, width=32, heads=2, layers=2)
    matcher = MatchingTransformer(settings)
    a = keypoints(40, 1)
    order = torch.randperm(40)
    b = KeypointBatch(a.descriptors[:, order], keypoints(40, 3).positions, a.sizes)
    assignments = matcher(a, b)
    assert len(assignments) == 2
    pairs, _ = assignments[-1].mutual_best()
    assert float((order[pairs[:, 1]] == pairs[:, 0]).float().mean()) > 0.9

    def loss(assignments: list[Assignment]) -> Tensor:
        rows = torch.arange(40)
        return -torch.stack([log_probability(x)[0, order, rows].mean() for x in assignments]).sum()

    optimizer = torch.optim.SGD(matcher.parameters(), lr=0.1)
    loss(assignments).backward()
    optimizer.step()  # the first layers learn as soon as the last linear layers are not zero
    loss(matcher(a, b)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in matcher.parameters())


def test_a_saved_matcher_matches_the_same(matcher: MatchingTransformer, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_weights(path, matcher, {"name": "small", "descriptor_id": "tiny 0 plain"})
    network, _ = load_matcher(path)
    a, b = keypoints(40, 1), keypoints(50, 2)
    with torch.no_grad():
        before, after = (net(a, b)[-1].mutual_best() for net in (matcher, network))
    torch.testing.assert_close(after[1].sum(), before[1].sum(), rtol=1e-2, atol=1e-2)
