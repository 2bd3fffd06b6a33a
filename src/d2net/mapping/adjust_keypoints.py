"""Keypoint adjustment of a map's photos: keypoints move along their tracks before mapping.

A keypoint has one position for all its matches. So the fits of all matched patches
(`matching.refine`) are combined into one adjustment (`matching.keypoint_adjustment`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from d2net.features import Features
from d2net.io.images import ImageLike
from d2net.mapping.mapper import verified_pairs
from d2net.matching.keypoint_adjustment import MatchShifts, adjust_keypoints
from d2net.matching.refine import MIN_MATCHES, GreyPhoto, fit_matches, lower_uncertainty
from d2net.progress import Progress, no_progress

_ROUNDS = 2  # the second round warps patches more accurately, because it starts nearer to the truth

_BLOCK = 4
"""Photos of a block. The pairs between two blocks are processed together, so each photo is read
only a few times. Both blocks are in memory, with 12 MB per megapixel of the extracted size."""


def adjust_map_keypoints(
    database: Path,
    features: Mapping[str, Features],
    photo: Callable[[str], ImageLike],
    *,
    upright: bool = True,
    progress: Progress = no_progress,
) -> dict[str, Features]:
    """Move the keypoints of a database's photos so that the patches around verified matches fit.

    `photo` returns a photo by its name; `upright` is the setting of the features.

    Returns:
        All features without descriptors. Keypoints on which matches agree are moved; their
        uncertainty is at most that of a fit.
    """
    adjusted = {
        name: replace(
            features[name], descriptors=features[name].descriptors[:, :0], descriptor_id=None
        ).to("cpu")
        for name in features
    }
    counts = [len(f) for f in adjusted.values()]
    first_row = dict(zip(adjusted, np.cumsum([0, *counts]).tolist(), strict=False))
    blocks = {name: number // _BLOCK for number, name in enumerate(adjusted)}
    pairs = [
        (first, second, torch.from_numpy(geometry.inlier_matches.astype(np.int64)))
        for first, second, geometry in verified_pairs(database)
        if len(geometry.inlier_matches) >= MIN_MATCHES
    ]
    pairs.sort(key=lambda pair: (blocks[pair[0]], blocks[pair[1]], *pair[:2]))

    @lru_cache(maxsize=2 * _BLOCK)
    def grey(name: str) -> GreyPhoto:
        return GreyPhoto.read(photo(name), adjusted[name].image_size, upright=upright)

    done, total = 0, _ROUNDS * len(pairs)
    progress("adjusting", done, total)
    for _ in range(_ROUNDS):
        shifts = []
        for first, second, rows in pairs:
            a, b = adjusted[first], adjusted[second]
            fits = fit_matches(grey(first), grey(second), a, b, *rows.unbind(1))
            shifts.append(
                MatchShifts(
                    first=(rows[fits.moved, 0] + first_row[first]).numpy(),
                    second=(rows[fits.moved, 1] + first_row[second]).numpy(),
                    shifts=(fits.points - b.keypoints[rows[:, 1]])[fits.moved].double().numpy(),
                    affine=fits.affine[fits.moved].double().numpy(),
                    information=fits.information[fits.moved].double().numpy(),
                )
            )
            done += 1
            progress(f"adjusting: {first}  {second}", done, total)
        deviations = torch.cat([f.uncertainty for f in adjusted.values()]).double().numpy()
        moves, agree = (torch.from_numpy(part) for part in adjust_keypoints(shifts, deviations))
        adjusted = {
            name: lower_uncertainty(replace(f, keypoints=f.keypoints + move.float()), rows)
            for (name, f), move, rows in zip(
                adjusted.items(),
                torch.split(moves, counts),
                torch.split(agree, counts),
                strict=True,
            )
        }
    return adjusted


def adjusted_uncertainty(before: Features, after: Features) -> float:
    """Median uncertainty of the moved keypoints in pixels; of all keypoints if none moved."""
    moved = (before.keypoints != after.keypoints).any(dim=1)
    return float(after.uncertainty[moved if moved.any() else ...].median())
