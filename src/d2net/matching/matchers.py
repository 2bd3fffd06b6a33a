"""Matchers: how keypoints of two photos are paired, chosen by name or file."""

from __future__ import annotations

from typing import Protocol

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.matching.learned import load_learned
from d2net.matching.nearest import mutual_nearest


class Matcher(Protocol):
    """Pairs keypoints of two photos that show the same point."""

    def __call__(self, a: Features, b: Features) -> Matches:
        """Match the features of two photos, which are on one device."""
        ...


def create_matcher(
    name: str, *, ratio: float | None = None, min_similarity: float | None = None
) -> Matcher:
    """The matcher of a name or file.

    Args:
        name: "nearest" for mutual nearest neighbours, or the weights file of a learned matcher.
        ratio: see `mutual_nearest`.
        min_similarity: see `mutual_nearest`.

    Raises:
        InputError: there is no such matcher, or it does not take the options.
        WeightsError: the file holds no matcher.
    """
    if name != "nearest":
        if ratio is not None or min_similarity is not None:
            raise InputError(
                'ratio and min_similarity are options of the matcher "nearest"; a learned matcher '
                "gives each match a confidence instead"
            )
        return load_learned(name)

    def nearest(a: Features, b: Features) -> Matches:
        check_descriptor_ids(a, b)
        return mutual_nearest(
            a.descriptors, b.descriptors, ratio=ratio, min_similarity=min_similarity
        )

    return nearest


def matcher_id(name: str) -> str:
    """The name of a matcher, with the checksum of its weights, for saving with matches.

    Raises:
        InputError: there is no such matcher.
        WeightsError: the file holds no matcher.
    """
    return name if name == "nearest" else load_learned(name).id


def check_descriptor_ids(a: Features, b: Features) -> None:
    """Raise InputError if the descriptors of two photos are known to be of different types."""
    if a.descriptor_id and b.descriptor_id and a.descriptor_id != b.descriptor_id:
        raise InputError(
            f"descriptors {a.descriptor_id!r} and {b.descriptor_id!r} cannot be compared; "
            "extract both photos with the same weights and the same descriptor setting"
        )
