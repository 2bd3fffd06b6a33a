"""Batches of training pairs, in an order that depends on the settings alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from glob import iglob
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2net.errors import D2NetError, InputError
from d2net.io.arrays import evenly_spaced
from d2net.io.image_lists import find_images
from d2net.training.correspondences import PointPairs, corner_correspondences
from d2net.training.loss import PaddedCorrespondences
from d2net.training.settings import RunSettings, SourceSettings
from d2net.training.sources import open_source
from d2net.training.sources.base import PairSource, Source, TrainingPair, pair_generator
from d2net.training.sources.planar import OFFSETS_FILE, PAIRS_FILE

T = TypeVar("T")

_INPUTS = (
    *("*.bin", "*.h5", PAIRS_FILE, OFFSETS_FILE),
    *("cameras.txt", "frames.txt", "images.txt", "points3D.txt", "rigs.txt"),
)
"""Files besides photos that sources read."""
_PADDING_STEP = 64  # few different lengths, because CPU kernels are set up once for each
_MAX_UNREADABLE = 20  # pairs in a row that cannot be read
_MAX_EMPTY = 100  # pairs in a row without correspondences


class PairBatch(NamedTuple):
    """The pairs of a step, or one process's part of them.

    Attributes:
        images: 2B x H x W x 3 uint8: all first crops, then all second crops.
        correspondences: correspondences of the B pairs.
        corners: correspondences at corners of either crop; None if not asked for.
    """

    images: Tensor
    correspondences: PaddedCorrespondences
    corners: PaddedCorrespondences | None


def collate(
    pairs: Sequence[TrainingPair], *, corners: bool = False, most: int | None = None
) -> PairBatch:
    """Make a batch of pairs, with lists of correspondences padded to the longest.

    At most `most` correspondences of each pair are kept.
    """
    images = np.stack([pair.image_a for pair in pairs] + [pair.image_b for pair in pairs])
    points, at_corners = [], []
    for pair in pairs:
        kept = evenly_spaced(len(pair.points_a), most or len(pair.points_a))
        points.append((pair.points_a[kept], pair.points_b[kept]))
        if corners:
            at_corners.append(corner_correspondences(pair.image_a, pair.image_b, points[-1]))
    return PairBatch(
        torch.from_numpy(images), _padded(points), _padded(at_corners) if corners else None
    )


def _padded(lists: Sequence[PointPairs]) -> PaddedCorrespondences:
    longest = max(1, *(len(a) for a, _ in lists))
    longest = -(-longest // _PADDING_STEP) * _PADDING_STEP
    points = np.zeros((2, len(lists), longest, 2), np.float32)
    valid = np.zeros((len(lists), longest), np.bool_)
    for i, pair in enumerate(lists):
        count = len(pair[0])
        points[:, i, :count], valid[i, :count] = pair, True
    a, b = torch.from_numpy(points)
    return PaddedCorrespondences(a, b, torch.from_numpy(valid))


class Subset:
    """Some pairs of a source."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.name, self._source, self._indices = source.name, source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """See `Source.pair`."""
        return self._source.pair(self._indices[index], rng)


def open_part(source: SourceSettings, crop: int, data: Path, *, held_out: bool) -> Source:
    """Open the held-out pairs of a source, or its other pairs; all pairs if it holds none out."""
    opened = open_source(source.kind, data / source.path, crop, source.options)
    if not source.hold_out:
        return opened
    if len(opened) < 2:
        raise InputError(
            f"{source.path} has a single pair, too few for training and validation: add photos, "
            "or use a recipe with hold_out = 0"
        )
    last = min(source.hold_out, len(opened)) - 1  # at least one, however few there are
    indices = [i for i in range(len(opened)) if (i % source.hold_out == last) == held_out]
    return Subset(opened, indices)


def input_files(settings: RunSettings, data: Path) -> dict[str, Path]:
    """The photos, depth maps, models and lists of a run, by their paths below the data's folder."""
    found: set[Path] = set()
    for source in (*settings.training_sources, *settings.validation_sources):
        others = (source.options.get(option) for option in ("model", "images"))
        paths = ("", *(path for path in others if isinstance(path, str)))
        for folder in (data / source.path / path for path in paths):
            if folder.is_dir():
                found.update(photo.path for photo in find_images([folder]))
                patterns = () if source.kind == "photos" else _INPUTS
                for pattern in patterns:  # pathlib would not follow links
                    names = iglob(f"**/{pattern}", root_dir=folder, recursive=True)  # noqa: PTH207
                    found.update(folder / name for name in names)
    return {os.path.relpath(path, data): path for path in sorted(found)}


