"""Extraction from rotated copies of a photo, for photos that were taken at different angles.

The descriptors are not invariant to rotation. So the photo is rotated, each copy is extracted
like any other photo, and its keypoints are mapped back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.extraction.keypoints import Keypoints
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Rotation

_BORDER = 8
"""Keypoints within this many pixels (of their level) of the photo's border depend on padding."""

_ROWS_AT_ONCE = 128


def find_in_turns(
    find: Callable[[Tensor], list[Keypoints]], photos: Tensor, turns: int
) -> Iterator[list[Keypoints]]:
    """Keypoints in copies of the photos that are rotated by equal parts of a circle.

    `find` takes photos (B x H x W x 3, 0..255, uint8 or float32). The first of the copies is not
    rotated. Keypoints have their positions in `photos`; those near the photo's border are left out.
    """
    last = torch.tensor([photos.shape[2], photos.shape[1]], device=photos.device) - 1
    yield find(photos)
    for number in range(1, turns):
        turned, photo_from_turned = turn_photos(photos, 360 * number / turns)
        of_photos = []
        for found in find(turned):
            positions = photo_from_turned(found.positions.cpu().double()).float().to(photos.device)
            margin = _BORDER * found.scales[:, None]
            inside = ((positions >= margin) & (positions <= last - margin)).all(dim=1)
            keypoints = replace(found, positions=positions)
            # After a quarter turn the border is the same, and detection excluded it.
            of_photos.append(keypoints if photo_from_turned.quarter else keypoints[inside])
        yield of_photos


def turn_photos(photos: Tensor, degrees: float) -> tuple[Tensor, Rotation]:
    """Photos rotated counterclockwise about their centres, and the map photo_from_turned.

    Quarter turns only move pixels. Other turns are interpolated (bicubic), and the photo is
    padded by replicating its border. Nothing is cut off.
    """
    _, height, width, _ = photos.shape
    size, turned_from_photo = coordinates.turn((width, height), degrees)
    photo_from_turned = turned_from_photo.inverse()
    if photo_from_turned.quarter:
        return photos.rot90(int(degrees // 90), (1, 2)).contiguous(), photo_from_turned
    planes = photos.permute(0, 3, 1, 2).float()
    last = torch.tensor([width - 1, height - 1]).clamp(min=1)
    turned = photos.new_empty(len(photos), size[1], size[0], 3)
    x = torch.arange(size[0])  # MPS has no double precision
    for top in range(0, size[1], _ROWS_AT_ONCE):  # bounds the memory of the intermediates
        y = torch.arange(top, min(top + _ROWS_AT_ONCE, size[1]))
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        grid = photo_from_turned(points.double()) / last * 2 - 1
        band = F.grid_sample(
            planes,
            grid.float().to(photos.device).expand(len(photos), *grid.shape),
            mode="bicubic",
            padding_mode="border",
            align_corners=True,
        )
        band = band.clamp_(0, 255).permute(0, 2, 3, 1)
        turned[:, y] = band if turned.dtype.is_floating_point else band.round().to(turned.dtype)
    return turned, photo_from_turned
