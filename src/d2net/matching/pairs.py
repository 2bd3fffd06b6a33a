"""Pairs of photos to match, with a function for each method.

Every function returns each pair once, in one order, and no pair of a photo with itself. The pairs
are sorted by the positions of their photos in the input, so that a photo's pairs come together and
its features are read rarely.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.io.exif import Position
from d2net.io.pairs import Pair

if TYPE_CHECKING:
    import pycolmap

    from d2net.matching.retrieval import GlobalDescriptors


def exhaustive(names: Sequence[str]) -> list[Pair]:
    """All N (N - 1) / 2 pairs, for up to some hundred photos.

    Raises:
        InputError: a photo is named twice.
    """
    return list(combinations(_distinct(names), 2))


def sequential(names: Sequence[str], overlap: int = 10) -> list[Pair]:
    """Pairs of photos that follow each other, for videos and walks.

    Each photo is paired with the `overlap` next ones, and with those 1, 2, 4, ... 2^(overlap - 1)
    later, which hold a long sequence together where it slows down or comes back. These are the
    pairs of COLMAP's sequential matching without and with its `quadratic_overlap`, of which COLMAP
    4 makes one or the other.

    Args:
        names: photos in the order in which they were taken; see `natural_order`.
        overlap: number of next photos for each photo.

    Raises:
        InputError: a photo is named twice, or `overlap` is below 1.
    """
    names = _distinct(names)
    _check_count("overlap", overlap)
    doubling = {2**i for i in range(min(overlap, len(names).bit_length()))}
    steps = sorted({*range(1, overlap + 1), *doubling})
    last = len(names) - 1
    return [
        (name, names[i + step])
        for i, name in enumerate(names)
        for step in steps
        if i + step <= last
    ]


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with numbers as numbers: frame9 before frame10."""

    def key(name: str) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", name)
        return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]

    return sorted(names, key=lambda name: (key(name), name))


def from_gps(
    positions: Mapping[str, Position], num_matched: int = 20, max_distance: float = 100.0
) -> list[Pair]:
    """Pairs of each photo with the nearest others by GPS position.

    Distances are straight lines between the points on the WGS84 ellipsoid. Altitudes are not used,
    because GPS measures them badly (COLMAP's `ignore_z`).

    Args:
        positions: positions by photo; see `io.exif.gps_positions`.
        num_matched: number of other photos for each photo.
        max_distance: largest distance in metres.

    Raises:
        InputError: `num_matched` is below 1 or `max_distance` not above 0.
    """
    from scipy.spatial import cKDTree

    _check_count("num_matched", num_matched)
    if not max_distance > 0:
        raise InputError(f"max_distance must be a number of metres above 0, not {max_distance}")
    names = list(positions)
    if len(names) < 2:
        return []
    points = np.array([positions[name].on_ellipsoid() for name in names])
    # One more than asked for, because each photo is among its own nearest neighbours.
    k = min(num_matched + 1, len(names))
    bound = np.nextafter(max_distance, np.inf)  # the bound itself is excluded
    _, rows = cKDTree(points).query(points, k=k, distance_upper_bound=bound)
    nearest: list[list[int]] = np.asarray(rows).tolist()  # len(names) where there is no more
    others = ([j for j in row if j not in (i, len(names))] for i, row in enumerate(nearest))
    return _sorted_pairs(names, (row[:num_matched] for row in others))


def from_covisibility(
    model: pycolmap.Reconstruction, num_matched: int = 20, *, names: Collection[str] | None = None
) -> list[Pair]:
    """Pairs of each photo of a COLMAP model with those that see the most of the same points.

    The photos are sorted by name. Photos without a common point are not paired.

    Args:
        model: a model with points.
        num_matched: number of other photos for each photo.
        names: only these photos; None for all photos of the model.

    Raises:
        InputError: `num_matched` is below 1.
    """
    _check_count("num_matched", num_matched)
    in_model, shared = shared_points(model)
    if names is not None:
        wanted = set(names)
        rows = [i for i, name in enumerate(in_model) if name in wanted]
        in_model, shared = [in_model[i] for i in rows], shared[np.ix_(rows, rows)]
    ranked = (-shared).argsort(axis=1, kind="stable")[:, :num_matched]
    others = ([j for j in row if shared[i, j] > 0] for i, row in enumerate(ranked.tolist()))
    return _sorted_pairs(in_model, others)


def shared_points(model: pycolmap.Reconstruction) -> tuple[list[str], NDArray[np.int64]]:
    """The number of 3D points that two photos of a model both see.

    Returns:
        The sorted names of the photos with a pose, and N x N counts with 0 on the diagonal.
    """
    from scipy.sparse import coo_array

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
    """Pairs of each photo with those that look most alike; photos without features have none.

    Args:
        descriptors: the global descriptors of the photos.
        num_matched: number of other photos for each photo.

    Raises:
        InputError: `num_matched` is below 1.
    """
    _check_count("num_matched", num_matched)
    index = {name: i for i, name in enumerate(descriptors.names)}
    neighbours = descriptors.neighbours(num_matched)
    others = ([index[other] for other, _ in neighbours[name]] for name in descriptors.names)
    return _sorted_pairs(descriptors.names, others)


def _sorted_pairs(names: Sequence[str], others: Iterable[Iterable[int]]) -> list[Pair]:
    """The pairs of each photo with its others (indices), once each and sorted."""
    indices = {(min(i, j), max(i, j)) for i, row in enumerate(others) for j in row}
    return [(names[i], names[j]) for i, j in sorted(indices)]


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"the photo {twice!r} is named twice; name each photo once")
    return names


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value}")
