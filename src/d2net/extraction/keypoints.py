"""From photos of one size to positions, scores and descriptors: the path every extraction takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from d2net.extraction.detectors import Proposer, View, deviation, propose
from d2net.extraction.pyramid import (
    PYRAMID,
    Level,
    Window,
    add_previous,
    level_crop,
    level_maps,
    levels,
)
from d2net.extraction.suppression import BarredCells, BarredNeighbourhoods
from d2net.extraction.tiling import CELLS_PER_TILE, MARGIN, tiles
from d2net.networks.catalogue import Normalisation
from d2net.networks.sampling import Form, describe
from d2net.networks.vgg import Trunk
from d2net.networks.whitening import Whitening


@dataclass(frozen=True)
class Keypoints:
    """What a proposer finds in one photo, N rows.

    Attributes:
        positions: N x 2 float32 (x, y) in pixels of the photo that entered the pyramid.
        scores: N float32.
        scales: N float32, 1 / factor of the level.
        deviations: N float32, standard deviation of the position per axis, in the same pixels.
        descriptors: N x D float32, unit length.
        order: N int64, rank in the proposer's order; the deep one's is the release's: level,
            channel, row, column.
    """

    positions: Tensor
    scores: Tensor
    scales: Tensor
    deviations: Tensor
    descriptors: Tensor
    order: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor) -> Keypoints:
        return Keypoints(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def joined(parts: Sequence[Keypoints]) -> Keypoints:
        """All rows of at least one part, one part after the other."""
        return Keypoints(
            *(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Keypoints))
        )


def find_keypoints(
    trunk: Trunk,
    normalisation: Normalisation,
    photos: Tensor,
    *,
    multiscale: bool,
    original: bool,
    dtype: torch.dtype,
    proposers: Sequence[Proposer] = ("deep",),
    form: Form = "plain",
    whitening: Whitening | None = None,
    most: int | None = None,
    cells_per_tile: int = CELLS_PER_TILE,
) -> list[list[Keypoints]]:
    """Detect and describe in a batch of photos.

    Args:
        trunk: the network, on the device of `photos`.
        normalisation: what its weights want.
        photos: B x H x W x 3, RGB, 0..255, uint8 or float32.
        multiscale: on the pyramid of 0.5, 1, 2, or at the photo's own size alone.
        original: as the 2019 release.
        dtype: precision of the network.
        proposers: of keypoints.
        form: of descriptors.
        whitening: for the form whitened.
        most: how many of each proposer will be looked at, those with the highest scores, so that
            memory does not grow with a large photo's candidates. None: all.
        cells_per_tile: larger maps are computed in tiles, with equal results.

    Returns:
        For each photo what each proposer has found, in its order.
    """
    _, height, width, _ = photos.shape
    pyramid = levels((width, height), PYRAMID if multiscale else (1.0,), original=original)
    search = _Search(
        trunk, normalisation, photos, pyramid, original, dtype, tuple(proposers), form, whitening
    )
    found = [[[search.nothing()] for _ in proposers] for _ in photos]
    for owned in tiles((width, height), pyramid, cells_per_tile):
        for i, j, part in search.in_tile(owned):
            found[i][j] = _wanted([*found[i][j], part], most)
    # Each proposer's parts go as they are joined: descriptors of all candidates are the most memory
    # that a large photo takes.
    joined = [[_joined(of_photo.pop(0)) for _ in proposers] for of_photo in found]
    if not original:  # of a photo without contrast the network sees only the zeros around it
        for i, photo in enumerate(photos):
            if bool((photo == photo[0, 0]).all()):
                joined[i] = [search.nothing() for _ in proposers]
    return joined


Barring = BarredCells | BarredNeighbourhoods


@dataclass(frozen=True)
class _Search:
    """What `find_keypoints` was asked for; its methods hold no map longer than it is needed."""

    trunk: Trunk
    normalisation: Normalisation
    photos: Tensor
    pyramid: Sequence[Level]
    original: bool
    dtype: torch.dtype
    proposers: tuple[Proposer, ...]
    form: Form
    whitening: Whitening | None

    def in_tile(self, owned: Sequence[Window]) -> Iterator[tuple[int, int, Keypoints]]:
        """Numbers of photo and proposer, and keypoints of the cells that a tile owns."""
        rule = BarredCells if self.original else BarredNeighbourhoods
        barring: list[list[Barring]] = [[rule() for _ in self.proposers] for _ in self.photos]
        previous, previous_window = None, None
        for level, own in zip(self.pyramid, owned, strict=True):
            window = own.grown(MARGIN, level.cells)
            crop = level_crop(self.photos, level, window)
            deep, shallow = level_maps(self.trunk, self.normalisation, crop, window, self.dtype)
            if previous is not None and previous_window is not None:
                add_previous(deep, window, previous, previous_window, level, original=self.original)
            for i in range(len(self.photos)):
                view = View(level, window, crop, crop.pixels[i], deep[i], shallow[i], self.dtype)
                for j, proposer in enumerate(self.proposers):
                    yield i, j, self._in_view(view, own, proposer, barring[i][j])
            previous, previous_window = deep, window
            del deep, shallow, view

    def _in_view(self, view: View, own: Window, proposer: Proposer, barring: Barring) -> Keypoints:
        """Keypoints of the owned cells of one level, from a window around them."""
        found = propose(proposer, view, barring)
        positions = view.level.photo_from_cells(found.positions)
        if isinstance(barring, BarredNeighbourhoods):
            free = barring.filter(positions, view.level)
            found, positions = found[free], positions[free]
        mine = found.inside(own)
        found, positions = found[mine], positions[mine]
        scales = torch.full_like(found.scores, 1 / view.level.factor)
        cells = found.positions - view.origin
        return Keypoints(
            positions,
            found.scores,
            scales,
            deviation(proposer, scales),
            describe(view.deep, view.shallow, cells, self.form, self.whitening),
            found.order,
        )

    def nothing(self) -> Keypoints:
        """No keypoints, with descriptors of the right length."""
        none = torch.empty(0, device=self.photos.device)
        deep, shallow = (
            none.new_empty(1, 1, size)
            for size in (self.trunk.channels, self.trunk.shallow_channels)
        )
        descriptors = describe(deep, shallow, none.view(0, 2), self.form, self.whitening)
        return Keypoints(none.view(0, 2), none, none, none, descriptors, none.long())


def _wanted(parts: list[Keypoints], most: int | None) -> list[Keypoints]:
    """The parts, as one with the best where they hold twice as many as will be looked at."""
    if most is None or sum(map(len, parts)) < 2 * most:
        return parts
    joined = Keypoints.joined(parts)
    return [joined[joined.scores.argsort(descending=True, stable=True)[:most]]]


def _joined(parts: Sequence[Keypoints]) -> Keypoints:
    """All parts in the proposer's order, whatever the tiles."""
    joined = Keypoints.joined(parts)
    # Levels only grow, so that every rank of a level is above all those of the level before.
    return joined[joined.order.argsort()]
