"""Batches of training pairs, in an order that nothing but the settings decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from d2net.errors import D2NetError, InputError
from d2net.training.correspondences import Pairs
from d2net.training.loss import Correspondences
from d2net.training.settings import SourceSettings, TrainingSettings
from d2net.training.sources import Mixture, Source, TrainingPair, generator, open_source
from d2net.training.transfer import at_corners

_ROUNDED = 64  # lists have few lengths, for which a CPU's kernels are made once and kept
_ATTEMPTS = 20  # pairs that cannot be read, in a row, before it is hopeless


@dataclass(frozen=True, eq=False)
class Batch:
    """The pairs of a step, or one process's part of them.

    Attributes:
        images: 2B x H x W x 3 uint8, first all first crops, then all second crops.
        correspondences: of the B pairs.
        corners: what corresponds at corners of either crop; None if not asked for.
        sources: B, where each pair comes from.
        empty: how many more pairs were drawn that had no correspondences.
        problems: why further pairs that were drawn could not be made: missing or broken photos.
    """

    images: Tensor
    correspondences: Correspondences
    corners: Correspondences | None
    sources: tuple[str, ...]
    empty: int = 0
    problems: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same batch elsewhere."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            correspondences=self.correspondences.to(device),
            corners=None if self.corners is None else self.corners.to(device),
        )


def collate(
    pairs: Sequence[TrainingPair],
    *,
    corners: bool = False,
    empty: int = 0,
    problems: Sequence[str] = (),
) -> Batch:
    """A batch of pairs, their correspondences padded to the longest list.

    Args:
        pairs: at least one, of equal size.
        corners: whether to look for correspondences at corners.
        empty: see `Batch`.
        problems: see `Batch`.
    """
    images = np.stack([pair.image_a for pair in pairs] + [pair.image_b for pair in pairs])
    known = [(pair.points_a, pair.points_b) for pair in pairs]
    at = [
        at_corners((pair.image_a, pair.image_b), points)
        for pair, points in zip(pairs, known, strict=True)
        if corners
    ]
    return Batch(
        torch.from_numpy(images),
        _padded(known),
        _padded(at) if corners else None,
        tuple(pair.source for pair in pairs),
        empty,
        tuple(problems),
    )


def _padded(lists: Sequence[Pairs]) -> Correspondences:
    longest = max(1, *(len(a) for a, _ in lists))
    longest = -(-longest // _ROUNDED) * _ROUNDED
    points = np.zeros((2, len(lists), longest, 2), np.float32)
    valid = np.zeros((len(lists), longest), np.bool_)
    for i, both in enumerate(lists):
        count = len(both[0])
        points[:, i, :count], valid[i, :count] = both, True
    a, b = torch.from_numpy(points)
    return Correspondences(a, b, torch.from_numpy(valid))


class Subset:
    """Some pairs of a source.

    Args:
        source: the whole.
        numbers: which.
    """

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        self.name, self._source, self._numbers = source.name, source, numbers

    def __len__(self) -> int:
        """How many."""
        return len(self._numbers)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """See `Source.pair`."""
        return self._source.pair(self._numbers[index], rng)


def open_part(source: SourceSettings, crop: int, data: Path, *, held_out: bool) -> Source:
    """Open a source without the pairs that it holds out, or with these alone.

    Args:
        source: what to open.
        crop: edge of the crops in pixels.
        data: the folder that its path is relative to.
        held_out: which of both.

    Raises:
        InputError: it cannot be opened, or no pair is left.
    """
    opened = open_source({**source.specification, "path": str(data / source.path)}, crop)
    if not source.hold_out:
        return opened
    last = min(source.hold_out, len(opened)) - 1  # of a few at least one
    numbers = [n for n in range(len(opened)) if (n % source.hold_out == last) == held_out]
    if not numbers:
        raise InputError(
            f"{source.path} has a single pair, too few to train on some and validate on others: "
            "leave hold_out away"
        )
    return Subset(opened, numbers)


def open_mixture(settings: TrainingSettings, data: Path) -> Mixture:
    """Open the sources that are trained on and mix them.

    Args:
        settings: sources, groups, shares, edge of the crops.
        data: the folder that the sources' paths are relative to.

    Raises:
        InputError: a source cannot be opened, or none takes part.
    """
    sources = settings.trained_on
    if not sources:
        groups = f" of the groups {', '.join(settings.groups)}" if settings.groups else ""
        raise InputError(f"there is no source of training pairs{groups}: name one in sources")
    opened = [open_part(source, settings.crop, data, held_out=False) for source in sources]
    return Mixture(opened, settings.weights(sources))


class Draws(Dataset[Batch | D2NetError]):
    """What is drawn for each step; a process opens the sources when it first draws.

    Args:
        settings: of the run.
        data: the folder of the data.
        rank: of this process.
        processes: that share every batch; each has every `processes`-th of its pairs.
    """

    def __init__(
        self, settings: TrainingSettings, data: Path, rank: int = 0, processes: int = 1
    ) -> None:
        self.settings, self.data = settings, data
        self.places = range(rank, settings.batch, processes)
        self._mixture: Mixture | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mixture": None}

    def __getitem__(self, step: int) -> Batch | D2NetError:
        """The batch of a step; an error is given, not raised, to keep its message in one piece."""
        try:
            if self._mixture is None:
                self._mixture = open_mixture(self.settings, self.data)
            drawn = [
                draw(self._mixture, generator(self.settings.seed, step, i)) for i in self.places
            ]
        except D2NetError as error:
            return error
        return collate(
            [pair for pair, _, _ in drawn],
            corners=self.settings.contrast > 0,
            empty=sum(empty for _, empty, _ in drawn),
            problems=[problem for _, _, problems in drawn for problem in problems],
        )


def draw(mixture: Mixture, rng: np.random.Generator) -> tuple[TrainingPair, int, list[str]]:
    """A usable pair, how many drawn before it had no correspondences, and what was unreadable.

    One broken photo must not end a night of training.

    Raises:
        InputError: nothing that is drawn can be used.
    """
    problems: list[str] = []
    while len(problems) < _ATTEMPTS:
        try:
            pair, empty = mixture.sample(rng)
        except InputError:
            raise
        except D2NetError as error:
            problems.append(str(error))
            continue
        return pair, empty, problems
    raise InputError(
        f"{_ATTEMPTS} pairs in a row could not be read; the last because {problems[-1]}"
    )


def load(draws: Draws, steps: range, workers: int) -> Iterator[Batch]:
    """The batches of some steps in order, made ahead of time by other processes.

    Args:
        draws: what to draw.
        steps: which.
        workers: processes that make batches; 0: this one, when they are asked for.

    Raises:
        D2NetError: whatever goes wrong with the data.
    """
    loader: DataLoader[Batch | D2NetError] = DataLoader(
        draws,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_it_is,
        # A forked process must not use threads, and a fork server's child outlives a killed parent.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    for batch in loader:
        if isinstance(batch, D2NetError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:  # noqa: ANN401 (without a batch size, the item itself)
    return batch


def _one_thread(_: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
