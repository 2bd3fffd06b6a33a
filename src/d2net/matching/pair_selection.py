"""Which pairs of photos to match, by a method that is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.colmap_model import find_model, read_model
from d2net.io.exif import gps_positions
from d2net.io.image_lists import FoundImage
from d2net.io.pairs import Pair, read_pairs
from d2net.matching import pairs
from d2net.matching.retrieval import GlobalDescriptors

PairMethod: TypeAlias = Literal[
    "auto", "exhaustive", "sequential", "retrieval", "gps", "covisibility", "list"
]

ALL_PAIRS_UP_TO = 50
"""Photos of which `auto` matches all pairs (1,225); of more, those that look most alike."""


@dataclass(frozen=True)
class PairChoice:
    """How pairs are chosen.

    Attributes:
        method: "exhaustive" (all), "sequential" (photos that follow each other by name),
            "retrieval" (those that look most alike), "gps" (taken close to each other; photos
            without a position by retrieval), "covisibility" (those that see the same points of a
            model), "list" (of a file), or "auto": all pairs of few photos, retrieval for many.
        num_matched: others for each photo (retrieval, gps, covisibility).
        overlap: next photos for each photo (sequential).
        max_distance: metres (gps).
        model: folder of a COLMAP model (covisibility).
        file: two names a line (list).
    """

    method: PairMethod = "auto"
    num_matched: int = 20
    overlap: int = 10
    max_distance: float = 100.0
    model: Path | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(PairMethod):
            raise InputError(
                f"pairs are chosen by {', '.join(get_args(PairMethod))}, not by {self.method!r}"
            )
        if (self.model is not None) != (self.method == "covisibility"):
            raise InputError("covisibility needs a COLMAP model, and no other method takes one")
        if (self.file is not None) != (self.method == "list"):
            raise InputError("a list of pairs needs its file, and no other method takes one")


def choose_pairs(
    choice: PairChoice,
    names: Sequence[str],
    *,
    photos: Sequence[FoundImage] | None = None,
    features: Mapping[str, Features] | None = None,
    cluster: str | None = None,
    descriptors: GlobalDescriptors | None = None,
) -> list[Pair]:
    """The pairs of some photos that a method chooses.

    Args:
        choice: the method.
        names: of the photos. A listed pair with a photo that is neither here nor in `photos` is
            an error.
        photos: where they are, for gps.
        features: of the photos, for retrieval.
        cluster: the address of a Ray cluster, for retrieval; see `GlobalDescriptors.build`.
        descriptors: global descriptors of the photos, if they are built already; then `features`
            and `cluster` are not needed.

    Raises:
        InputError: the method lacks what it needs, or a list names other photos.
        FormatError: the list or model of the choice is broken.
    """

    def described() -> GlobalDescriptors:
        if descriptors is not None:
            return descriptors
        if features is None:
            raise InputError(
                "retrieval compares features: give a features file, as d2net extract PHOTOS "
                "--output features.h5 writes it"
            )
        return GlobalDescriptors.build(features, names, cluster=cluster)

    method = choice.method
    can_retrieve = features is not None or descriptors is not None
    if method == "auto":
        few = len(names) <= ALL_PAIRS_UP_TO or not can_retrieve
        method = "exhaustive" if few else "retrieval"
    if method == "exhaustive":
        return pairs.exhaustive(names)
    if method == "sequential":
        return pairs.sequential(pairs.natural_order(names), choice.overlap)
    if method == "retrieval":
        return pairs.from_retrieval(described(), choice.num_matched)
    if method == "gps":
        return _by_position(choice, names, photos, described if can_retrieve else None)
    if choice.model is not None:
        model = read_model(find_model(choice.model) or choice.model)
        return pairs.from_covisibility(model, choice.num_matched, names=names)
    return _listed(choice, names, photos or ())


def _by_position(
    choice: PairChoice,
    names: Sequence[str],
    photos: Sequence[FoundImage] | None,
    described: Callable[[], GlobalDescriptors] | None,
) -> list[Pair]:
    if photos is None:
        raise InputError(
            "the photos themselves tell their position: give their folder, not a features file"
        )
    wanted = set(names)
    positions = gps_positions(photo for photo in photos if photo.name in wanted)
    if not positions:
        raise InputError(f"none of the {len(names)} photos has a GPS position")
    found = pairs.from_gps(positions, choice.num_matched, choice.max_distance)
    elsewhere = wanted - positions.keys()
    if elsewhere and described is not None:
        alike = pairs.from_retrieval(described(), choice.num_matched)
        found += [pair for pair in alike if elsewhere.intersection(pair)]
    return found


def _listed(choice: PairChoice, names: Sequence[str], photos: Sequence[FoundImage]) -> list[Pair]:
    if choice.file is None:  # the choice has been checked
        return []
    found = read_pairs(choice.file)
    usable = set(names)
    known = usable | {photo.name for photo in photos}  # some may have no features
    unknown = sorted({name for pair in found for name in pair} - known)
    if unknown:
        raise InputError(f"{choice.file} names {unknown[0]!r}, which is none of the photos")
    return [pair for pair in found if usable.issuperset(pair)]
