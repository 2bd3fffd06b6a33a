"""Which pairs of photos to match.

Every function gives each pair once, in either order, and no photo with itself; pairs come sorted by
the photos' places in the given order, so that whoever matches them reads each photo rarely. Pairs
from a list are read by `io.pairs.read_pairs`.
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
    """All pairs: N (N - 1) / 2 of them, for up to some hundred photos.

    Raises:
        InputError: a photo is named twice.
    """
    return list(combinations(_distinct(names), 2))


def sequential(names: Sequence[str], overlap: int = 10, *, quadratic: bool = True) -> list[Pair]:
    """Pairs of photos that follow each other, for videos and walks.

    Each photo with the `overlap` next ones and, if `quadratic`, with those 1, 2, 4, ...
    2^(overlap - 1) later, which hold a long sequence together where it slows down or comes back.
    These are the pairs of COLMAP's sequential matching without and with its `quadratic_overlap`,
    both together (COLMAP 4 makes one or the other).

    Args:
        names: in the order in which they were taken; see `natural_order`.
        overlap: how many.
        quadratic: also pairs at doubling distances.

    Raises:
        InputError: a photo is named twice, or `overlap` is below 1.
    """
    names = _distinct(names)
    _check_count("overlap", overlap)
    steps = set(range(1, overlap + 1))
    if quadratic:
        steps |= {2**i for i in range(min(overlap, len(names).bit_length()))}
    indices = range(len(names))
    return [
        (names[i], names[i + step])
        for i in indices
        for step in sorted(steps)
        if i + step in indices
    ]


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with numbers as numbers: frame9 before frame10."""
    return sorted(names, key=lambda name: (_natural_key(name), name))


def from_gps(
    positions: Mapping[str, Position], num_matched: int = 20, max_distance: float = 100.0
) -> list[Pair]:
    """Each photo with the nearest others on the ground.

    Distances are straight lines between the points on the WGS84 ellipsoid; altitudes are not used,
    which GPS knows badly (COLMAP's `ignore_z`).

    Args:
        positions: of the photos that have one; see `io.exif.gps_positions`. Photos that have
            none need another method.
        num_matched: how many others for each photo.
        max_distance: only those at most so far, in metres.

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
    places = np.array([positions[name].on_ellipsoid() for name in names])
    # One more than asked for: a photo is its own nearest neighbour, or one of those at its place.
    k = min(num_matched + 1, len(names))
    bound = np.nextafter(max_distance, np.inf)  # itself is not allowed
    _, rows = cKDTree(places).query(places, k=k, distance_upper_bound=bound)
    found: list[list[int]] = np.asarray(rows).tolist()
    return _pairs(
        names,
        ([j for j in row if j not in (i, len(names))][:num_matched] for i, row in enumerate(found)),
    )


def from_covisibility(
    model: pycolmap.Reconstruction, num_matched: int = 20, *, names: Collection[str] | None = None
) -> list[Pair]:
    """Each photo of a model with those that see the most of the same points.

    Photos come sorted by name. Those that share no point are no pair.

    Args:
        model: with points.
        num_matched: how many others for each photo.
        names: only these photos; None for all of the model.

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
    return _pairs(
        in_model,
        ([j for j in row if shared[i, j] > 0] for i, row in enumerate(ranked.tolist())),
    )


def shared_points(model: pycolmap.Reconstruction) -> tuple[list[str], NDArray[np.int64]]:
    """How many 3D points each two photos of a model both see.

    Returns:
        The names of the photos with a pose, sorted, and their N x N counts; 0 on the diagonal.
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
    """Each photo with those that look most alike.

    A photo without features looks like no other and is in no pair.

    Args:
        descriptors: of the photos.
        num_matched: how many others for each photo.

    Raises:
        InputError: `num_matched` is below 1.
    """
    _check_count("num_matched", num_matched)
    places = {name: i for i, name in enumerate(descriptors.names)}
    found = descriptors.neighbours(num_matched)
    return _pairs(
        descriptors.names,
        ([places[other] for other, _ in found[name]] for name in descriptors.names),
    )


def _pairs(names: Sequence[str], others: Iterable[Iterable[int]]) -> list[Pair]:
    """The pairs of each photo with its others, once each, sorted by place."""
    places = {(min(i, j), max(i, j)) for i, row in enumerate(others) for j in row}
    return [(names[i], names[j]) for i, j in sorted(places)]


def _distinct(names: Sequence[str]) -> Sequence[str]:
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"the photo {twice!r} is named twice; name each photo once")
    return names


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, not {value}")


def _natural_key(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
