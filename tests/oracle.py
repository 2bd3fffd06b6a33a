"""The 2019 release's algorithm, transcribed literally and densely: slow, hungry and plain.

Written from the description of what the release computes, not from its code. It is the truth that
`original` is compared with (beside the release's own outputs in `golden/`) and the baseline of the
benchmarks: every map is dense over all channels, as in the release.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (103.939, 116.779, 123.68)


def dense_map(image: Tensor, layers: list[nn.Conv2d]) -> Tensor:
    """1 x 3 x H x W normalised -> 1 x 512 x h x w after ReLU, at stride 4."""
    x = image
    for i, layer in enumerate(layers):
        dilated = i >= 7
        d = 2 if dilated else 1
        if i in (2, 4):
            x = F.max_pool2d(x, 2, 2)
        if i == 7:
            x = F.avg_pool2d(x, 2, 1)
        x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=d, dilation=d))
    return x


STENCILS = {
    "ii": [[0, 1.0, 0], [0, -2.0, 0], [0, 1.0, 0]],
    "jj": [[0, 0, 0], [1.0, -2.0, 1.0], [0, 0, 0]],
    "ij": [[0.25, 0, -0.25], [0, 0, 0], [-0.25, 0, 0.25]],
    "i": [[0, -0.5, 0], [0, 0, 0], [0, 0.5, 0]],
    "j": [[0, 0, 0], [-0.5, 0, 0.5], [0, 0, 0]],
}


def derivative(maps: Tensor, name: str) -> Tensor:
    """A 3x3 stencil on every channel, the border padded with zeros."""
    b, c, h, w = maps.shape
    stencil = torch.tensor(STENCILS[name], dtype=maps.dtype, device=maps.device)[None, None]
    return F.conv2d(maps.view(-1, 1, h, w), stencil, padding=1).view(b, c, h, w)


def hard_detections(maps: Tensor) -> Tensor:
    """1 x C x h x w bool: equation 3 and the edge test."""
    strongest = maps.max(dim=1, keepdim=True)[0]
    local_max = F.max_pool2d(maps, 3, 1, 1)
    dii, djj, dij = (derivative(maps, n) for n in ("ii", "jj", "ij"))
    det = dii * djj - dij * dij
    tr = dii + djj
    limit = (5 + 1) ** 2 / 5
    edge = (tr * tr / det <= limit) & (det > 0)
    return (maps == strongest) & (maps == local_max) & edge


def displacements(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Sub-pixel steps (rows, columns), dense over all channels."""
    dii, djj, dij = (derivative(maps, n) for n in ("ii", "jj", "ij"))
    det = dii * djj - dij * dij
    di, dj = derivative(maps, "i"), derivative(maps, "j")
    step_i = -(djj / det * di - dij / det * dj)
    step_j = -(dii / det * dj - dij / det * di)
    return step_i, step_j


def extract(
    pixels: np.ndarray, layers: list[nn.Conv2d], scales: tuple[float, ...] = (1.0,)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints N x 3 (x, y, scale), scores N, descriptors N x 512, in the release's order.

    Args:
        pixels: H x W x 3, RGB, 0..255.
        layers: the ten convolutions.
        scales: (1.0,) or (0.5, 1.0, 2.0).
    """
    device = layers[0].weight.device
    bgr = pixels.astype(np.float32)[:, :, ::-1].transpose(2, 0, 1) - np.array(
        MEAN, dtype=np.float32
    ).reshape(3, 1, 1)
    image = torch.from_numpy(np.ascontiguousarray(bgr))[None].to(device, layers[0].weight.dtype)
    height, width = image.shape[2:]
    all_keypoints, all_scores, all_descriptors = [], [], []
    previous = banned = None
    with torch.no_grad():
        for index, scale in enumerate(scales):
            level = F.interpolate(
                image,
                size=(int(height * scale), int(width * scale)),
                mode="bilinear",
                align_corners=True,
            )
            maps = dense_map(level, layers)
            h, w = maps.shape[2:]
            if previous is not None:
                maps = maps + F.interpolate(
                    previous, size=(h, w), mode="bilinear", align_corners=True
                )
            detections = hard_detections(maps)
            if banned is not None:
                banned = F.interpolate(banned.float(), size=(h, w)).bool()
                detections = detections & ~banned
                banned = detections.any(dim=1, keepdim=True) | banned
            else:
                banned = detections.any(dim=1, keepdim=True)
            previous = maps
            positions = torch.nonzero(detections[0])  # by channel, row, column
            step_i, step_j = displacements(maps)
            k, i, j = positions.t()
            di, dj = step_i[0, k, i, j], step_j[0, k, i, j]
            keep = (di.abs() < 0.5) & (dj.abs() < 0.5)
            k, i, j = k[keep], i[keep], j[keep]
            y, x = i + di[keep], j + dj[keep]
            top, left = y.floor().long(), x.floor().long()
            bottom, right = y.ceil().long(), x.ceil().long()
            inside = (top >= 0) & (left >= 0) & (bottom < h) & (right < w)
            k, i, j, y, x = k[inside], i[inside], j[inside], y[inside], x[inside]
            top, left, bottom, right = (v[inside] for v in (top, left, bottom, right))
            u, v = y - top, x - left
            m = maps[0]
            descriptors = (
                (1 - u) * (1 - v) * m[:, top, left]
                + (1 - u) * v * m[:, top, right]
                + u * (1 - v) * m[:, bottom, left]
                + u * v * m[:, bottom, right]
            )
            descriptors = F.normalize(descriptors, dim=0).t()
            scores = m[k, i, j] / (index + 1)
            px, py = 2 * (2 * x + 0.5) + 0.5, 2 * (2 * y + 0.5) + 0.5
            px = px * width / level.shape[3]
            py = py * height / level.shape[2]
            size = torch.full_like(px, 1 / scale)
            all_keypoints.append(torch.stack([px, py, size], 1))
            all_scores.append(scores)
            all_descriptors.append(descriptors)
    return (
        torch.cat(all_keypoints).float().cpu().numpy(),
        torch.cat(all_scores).float().cpu().numpy(),
        torch.cat(all_descriptors).float().cpu().numpy(),
    )
