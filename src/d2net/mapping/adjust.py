"""Keypoints of a map's photos moved along their tracks, before the map is made.

In a features file a keypoint has one place for all pairs. So what `matching.patches` finds for
every verified match is weighed together (`matching.keypoint_adjustment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from d2net.features import Features
from d2net.io.images import ImageLike
from d2net.mapping.engine import verified_pairs
from d2net.matching.keypoint_adjustment import MatchShifts, adjust_keypoints
from d2net.matching.patches import GreyPhoto, PatchFits
from d2net.matching.refine import MIN_MATCHES, fit_matches, lower_uncertainty

if TYPE_CHECKING:
    import pycolmap

_ROUNDS = 2
"""The second from where the first one ended: nearer to the truth, patches are warped better."""

_BLOCK = 4
"""Pairs of so many photos with so many others come together, so that photos are read few times.
Twice as many are in memory: 12 MB a megapixel, as they are reduced for extraction."""


def adjust(
    database: Path,
    features: Mapping[str, Features],
    photo: Callable[[str], ImageLike],
    *,
    upright: bool = True,
    report: Callable[[str, int], None] | None = None,
) -> dict[str, Features]:
    """Move keypoints of many photos so that the patches around matched ones fit.

    Args:
        database: COLMAP's, with verified matches.
        features: of its photos.
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
    found = {name: _bare(features[name]) for name in features}
    starts = dict(zip(found, np.cumsum([0, *map(len, found.values())]), strict=False))
    todo = _in_blocks(verified_pairs(database), list(found))

    @lru_cache(maxsize=2 * _BLOCK)
    def grey(name: str) -> GreyPhoto:
        return GreyPhoto.read(photo(name), found[name].image_size, upright=upright)

    left = _ROUNDS * len(todo)
    for _ in range(_ROUNDS):
        shifts = []
        for first, second, rows in todo:
            a, b = found[first], found[second]
            fits = fit_matches(grey(first), grey(second), a, b, *rows.unbind(1))
            numbers = rows + torch.tensor([starts[first], starts[second]])
            shifts.append(_shifts(fits, b, rows, numbers))
            left -= 1
            if report is not None:
                report(f"{first} {second}", left)
        found = _moved(found, shifts)
    return found


def _in_blocks(
    pairs: Iterable[tuple[str, str, pycolmap.TwoViewGeometry]], names: Sequence[str]
) -> list[tuple[str, str, Tensor]]:
    """Pairs with enough matches (rows, K x 2), so that few photos change from one to the next."""
    numbers = {name: number for number, name in enumerate(names)}

    def place(pair: tuple[str, str, Tensor]) -> tuple[int, int, int, int]:
        a, b = numbers[pair[0]], numbers[pair[1]]
        return a // _BLOCK, b // _BLOCK, a, b

    found = (
        (first, second, torch.from_numpy(geometry.inlier_matches.astype(np.int64)))
        for first, second, geometry in pairs
    )
    return sorted((pair for pair in found if len(pair[2]) >= MIN_MATCHES), key=place)


def _shifts(fits: PatchFits, second: Features, rows: Tensor, numbers: Tensor) -> MatchShifts:
    """The shifts that the fits of matches ask for.

    `rows` are the matches, K x 2, and `numbers` the same keypoints numbered over all photos.
    """
    moved = fits.moved
    shifts = fits.points - second.keypoints[rows[:, 1]]
    first, other = numbers[moved].numpy().T
    parts = (part[moved].double().numpy() for part in (shifts, fits.affine, fits.information))
    return MatchShifts(first, other, *parts)


def _moved(features: Mapping[str, Features], shifts: Sequence[MatchShifts]) -> dict[str, Features]:
    """The features with adjusted keypoints, which are numbered in the order of the features."""
    detected = torch.cat([found.uncertainty for found in features.values()]).double().numpy()
    moves, agree = (torch.from_numpy(part) for part in adjust_keypoints(shifts, detected))
    counts = [len(found) for found in features.values()]
    return {
        name: lower_uncertainty(replace(found, keypoints=found.keypoints + move.float()), mine)
        for (name, found), move, mine in zip(
            features.items(), torch.split(moves, counts), torch.split(agree, counts), strict=True
        )
    }


def adjusted_uncertainty(before: Features, after: Features) -> float:
    """The typical one of the keypoints that were moved (pixels); of all, if none was."""
    moved = (before.keypoints != after.keypoints).any(dim=1)
    return float(after.uncertainty[moved if moved.any() else ...].median())


def _bare(features: Features) -> Features:
    """Without descriptors, on the CPU."""
    return replace(features, descriptors=features.descriptors[:, :0], descriptor_id=None).to("cpu")
