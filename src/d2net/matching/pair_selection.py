"""Selection of the pairs of photos to match, by the name of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.colmap_model import find_model, read_model
from d2net.io.exif import gps_positions
from d2net.io.image_lists import FoundImage
from d2net.io.pairs import Pair, read_pairs
from d2net.matching import pairs
from d2net.matching.retrieval import GlobalDescriptors
from d2net.settings import Settings

PairMethod: TypeAlias = Literal[
    "auto", "exhaustive", "sequential", "retrieval", "gps", "covisibility", "list"
]

MAX_EXHAUSTIVE = 50
"""Largest number of photos for which `auto` selects all pairs (1,225 of them)."""


@dataclass(frozen=True)
class PairChoice(Settings):
    """How pairs are selected.

    Attributes:
        method: "exhaustive" (all pairs), "sequential" (photos that follow each other by name),
            "retrieval" (photos that look most alike), "gps" (photos taken close to each other; for
            photos without a position, retrieval), "covisibility" (photos that see the same points
            of a COLMAP model), "list" (pairs of a file), or "auto": all pairs of few photos,
            retrieval for many.
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
    model: Path | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
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
    """Select pairs of photos.

    Args:
        choice: the method and its options.
        names: the photos.
        photos: their files, for gps. A list of pairs may name these photos and `names` only.
        features: their features, for retrieval.
        descriptors: their global descriptors if they exist already, in place of `features`.

    Raises:
        InputError: the method lacks an input, or a list names other photos.
        FormatError: the list or the model is broken.
    """

    def by_retrieval() -> list[Pair]:
        if descriptors is None and features is None:
            raise InputError(
                "retrieval compares features: give a features file, as d2net extract PHOTOS "
                "--output features.h5 writes it"
            )
        built = descriptors or GlobalDescriptors.build(features or {}, names)
        return pairs.from_retrieval(built, choice.num_matched)

    method = choice.method
    can_retrieve = features is not None or descriptors is not None
    if method == "auto":
        few = len(names) <= MAX_EXHAUSTIVE or not can_retrieve
        method = "exhaustive" if few else "retrieval"
    if method == "exhaustive":
        return pairs.exhaustive(names)
    if method == "sequential":
        return pairs.sequential(pairs.natural_order(names), choice.overlap)
    if method == "retrieval":
        return by_retrieval()
    if choice.model is not None:
        model = read_model(find_model(choice.model) or choice.model)
        return pairs.from_covisibility(model, choice.num_matched, names=names)
    known = set(names)
    if choice.file is not None:
        listed = read_pairs(choice.file)
        all_names = known | {photo.name for photo in photos or ()}  # some may have no features
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
    selected = pairs.from_gps(positions, choice.num_matched, choice.max_distance)
    unplaced = known - positions.keys()
    if unplaced and can_retrieve:
        selected += [pair for pair in by_retrieval() if unplaced.intersection(pair)]
    return selected
