"""Features and matches made from a seed, and how to tell whether two are equal."""

import torch
from torch.nn.functional import normalize

from d2net.features import Features, Matches

TENSORS = ("keypoints", "scores", "scales", "descriptors", "uncertainty")


def make_features(n=20, seed=0, dimension=8, image_size=(640, 480), descriptor="tiny root"):
    generator = torch.Generator().manual_seed(seed)
    return Features(
        keypoints=torch.rand(n, 2, generator=generator) * torch.tensor(image_size) - 0.5,
        scores=torch.rand(n, generator=generator),
        scales=torch.rand(n, generator=generator) + 0.5,
        descriptors=normalize(torch.randn(n, dimension, generator=generator), dim=1),
        image_size=image_size,
        uncertainty=torch.rand(n, generator=generator) + 1,
        descriptor_id=descriptor,
    )


def make_matches(k=10, seed=0, num0=20, num1=20):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(num0, generator=generator)[:k].sort().values
    columns = torch.randperm(num1, generator=generator)[:k]
    return Matches(torch.stack([rows, columns], dim=1), torch.rand(k, generator=generator))


def assert_same_features(a, b):
    assert a.image_size == b.image_size
    assert a.descriptor_id == b.descriptor_id
    for name in TENSORS:
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def as_set(matches):
    """The matched rows with their similarity, in any order."""
    rows, similarity = matches.indices.tolist(), matches.similarity.tolist()
    return {(i, j, s) for (i, j), s in zip(rows, similarity, strict=True)}
