"""From photos of one size to keypoints with descriptors: the path of every extraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from d2net.extraction.pyramid import PYRAMID, Level, Window, crop_level, levels
from d2net.extraction.suppression import CellSuppression, RadiusSuppression
from d2net.extraction.tiling import MARGIN, tiles
from d2net.geometry import coordinates
from d2net.networks.base import Detections, Grid, Maps, Network, View
from d2net.settings import ExtractionSettings

_MAX_CHANNELS = 1 << 16
_RADIUS = 4 / 3  # of suppression, in deviations of a keypoint's position: half a cell of a VGG


@dataclass(frozen=True)
class Keypoints:
    """Described keypoints of one photo, N rows.

    Attributes:
        positions: N x 2 float32 (x, y) in pixels of the photo that entered the pyramid.
        scores: N float32.
        scales: N float32, 1 / factor of the level.
        uncertainty: N float32, standard deviation of the position per axis, in the same pixels.
        descriptors: N x D float32, unit length.
        ranks: N int64, order by level, channel, row, column: that of the 2019 release.
    """

    positions: Tensor
    scores: Tensor
    scales: Tensor
    uncertainty: Tensor
    descriptors: Tensor
    ranks: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor) -> Keypoints:
        return Keypoints(*(getattr(self, item.name)[rows] for item in fields(self)))

    @staticmethod
    def concatenated(parts: Sequence[Keypoints]) -> Keypoints:
        """The rows of all parts, at least one."""
        return Keypoints(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Keypoints))
        )

    def best(self, n: int | None) -> Keypoints:
        """The n keypoints with the highest scores, or all, best first."""
        return self[self.scores.argsort(descending=True, stable=True)[:n]]


def find_keypoints(
    network: Network,
    photos: Tensor,
    settings: ExtractionSettings,
    *,
    limit: int | None = None,
    cells_per_tile: int | None = None,
) -> list[Keypoints]:
    """Detect and describe keypoints in photos (B x H x W x 3, RGB, 0..255, uint8 or float32).

    The keypoints of each photo are sorted by rank. The caller applies the size limits and
    max_keypoints, and uses at most `limit` keypoints: others may be dropped, so memory does not
    grow with the size of a photo. Maps of more than `cells_per_tile` cells are computed in tiles,
    with the same result; None is the network's limit.
    """
    _, height, width, _ = photos.shape
    factors = PYRAMID if settings.multiscale else (1.0,)
    pyramid = levels((width, height), factors, network.grid, original=settings.original)
    assert settings.descriptor is not None  # noqa: S101 (the network has resolved it)
    none = torch.empty(0, dtype=torch.float32, device=photos.device)
    no_descriptors = none.new_empty(0, network.descriptor_lengths[settings.descriptor])
    nothing = Keypoints(none.view(0, 2), none, none, none, no_descriptors, none.long())
    found = [[nothing] for _ in photos]
    statistics = network.statistics(photos)
    for owned in tiles((width, height), pyramid, cells_per_tile or network.cells_per_tile):
        for i, part in _search_tile(network, photos, statistics, settings, limit, pyramid, owned):
            found[i].append(part)
            if limit is not None and sum(map(len, found[i])) > 2 * limit:
                found[i] = [Keypoints.concatenated(found[i]).best(limit)]
    result = []
    for photo in photos:
        # On a constant image the network responds only to its own zero padding.
        blank = not settings.original and photo.equal(photo[:1, :1].expand_as(photo))
        joined = Keypoints.concatenated(found.pop(0))  # frees the parts: most of the memory
        result.append(nothing if blank else joined[joined.ranks.argsort()])
    return result


def _search_tile(
    network: Network,
    photos: Tensor,
    statistics: Tensor,
    settings: ExtractionSettings,
    limit: int | None,
    pyramid: Sequence[Level],
    owned: Sequence[Window],
) -> Iterator[tuple[int, Keypoints]]:
    """For each level and photo: the photo's index, and the keypoints in the cells of a tile."""
    assert settings.descriptor is not None  # noqa: S101 (the network has resolved it)
    detector = network.detector(original=settings.original)
    radius = _RADIUS * float(detector.uncertainty(torch.ones(1, device="cpu")))
    suppression = [
        CellSuppression(network.grid) if settings.original else RadiusSuppression(radius)
        for _ in photos
    ]
    dtype = getattr(torch, settings.precision)
    coarser: tuple[Maps, Window] | None = None
    for level, own in zip(pyramid, owned, strict=True):
        crop = crop_level(photos, level, own.grown(MARGIN, level.cells), network.grid)
        maps = network.compute_maps(crop.pixels, dtype, statistics)
        if coarser is not None and level.coarser_from_cells is not None:
            coarser_maps, window = coarser
            from_level = coordinates.crop(window.cols.start, window.rows.start)
            to_level = coordinates.crop(-crop.window.cols.start, -crop.window.rows.start)
            coarser_from_maps = from_level.after(level.coarser_from_cells.after(to_level))
            network.add_coarser_level(
                maps, coarser_maps, coarser_from_maps, level.number, original=settings.original
            )
        origin = torch.tensor(crop.origin, device=photos.device)
        for i, pixels in enumerate(crop.pixels):
            of_photo = tuple(part[i] for part in maps)
            view = View(pixels, of_photo, level.number, level.factor, dtype)
            found = detector.detect(view)
            anchors, positions = found.anchors + origin, found.positions + origin
            found = replace(found, anchors=anchors, positions=positions)
            found = suppression[i].apply(found, level, crop.window)
            found = found[_is_owned(found, detector.border, level, own, network.grid)]
            best = found.scores.argsort(descending=True, stable=True)[:limit]
            found = found[best.sort().values]  # neighbours are sampled one after the other
            scales = torch.full_like(found.scores, 1 / level.factor)
            in_view = found.positions - origin
            cols, rows = found.anchors.unbind(1)
            channels = level.number * _MAX_CHANNELS + found.channels
            keypoints = Keypoints(
                positions=level.photo_from_level(found.positions),
                scores=found.scores,
                scales=scales,
                uncertainty=detector.uncertainty(scales),
                descriptors=network.describe(view.maps, in_view, settings.descriptor),
                ranks=(channels * level.size[1] + rows) * level.size[0] + cols,
            )
            yield i, keypoints
        coarser = maps, crop.window
        del maps, of_photo, view


def _is_owned(found: Detections, border: int, level: Level, own: Window, grid: Grid) -> Tensor:
    """N bool: the anchor's cell is one of a window, and the anchor is not in the level's border."""
    anchors = found.anchors
    inside = (anchors >= border) & (anchors < anchors.new_tensor(level.size) - border)
    cells = ((anchors.float() - grid.first_centre) / grid.stride).round()
    first = cells.new_tensor([own.cols.start, own.rows.start])
    stop = cells.new_tensor([own.cols.stop, own.rows.stop])
    return (inside & (cells >= first) & (cells < stop)).all(dim=1)
