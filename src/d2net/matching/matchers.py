"""Matchers: how keypoints of two photos are paired, chosen by name."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias, get_args

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.matching.nearest import mutual_nearest

MatcherName: TypeAlias = Literal["nearest"]


class Matcher(Protocol):
    """Pairs keypoints of two photos that show the same point."""

    def __call__(self, a: Features, b: Features) -> Matches:
        """Match the features of two photos, which are on one device."""
        ...


def create_matcher(
    name: MatcherName, *, ratio: float | None = None, min_similarity: float | None = None
) -> Matcher:
    """The matcher of a name.

    Args:
        name: "nearest": mutual nearest neighbours.
        ratio: see `mutual_nearest`.
        min_similarity: see `mutual_nearest`.

    Raises:
        InputError: there is no matcher of this name.
    """
    if name not in get_args(MatcherName):
        raise InputError(f"matcher must be one of {', '.join(get_args(MatcherName))}, not {name!r}")

    def nearest(a: Features, b: Features) -> Matches:
        check_descriptor_ids(a, b)
        return mutual_nearest(
            a.descriptors, b.descriptors, ratio=ratio, min_similarity=min_similarity
        )

    return nearest


def check_descriptor_ids(a: Features, b: Features) -> None:
    """Raise InputError if the descriptors of two photos are known to be of different types."""
    if a.descriptor_id and b.descriptor_id and a.descriptor_id != b.descriptor_id:
        raise InputError(
            f"descriptors {a.descriptor_id!r} and {b.descriptor_id!r} cannot be compared; "
            "extract both photos with the same weights and the same descriptor setting"
        )
