"""A photo turned, so that its descriptors fit those of a photo that was held another way.

Descriptors of a network turn with the photo as little as those of SIFT without its orientations. So
the photo is turned instead, and each turn is a photo like any other until its keypoints lie in the
pixels of the first one again: as if it had been extracted that many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.extraction.corners import FRAME
from d2net.extraction.keypoints import Keypoints
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Rotation, Size

_ROWS_AT_ONCE = 128

Found = list[list[Keypoints]]
"""For each photo what each proposer has found."""


def find_in_turns(find: Callable[[Tensor], Found], photos: Tensor, turns: int) -> Iterator[Found]:
    """What is found in photos turned by equal parts of a circle, one turn after the other.

    Args:
        find: finds keypoints in B x H x W x 3 photos.
        photos: B x H x W x 3, 0..255, uint8 or float32.
        turns: how many; the first one is none.

    Yields:
        Of each turn the keypoints at their places in `photos`.
    """
    size = photos.shape[2], photos.shape[1]
    yield find(photos)
    for number in range(1, turns):
        turned, photo_from_turned = turn_photos(photos, 360 * number / turns)
        yield [
            [_turned_back(keypoints, photo_from_turned, size) for keypoints in of_photo]
            for of_photo in find(turned)
        ]


def _turned_back(found: Keypoints, photo_from_turned: Rotation, size: Size) -> Keypoints:
    """Keypoints at their places in the photo, without those at its frame or beyond it."""
    positions = photo_from_turned(found.positions.double()).float()
    found = replace(found, positions=positions)
    if photo_from_turned.quarter:
        return found  # its frame is the photo's, and has none already
    margin = FRAME * found.scales[:, None]
    last = positions.new_tensor(size) - 1
    return found[((positions >= margin) & (positions <= last - margin)).all(dim=1)]


def turn_photos(photos: Tensor, degrees: float) -> tuple[Tensor, Rotation]:
    """Photos turned counterclockwise about their centres.

    Quarter turns only move pixels. Between them they are interpolated (bicubic), and what lies
    beyond the frame goes on with the photo's last pixel.

    Args:
        photos: B x H x W x 3, 0..255, uint8 or float32.
        degrees: how far.

    Returns:
        The turned photos, of their bounding box's size and of the same type, and
        photo_from_turned.
    """
    _, height, width, _ = photos.shape
    size, turned_from_photo = coordinates.turn((width, height), degrees)
    photo_from_turned = turned_from_photo.inverse()
    if photo_from_turned.quarter:
        return photos.rot90(int(degrees // 90), (1, 2)).contiguous(), photo_from_turned
    planes = photos.permute(0, 3, 1, 2).float()
    last = planes.new_tensor([width - 1, height - 1]).clamp(min=1)
    turned = photos.new_empty(len(photos), size[1], size[0], 3)
    x = torch.arange(size[0], device=photos.device)
    for top in range(0, size[1], _ROWS_AT_ONCE):  # bounds the memory of the intermediates
        y = torch.arange(top, min(top + _ROWS_AT_ONCE, size[1]), device=photos.device)
        points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        grid = photo_from_turned(points.double()) / last * 2 - 1
        band = F.grid_sample(
            planes,
            grid.float().expand(len(photos), *grid.shape),
            mode="bicubic",
            padding_mode="border",
            align_corners=True,
        )
        band = band.clamp_(0, 255).permute(0, 2, 3, 1)
        turned[:, y] = band if turned.dtype.is_floating_point else band.round().to(turned.dtype)
    return turned, photo_from_turned