def training_part(settings: RunSettings, data: Path) -> Callable[[SourceSettings], Source]:
    """A function that opens a source of a run without its held-out pairs; see `open_part`."""
    return partial(open_part, crop=settings.crop, data=data, held_out=False)


class Drawn(NamedTuple):
    """A batch of any type, and why pairs were left out that could not be read."""

    content: Any
    problems: tuple[str, ...] = ()


class Mixture(Generic[T]):
    """Draws pairs from several sources: a source by its weight, then any of its pairs.

    `weights` are the relative frequencies of the sources; None: equal ones.
    """

    def __init__(
        self, sources: Sequence[PairSource[T]], weights: Sequence[float] | None = None
    ) -> None:
        shares = np.ones(len(sources)) if weights is None else np.array(weights, np.float64)
        self._sources, self._shares = tuple(sources), shares / shares.sum()

    @classmethod
    def open(
        cls, settings: RunSettings, open_one: Callable[[SourceSettings], PairSource[T]]
    ) -> Mixture[T]:
        """Open the training sources of a run."""
        if not settings.training_sources:
            groups = f" of the groups {', '.join(settings.groups)}" if settings.groups else ""
            raise InputError(f"there is no source of training pairs{groups}: name one in sources")
        opened = [open_one(source) for source in settings.training_sources]
        return cls(opened, settings.source_weights())

    def draw(self, rng: np.random.Generator) -> tuple[T, list[str]]:
        """Draw until a pair is usable. One broken photo must not end a night of training.

        Returns:
            The pair, and why others could not be read.
        """
        empty = 0
        problems: list[str] = []
        while empty < _MAX_EMPTY and len(problems) < _MAX_UNREADABLE:
            source = self._sources[int(rng.choice(len(self._sources), p=self._shares))]
            try:
                pair = source.pair(int(rng.integers(len(source))), rng)
            except D2NetError as error:
                problems.append(f"a training pair was left out: {error}")
                continue
            if pair is not None:
                return pair, problems
            empty += 1
        if empty < _MAX_EMPTY:
            raise InputError(f"{len(problems)} pairs could not be read; the last: {problems[-1]}")
        names = ", ".join(source.name for source in self._sources)
        raise InputError(
            f"none of {_MAX_EMPTY} pairs drawn from {names} has enough correspondences: look at "
            "them with `d2net data check`"
        )


class PairBatches(Dataset[Drawn | D2NetError], Generic[T]):
    """The batches of a run by step. A process opens the sources when it draws its first batch."""

    def __init__(
        self,
        settings: RunSettings,
        open_one: Callable[[SourceSettings], PairSource[T]],
        collate: Callable[[Sequence[T]], Any],
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._settings, self._open, self._collate = settings, open_one, collate
        self._rows = range(rank, settings.batch, processes)
        self._mixture: Mixture[T] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mixture": None}

    def __getitem__(self, step: int) -> Drawn | D2NetError:
        """The batch of a step. Errors are returned: a raised one would arrive as a traceback."""
        try:
            if self._mixture is None:
                self._mixture = Mixture.open(self._settings, self._open)
            seed = self._settings.seed
            drawn = [self._mixture.draw(pair_generator(seed, step, row)) for row in self._rows]
        except D2NetError as error:
            return error
        problems = tuple(problem for _, problems in drawn for problem in problems)
        return Drawn(self._collate([pair for pair, _ in drawn]), problems)


def load(dataset: Dataset[Drawn | D2NetError], steps: range, workers: int) -> Iterator[Drawn]:
    """The batches of some steps, in order. `workers` processes make them; 0: this process does."""
    loader: DataLoader[Drawn | D2NetError] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_identity,
        # A forked process must not use threads, and a fork server's child outlives a killed parent.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        if isinstance(batch, D2NetError):
            raise batch
        yield batch


def _identity(batch: Any) -> Any:  # noqa: ANN401 (what the dataset gave)
    return batch


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(1)  # torch has set its own
    parent = multiprocessing.parent_process()
    # torch notices only a later death; is_alive may be true until all threads have ended
    if parent is not None and parent.pid != os.getppid():
        raise SystemExit
