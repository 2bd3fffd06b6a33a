"""Training pairs of the learned matcher: their features are extracted once and stored.

Each step of training draws random parts of stored pairs, so few pairs give many examples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import is_zipfile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from d2net.errors import D2NetError, InputError
from d2net.features import Features
from d2net.io.atomic import output_errors, replacing
from d2net.networks.matcher import KeypointBatch
from d2net.progress import Progress
from d2net.training.batches import Drawn, Mixture, training_part
from d2net.training.settings import MatcherTrainingSettings
from d2net.training.sources.base import TrainingPair, pair_generator

_MIN_KEYPOINTS = 16  # of a crop, and of a part of it
_MAX_DRAWS = 20  # attempts to draw a pair with enough keypoints, or a crop of another place
_WHOLE = 0.3  # probability that a part is the whole crop
_SMALLEST = 0.5  # smallest edge of other parts, as a share of the crop's
_BEST = 0.4  # probability that a part keeps its best keypoints; otherwise it keeps random ones

NO_MATCH_DISTANCE = 6.0
"""A keypoint has no match if no keypoint lies within so many pixels of its true place."""

_log = logging.getLogger(__name__)


class Labels(NamedTuple):
    """Which keypoints of two crops match.

    Attributes:
        matches: K x 2 int64, rows of both.
        unmatched_a: N bool, keypoints that certainly have no match. Keypoints that are neither
            matched nor marked here are ignored.
        unmatched_b: M bool.
    """

    matches: Tensor
    unmatched_a: Tensor
    unmatched_b: Tensor


class GroundTruth(NamedTuple):
    """Which keypoints of two crops match.

    Attributes:
        errors: N x M distances in pixels. Entry (i, j) is the distance from where keypoint i of a
            is truly seen in b to keypoint j of b. It is infinite for crops of different places, and
            NaN where the true place is unknown.
        labels: which keypoints match.
    """

    errors: Tensor
    labels: Labels


def no_matches(count_a: int, count_b: int) -> Labels:
    """The labels of crops of two places: no keypoint has a match."""
    alone_a, alone_b = (torch.ones(n, dtype=torch.bool) for n in (count_a, count_b))
    return Labels(torch.empty(0, 2, dtype=torch.int64), alone_a, alone_b)


def places_of(
    photos: Sequence[str], settings: MatcherTrainingSettings, data: Path
) -> frozenset[int]:
    """The numbers of the sources whose folders contain one of the photos."""
    sources = (*settings.training_sources, *settings.validation_sources)
    folders = [(data / source.path).resolve() for source in sources]
    paths = [Path(photo).resolve() for photo in photos]
    rows = (n for n, f in enumerate(folders) if any(path.is_relative_to(f) for path in paths))
    return frozenset(rows)


def are_different(places: frozenset[int], others: frozenset[int]) -> bool:
    """Whether photos are known to show different places."""
    return bool(places and others and not places & others)


class MatcherBatch(NamedTuple):
    """Keypoints of the first and second crops of B pairs, and the labels of each pair."""

    a: KeypointBatch
    b: KeypointBatch
    labels: list[Labels]


class CropKeypoints(NamedTuple):
    """Keypoints of a crop, best first.

    Attributes:
        keypoints: N x 2 float32 (x, y) in pixels.
        descriptors: N x D float16.
        size: 2 float32, width and height in pixels.
    """

    keypoints: NDArray[np.float32]
    descriptors: NDArray[np.float16]
    size: NDArray[np.float32]


class StoredPair(NamedTuple):
    """Two crops with labels; `places` are the numbers of the sources that contain their photos."""

    a: CropKeypoints
    b: CropKeypoints
    labels: Labels
    places: frozenset[int]


class StoredPairs:
    """The pairs of a run, one file per pair. A file is written whole or not at all."""

    def __init__(self, folder: Path, data: Path, settings: MatcherTrainingSettings) -> None:
        self._folder, self._data, self._settings = folder, data, settings

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npz"

    def extract(
        self,
        numbers: range,
        features: Callable[[TrainingPair], tuple[Features, Features, GroundTruth]],
        progress: Progress,
    ) -> None:
        """Make the pairs that are missing or damaged."""
        with output_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        mixture: Mixture[TrainingPair] | None = None
        for done, number in enumerate(numbers):
            progress("features of training pairs", done, len(numbers))
            if is_zipfile(self._path(number)):
                continue
            mixture = mixture or Mixture.open(
                self._settings, training_part(self._settings, self._data)
            )
            for attempt in range(_MAX_DRAWS):
                pair, problems = mixture.draw(pair_generator(self._settings.seed, number, attempt))
                for problem in problems:
                    _log.warning("%s", problem)
                a, b, truth = features(pair)
                if min(len(a), len(b)) >= _MIN_KEYPOINTS:
                    break
            else:
                raise InputError(
                    f"{_MAX_DRAWS} training pairs in a row have fewer than {_MIN_KEYPOINTS} "
                    "keypoints in a crop: raise crop, or look at them with `d2net data check`"
                )
            places = places_of(pair.photos, self._settings, self._data)
            arrays = {
                "places": np.array(sorted(places), np.int64),
                **{name: value.cpu().numpy() for name, value in truth.labels._asdict().items()},
            }
            for side, crop in (("a", a), ("b", b)):
                arrays[f"keypoints_{side}"] = crop.keypoints.cpu().numpy()
                arrays[f"descriptors_{side}"] = crop.descriptors.half().cpu().numpy()
                arrays[f"size_{side}"] = np.array(crop.image_size, np.float32)
            file = self._path(number)
            with replacing(file, lock=False) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)
        progress("features of training pairs", len(numbers), len(numbers))

    def read(self, number: int) -> StoredPair:
        """Read a pair."""
        try:
            with np.load(self._path(number)) as arrays:
                a, b = (
                    CropKeypoints(*(arrays[f"{name}_{x}"] for name in CropKeypoints._fields))
                    for x in "ab"
                )
                labels = Labels(*(torch.from_numpy(arrays[name]) for name in Labels._fields))
                return StoredPair(a, b, labels, frozenset(arrays["places"].tolist()))
        except Exception as error:  # a damaged file may cause any
            raise InputError(
                f"the stored pair {self._path(number)} cannot be read: {error}; start the run again"
            ) from error


class PartBatches(Dataset[Drawn | D2NetError]):
    """The batches of a run by step: random parts of stored pairs."""

    def __init__(
        self, settings: MatcherTrainingSettings, stored: StoredPairs, rank: int, processes: int
    ) -> None:
        self._settings, self._stored = settings, stored
        self._rows = range(rank, settings.batch, processes)

    def __getitem__(self, step: int) -> Drawn | D2NetError:
        """The batch of a step. Errors are returned: a raised one would arrive as a traceback."""
        try:
            return Drawn(collate([self._pair(step, row) for row in self._rows]))
        except D2NetError as error:
            return error

    def _pair(self, step: int, row: int) -> StoredPair:
        settings = self._settings
        rng = pair_generator(settings.seed, step, row)
        pair = self._stored.read(int(rng.integers(settings.pairs)))
        if row < round(settings.batch * settings.different):
            for _ in range(_MAX_DRAWS):  # if all fail, the pair stays one of the same place
                other = self._stored.read(int(rng.integers(settings.pairs)))
                if are_different(pair.places, other.places):
                    labels = no_matches(len(pair.a.keypoints), len(other.b.keypoints))
                    pair = StoredPair(pair.a, other.b, labels, frozenset())
                    break
        return random_part(pair, settings.step_keypoints, rng)


def random_part(pair: StoredPair, limit: int, rng: np.random.Generator) -> StoredPair:
    """A random window of each crop, with at most `limit` keypoints: the best, or random ones.

    If any keypoints match, both windows contain one of the matches. Both keypoints of a match have
    one random rank: separate ranks would leave half as many matches as real photos have.
    A keypoint whose match was left out counts as unmatched, unless another one near it remains.
    """
    matches, *unmatched = pair.labels
    crops = (pair.a, pair.b)
    if len(matches):
        anchors = matches[int(rng.integers(len(matches)))].tolist()
    else:
        anchors = [int(rng.integers(len(crop.keypoints))) for crop in crops]
    order: list[NDArray[Any]] = [rng.random(len(crop.keypoints)) for crop in crops]
    order[1][matches[:, 1]] = order[0][matches[:, 0]]
    if rng.random() < _BEST:
        order = [np.arange(len(crop.keypoints)) for crop in crops]
    rows, windows = zip(
        *(_window(*one, limit, rng) for one in zip(crops, anchors, order, strict=True)), strict=True
    )
    new_rows, alone = [], []
    for side, other in ((0, 1), (1, 0)):
        keypoints = torch.from_numpy(crops[other].keypoints)
        distances = torch.cdist(keypoints[matches[:, other]], keypoints[rows[other]])
        gone = distances.amin(1) > NO_MATCH_DISTANCE
        has_no_match = unmatched[side].clone()
        has_no_match[matches[gone, side]] = True
        alone.append(has_no_match[rows[side]])
        new = torch.full((len(crops[side].keypoints),), -1)
        new[rows[side]] = torch.arange(len(rows[side]))
        new_rows.append(new[matches[:, side]])
    kept_matches = torch.stack(new_rows, dim=1)
    kept_matches = kept_matches[(kept_matches >= 0).all(1)]
    return StoredPair(windows[0], windows[1], Labels(kept_matches, *alone), pair.places)


def _window(
    crop: CropKeypoints, anchor: int, ranks: NDArray[Any], limit: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], CropKeypoints]:
    """The `limit` keypoints of lowest rank in a random window that contains keypoint `anchor`."""
    edge = crop.size if rng.random() < _WHOLE else crop.size * rng.uniform(_SMALLEST, 1)
    point = crop.keypoints[anchor]
    first, last = np.maximum(0, point - edge), np.minimum(crop.size - edge, point)
    origin = rng.uniform(first, np.maximum(first, last))
    inside = ((crop.keypoints >= origin) & (crop.keypoints < origin + edge)).all(1)
    rows = np.flatnonzero(inside)
    if len(rows) < _MIN_KEYPOINTS:
        rows, origin, edge = np.arange(len(inside)), np.zeros(2), crop.size
    rows = np.sort(rows[np.argsort(ranks[rows])[:limit]])
    keypoints = (crop.keypoints[rows] - origin).astype(np.float32)
    return rows, CropKeypoints(keypoints, crop.descriptors[rows], np.asarray(edge, np.float32))


def collate(pairs: Sequence[StoredPair]) -> MatcherBatch:
    """A batch of pairs, padded to the longest."""

    def batch(crops: Sequence[CropKeypoints]) -> KeypointBatch:
        counts = torch.tensor([len(crop.keypoints) for crop in crops])
        most = int(counts.max())

        def padded(arrays: Sequence[NDArray[np.floating]]) -> Tensor:
            rows = [torch.from_numpy(array).float() for array in arrays]
            return torch.stack([F.pad(x, (0, 0, 0, most - len(x))) for x in rows])

        return KeypointBatch(
            F.normalize(padded([crop.descriptors for crop in crops]), dim=-1),
            padded([crop.keypoints for crop in crops]),
            torch.from_numpy(np.stack([crop.size for crop in crops])),
            None if counts.min() == most else torch.arange(most) < counts[:, None],
        )

    a, b = batch([pair.a for pair in pairs]), batch([pair.b for pair in pairs])
    return MatcherBatch(a, b, [pair.labels for pair in pairs])
