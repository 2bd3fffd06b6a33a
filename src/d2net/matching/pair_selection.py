"""Selection of the pairs of photos to match.

Every method selects each pair once, in one order, and no pair of a photo with itself. The pairs
are sorted by the positions of their photos in the input, so that a photo's pairs come together and
its features are read rarely.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.spatial import cKDTree

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.colmap_model import read_model
from d2net.io.exif import Position, gps_positions
from d2net.io.image_lists import FoundImage
from d2net.io.pair_lists import Pair, read_pairs
from d2net.io.text_lists import as_known
from d2net.matching.retrieval import GlobalDescriptors
from d2net.settings import Settings
from d2net.wording import count

_log = logging.getLogger(__name__)

PairMethod: TypeAlias = Literal[
    "auto", "exhaustive", "sequential", "retrieval", "gps", "covisibility", "list"
]

MAX_EXHAUSTIVE = 50  # largest number of photos for which `auto` selects all pairs (1,225 of them)


@dataclass(frozen=True)
class PairChoice(Settings):
    """How pairs are selected.

    Attributes:
        method: "exhaustive" (all pairs), "sequential" (photos that follow each other by name),
            "retrieval" (photos that look most alike), "gps" (photos taken close to each other; for
            photos without a position, retrieval), "covisibility" (photos that see the same points
            of a COLMAP model), "list" (pairs of a file), or "auto": all pairs, or retrieval.
        num_matched: number of other photos for each photo (retrieval, gps, covisibility).
        overlap: number of following photos for each photo (sequential).
        max_distance: largest distance in metres (gps).
        model: folder of a COLMAP model (covisibility).
        file: text file with two names a line (list).
    """

    method: PairMethod = "auto"
    num_matched: int = 20
    overlap: int = 10
    max_distance: float = 100.0
    model: Path | str | None = None
    file: Path | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, "num_matched", "overlap")
        if not self.max_distance > 0:
            raise InputError(f"max_distance must be above 0 metres, not {self.max_distance}")
        if (self.model is not None) != (self.method == "covisibility"):
            raise InputError("covisibility needs a COLMAP model, and no other method takes one")
        if (self.file is not None) != (self.method == "list"):
            raise InputError("the method list needs a file, and no other method takes one")


def choose_pairs(
    choice: PairChoice,
    names: Sequence[str],
    *,
    photos: Sequence[FoundImage] | None = None,
    features: Mapping[str, Features] | None = None,
    descriptors: GlobalDescriptors | None = None,
) -> list[Pair]:
    """Select pairs of the photos of these names.

    `photos` are their files, for gps; a list may name only these photos and those in `names`.
    Retrieval needs their features, or their global descriptors if they exist already.
    """

    def by_retrieval() -> list[Pair]:
        if descriptors is None and features is None:
            raise InputError(
                "retrieval needs a features file: d2net extract PHOTOS --output features.h5"
            )
        built = descriptors or GlobalDescriptors.build(features or {}, names)
        return from_retrieval(built, choice.num_matched)

    method = choice.method
    known = set(names)
    can_retrieve = features is not None or descriptors is not None
    if method == "auto":
        few = len(names) <= MAX_EXHAUSTIVE or not can_retrieve
        method = "exhaustive" if few else "retrieval"
    if method == "exhaustive":
        if len(names) > 2_000:
            _log.warning(
                "all pairs of %s are %s, which takes long; the method retrieval selects fewer",
                *(count(len(names), "photo"), count(len(names) * (len(names) - 1) // 2, "pair")),
            )
        return list(combinations(names, 2))
    if method == "sequential":
        return sequential(natural_order(names), choice.overlap)
    if method == "retrieval":
        return by_retrieval()
    if choice.model is not None:
        model = read_model(choice.model, known)
        return from_covisibility(model, choice.num_matched, names=names)
    if choice.file is not None:
        all_names = known | {photo.name for photo in photos or ()}  # some may have no features
        pairs = read_pairs(choice.file)
        listed = [(as_known(a, all_names), as_known(b, all_names)) for a, b in pairs]
        unknown = sorted({name for pair in listed for name in pair} - all_names)
        if unknown:
            raise InputError(f"{choice.file} names {unknown[0]!r}, which is not one of the photos")
        return [pair for pair in listed if known.issuperset(pair)]
    if photos is None:
        raise InputError(
            "gps reads positions from the photos: give their folder, not a features file"
        )
    positions = gps_positions(photo for photo in photos if photo.name in known)
    if not positions:
        raise InputError(f"none of the {len(names)} photos has a GPS position")
    selected = from_gps(positions, choice.num_matched, choice.max_distance)
    unplaced = known - positions.keys()
    if unplaced and can_retrieve:
        selected += [pair for pair in by_retrieval() if unplaced.intersection(pair)]
    return selected


def sequential(names: Sequence[str], overlap: int = 10) -> list[Pair]:
    """Pairs of photos that follow each other, for videos and walks.

    Each photo is paired with the `overlap` next ones, as COLMAP's sequential matching does, and
    with the photos 1, 2, 4, ... 2^(overlap - 1) later (COLMAP's `quadratic_overlap`). The distant
    pairs connect a sequence that slows down or comes back. The names are in the order in which the
    photos were taken; see `natural_order`.
    """
    overlap = min(overlap, len(names))
    doubling = {2**i for i in range(min(overlap, len(names).bit_length()))}
    steps = sorted({*range(1, overlap + 1), *doubling})
    return [
        (name, names[i + step])
        for i, name in enumerate(names)
        for step in steps
        if i + step < len(names)
    ]


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with numbers as numbers: frame9 before frame10."""

    def key(name: str) -> tuple[list[str | int], str]:
        parts = re.split(r"([0-9]+)", name)
        return [int(part) if i % 2 else part for i, part in enumerate(parts)], name

    return sorted(names, key=key)


def from_gps(
    positions: Mapping[str, Position], num_matched: int = 20, max_distance: float = 100.0
) -> list[Pair]:
    """Pairs of each photo with the `num_matched` nearest others within `max_distance` metres.

    Distances are straight lines between the points on the WGS84 ellipsoid. Altitudes are not used,
    because GPS measures them badly (COLMAP's `ignore_z`).
    """
    names = list(positions)
    if len(names) < 2:
        return []
    on_ellipsoid = np.array([(*positions[name][:2], 0.0) for name in names])
    points = pycolmap.GPSTransform().ellipsoid_to_ecef(on_ellipsoid)
    # One more than asked for, because each photo is among its own nearest neighbours.
    k = min(num_matched + 1, len(names))
    _, rows = cKDTree(points).query(points, k=k, distance_upper_bound=max_distance)
    nearest: list[list[int]] = np.asarray(rows).tolist()  # len(names) where there is no more
    others = ([j for j in row if j not in (i, len(names))] for i, row in enumerate(nearest))
    return _sorted_pairs(names, (row[:num_matched] for row in others))


def from_covisibility(
    model: pycolmap.Reconstruction, num_matched: int = 20, *, names: Collection[str] | None = None
) -> list[Pair]:
    """Pairs of each photo of a COLMAP model with the photos that share the most points with it.

    Sorted by name; of `names` if given. Photos without a common point are not paired.
    """
    in_model, shared = shared_points(model)
    if names is not None:
        wanted = set(names)
        rows = [i for i, name in enumerate(in_model) if name in wanted]
        in_model, shared = [in_model[i] for i in rows], shared[np.ix_(rows, rows)]
    ranked = (-shared).argsort(axis=1, kind="stable")[:, :num_matched]
    others = ([j for j in row if shared[i, j] > 0] for i, row in enumerate(ranked.tolist()))
    return _sorted_pairs(in_model, others)


def shared_points(model: pycolmap.Reconstruction) -> tuple[list[str], NDArray[np.int64]]:
    """The sorted names of a model's photos, and how many 3D points each two of them share.

    The counts are N x N, with 0 on the diagonal. Photos without a pose are left out.
    """
    images = sorted((model.images[i] for i in model.reg_image_ids()), key=lambda image: image.name)
    seen = [np.unique([p.point3D_id for p in image.get_observation_points2D()]) for image in images]
    rows = np.repeat(np.arange(len(images)), [len(points) for points in seen])
    ids, columns = np.unique(np.concatenate([np.empty(0), *seen]), return_inverse=True)
    sees = coo_array(
        (np.ones(len(rows), np.int64), (rows, columns)), shape=(len(images), len(ids))
    ).tocsr()
    shared = (sees @ sees.T).toarray()
    np.fill_diagonal(shared, 0)
    return [image.name for image in images], shared


def from_retrieval(descriptors: GlobalDescriptors, num_matched: int = 20) -> list[Pair]:
    """Pairs of each photo with the photos that look most like it; none without features."""
    index = {name: i for i, name in enumerate(descriptors.names)}
    neighbours = descriptors.neighbours(num_matched)
    others = ([index[other] for other, _ in neighbours[name]] for name in descriptors.names)
    return _sorted_pairs(descriptors.names, others)


def _sorted_pairs(names: Sequence[str], others: Iterable[Iterable[int]]) -> list[Pair]:
    """The pairs of each photo with its others (indices), once each and sorted."""
    indices = {(min(i, j), max(i, j)) for i, row in enumerate(others) for j in row}
    return [(names[i], names[j]) for i, j in sorted(indices)]
