"""Keypoints of a map's photos moved along their tracks, before the map is made.

In a features file a keypoint has one place for all pairs. So what `matching.patches` finds for
every verified match is weighed together (`matching.tracks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2net.features import Features
from d2net.images import ImageLike
from d2net.matching.patches import GreyPhoto
from d2net.matching.refine import LEAST_MATCHES, fit_matches, surer
from d2net.matching.tracks import Displacements, joined, one_of_a_photo, settle

MatchedRows = tuple[str, str, NDArray[np.integer[Any]]]
"""Names of two photos, and K x 2 rows of their keypoints."""

_BLOCK = 4
"""Pairs of so many photos with so many others come together: few photos are read more than once a
block, and twice as many are in memory (8 MB a megapixel, as they are reduced for extraction)."""


def adjust(
    pairs: Iterable[MatchedRows],
    features: Mapping[str, Features],
    photo: Callable[[str], ImageLike],
    *,
    upright: bool = True,
    report: Callable[[str, int], None] | None = None,
) -> dict[str, Features]:
    """Move keypoints of many photos so that the patches around matched ones fit.

    Args:
        pairs: verified matches.
        features: of all photos that they name, and of others that stay as they are.
        photo: where a photo is, by its name.
        upright: as the features were extracted.
        report: called after each pair, with how many are left.

    Returns:
        All the features without their descriptors. Of keypoints that matches agree on the places
        are new, and the uncertainty, which is that between photos.

    Raises:
        InputError: a photo has another size than its features say.
        ImageError: a photo cannot be read.
    """
    bare = {name: _bare(features[name]) for name in features}
    numbers = {name: number for number, name in enumerate(bare)}
    starts = np.cumsum([0, *(len(found) for found in bare.values())])
    todo = sorted(
        (pair for pair in pairs if len(pair[2]) >= LEAST_MATCHES),
        key=lambda pair: _by_blocks(numbers[pair[0]], numbers[pair[1]]),
    )

    @lru_cache(maxsize=2 * _BLOCK)
    def grey(name: str) -> GreyPhoto:
        return GreyPhoto.of(photo(name), bare[name].image_size, upright=upright)

    said = []
    for left, (first, second, rows) in zip(range(len(todo) - 1, -1, -1), todo, strict=True):
        rows_a, rows_b = torch.from_numpy(rows.astype(np.int64)).unbind(1)
        a, b = bare[first], bare[second]
        fits = fit_matches(grey(first), grey(second), a, b, rows_a, rows_b)
        moved = fits.moved
        said.append(
            Displacements(
                starts[numbers[first]] + rows_a[moved].numpy(),
                starts[numbers[second]] + rows_b[moved].numpy(),
                (fits.points - b.keypoints[rows_b])[moved].double().numpy(),
                fits.frames[moved].double().numpy(),
                fits.information[moved].double().numpy(),
            )
        )
        if report is not None:
            report(f"{first} {second}", left)
    return _moved(bare, starts, joined(said))


def _moved(
    features: Mapping[str, Features], starts: NDArray[np.int64], said: Displacements
) -> dict[str, Features]:
    """The features where displacements, whose keypoints are numbered from the `starts`, agree."""
    photos = np.repeat(np.arange(len(features)), np.diff(starts))
    detected = np.concatenate([found.uncertainty.double().numpy() for found in features.values()])
    moves, agree = settle(one_of_a_photo(said, photos), detected)
    after = {}
    for number, (name, found) in enumerate(features.items()):
        mine = slice(starts[number], starts[number + 1])
        shifted = found.keypoints + torch.from_numpy(moves[mine]).float()
        after[name] = surer(replace(found, keypoints=shifted), torch.from_numpy(agree[mine]))
    return after


def adjusted_uncertainty(before: Features, after: Features) -> float:
    """The typical one of the keypoints that were moved (pixels); of all, if none was."""
    moved = (before.keypoints != after.keypoints).any(dim=1)
    return float(after.uncertainty[moved if moved.any() else ...].median())


def _bare(features: Features) -> Features:
    """Without descriptors, on the CPU."""
    return replace(features, descriptors=features.descriptors[:, :0], descriptor=None).to("cpu")


def _by_blocks(first: int, second: int) -> tuple[int, int, int, int]:
    """Sorts pairs of numbers so that few change from one to the next."""
    return first // _BLOCK, second // _BLOCK, first, second
