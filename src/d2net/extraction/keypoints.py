"""From photos of one size to keypoints with descriptors: the path of every extraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from d2net.extraction.corners import CornerDetector
from d2net.extraction.pyramid import PYRAMID, Crop, Level, Window, crop_level, levels
from d2net.extraction.suppression import CellSuppression, RadiusSuppression
from d2net.extraction.tiling import MARGIN, tiles
from d2net.geometry import coordinates
from d2net.networks.base import Detections, Detector, Maps, Network, View
from d2net.settings import ExtractionSettings

_MAX_CHANNELS = 1 << 16


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
        """The rows of all parts, of which there must be one at least."""
        return Keypoints(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Keypoints))
        )

    def best(self, n: int) -> Keypoints:
        """The n keypoints with the highest scores, best first."""
        return self[self.scores.argsort(descending=True, stable=True)[:n]]


def detectors(network: Network, settings: ExtractionSettings) -> list[Detector]:
    """The detectors that resolved settings ask for; of near duplicates the first one's are kept."""
    chosen: list[Detector] = []
    if settings.detector in ("corner", "both"):
        chosen.append(CornerDetector())
    if settings.detector in ("deep", "both"):
        chosen.append(network.detector(original=settings.original))
    return chosen


def find_keypoints(
    network: Network,
    photos: Tensor,
    settings: ExtractionSettings,
    *,
    limit: int | None = None,
    cells_per_tile: int | None = None,
) -> list[list[Keypoints]]:
    """Detect and describe in a batch of photos.

    Args:
        network: on the device of `photos`.
        photos: B x H x W x 3, RGB, 0..255, uint8 or float32.
        settings: resolved by the network; size limits and budget are left to the caller.
        limit: the number of keypoints per detector that the caller will consider at most, so that
            memory does not grow with the candidates of a large photo. None: all.
        cells_per_tile: larger maps are computed in tiles, with the same result. None: the
            network's limit.

    Returns:
        The keypoints of each detector for each photo, by rank.
    """
    _, height, width, _ = photos.shape
    pyramid = levels(
        (width, height),
        PYRAMID if settings.multiscale else (1.0,),
        network.grid,
        original=settings.original,
    )
    chosen = detectors(network, settings)
    assert settings.descriptor is not None  # noqa: S101 (the network has resolved it)
    nothing = _no_keypoints(photos.device, network.descriptor_lengths[settings.descriptor])
    found = [[[nothing] for _ in chosen] for _ in photos]
    statistics = network.statistics(photos)
    for owned in tiles((width, height), pyramid, cells_per_tile or network.cells_per_tile):
        for i, j, part in _search_tile(
            network, photos, statistics, settings, chosen, limit, pyramid, owned
        ):
            parts = [*found[i][j], part]
            if limit is not None and sum(map(len, parts)) > 2 * limit:
                parts = [Keypoints.concatenated(parts).best(limit)]
            found[i][j] = parts
    result = []
    for i, photo in enumerate(photos):
        # On a constant image the network responds only to its own zero padding.
        blank = not settings.original and bool((photo == photo[0, 0]).all())
        of_photo = []
        for _ in chosen:
            # Parts are freed one by one: descriptors of all candidates take the most memory.
            joined = nothing if blank else Keypoints.concatenated(found[i].pop(0))
            of_photo.append(nothing if blank else joined[joined.ranks.argsort()])
        result.append(of_photo)
    return result


def _search_tile(
    network: Network,
    photos: Tensor,
    statistics: Tensor,
    settings: ExtractionSettings,
    chosen: Sequence[Detector],
    limit: int | None,
    pyramid: Sequence[Level],
    owned: Sequence[Window],
) -> Iterator[tuple[int, int, Keypoints]]:
    """Index of photo, index of detector, and the keypoints in the cells that a tile owns."""
    rule = CellSuppression if settings.original else RadiusSuppression
    suppression = [[rule(network.grid) for _ in chosen] for _ in photos]
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
        for i in range(len(photos)):
            of_photo = tuple(part[i] for part in maps)
            view = View(crop.pixels[i], of_photo, level.number, level.factor, dtype)
            for j, detector in enumerate(chosen):
                found = suppression[i][j].apply(detector.detect(view), level, crop)
                found = found[_is_owned(found, detector.border, level, crop, own, network)]
                if limit is not None and len(found) > limit:
                    found = found[found.scores.argsort(descending=True, stable=True)[:limit]]
                yield i, j, _describe(network, settings, detector, found, level, crop, view)
        coarser = maps, crop.window
        del maps, of_photo, view


def _is_owned(
    found: Detections, border: int, level: Level, crop: Crop, own: Window, network: Network
) -> Tensor:
    """N bool: the anchor's cell is one of a window, and the anchor is not in the level's border."""
    anchors = found.anchors + found.anchors.new_tensor([crop.cols.start, crop.rows.start])
    inside = (anchors >= border) & (anchors < anchors.new_tensor(level.size) - border)
    grid = network.grid
    cells = ((anchors.double() - grid.first_centre) / grid.stride).round()
    first = cells.new_tensor([own.cols.start, own.rows.start])
    stop = cells.new_tensor([own.cols.stop, own.rows.stop])
    return (inside & (cells >= first) & (cells < stop)).all(dim=1)


def _describe(
    network: Network,
    settings: ExtractionSettings,
    detector: Detector,
    found: Detections,
    level: Level,
    crop: Crop,
    view: View,
) -> Keypoints:
    """Keypoints of detections in a view of one level."""
    assert settings.descriptor is not None  # noqa: S101 (the network has resolved it)
    first = found.anchors.new_tensor([crop.cols.start, crop.rows.start])
    scales = torch.full_like(found.scores, 1 / level.factor)
    cols, rows = (found.anchors + first).unbind(1)
    rank = (level.number * _MAX_CHANNELS + found.channels) * level.size[1] + rows
    return Keypoints(
        positions=level.photo_from_level(found.positions + first),
        scores=found.scores,
        scales=scales,
        uncertainty=detector.uncertainty(scales),
        descriptors=network.describe(view.maps, found.positions, settings.descriptor),
        ranks=rank * level.size[0] + cols,
    )


def _no_keypoints(device: torch.device, length: int) -> Keypoints:
    none = torch.empty(0, dtype=torch.float32, device=device)
    return Keypoints(none.view(0, 2), none, none, none, none.new_empty(0, length), none.long())
