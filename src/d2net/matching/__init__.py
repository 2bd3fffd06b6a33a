"""Matching of the features of two photos, with optional geometric verification."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from numpy.typing import ArrayLike

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry.robust import Model
from d2net.matching import verification
from d2net.matching.learned_matcher import load_learned
from d2net.matching.nearest import mutual_nearest


class MatchOptions(TypedDict, total=False):
    """The arguments of `match` that can be the same for many pairs; see there for their meaning."""

    matcher: str
    ratio: float | None
    verify: Model | None
    threshold: float | None


def match(
    a: Features,
    b: Features,
    *,
    matcher: str = "nearest",
    ratio: float | None = None,
    verify: Model | None = None,
    threshold: float | None = None,
    intrinsics: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> Matches:
    """Match the features of two photos and, if asked, mark the matches that fit a camera motion.

    Args:
        a: features of the first photo.
        b: features of the second photo, on the same device.
        matcher: "nearest" for mutual nearest neighbours, "learned" for the packaged matcher of the
            features of the default or of `light`, or the weights file of another learned matcher.
        ratio: see `mutual_nearest`; D2-Net matches best without it.
        verify: the model for verification ("fundamental", "homography" or "essential"), or None.
        threshold: see the function `d2net.verify`, as for `intrinsics` and `seed`.
        intrinsics: 3 x 3 camera matrices of both photos, for "essential".
        seed: seed of the random samples.

    Returns:
        Matches in the order of the rows of `a`, or with a learned matcher by confidence, the best
        first; with `inliers`, `model` and `matrix` if `verify` is given.

    Raises:
        InputError: an argument is out of range, or the descriptors cannot be compared, or are not
            those of the learned matcher.
        WeightsError: the file holds no matcher.
    """
    if not (isinstance(a, Features) and isinstance(b, Features)):
        raise InputError(
            "match takes two Features, as D2Net.extract returns them, not "
            f"{type(a).__name__} and {type(b).__name__}"
        )
    if verify is None and (threshold is not None or intrinsics is not None):
        raise InputError(
            'threshold and intrinsics need verification; add for example verify="fundamental"'
        )
    matches = create_matcher(matcher, ratio=ratio)(a, b)
    if verify is None:
        return matches
    return verification.verify(
        a, b, matches, verify, threshold=threshold, intrinsics=intrinsics, seed=seed
    )


def create_matcher(
    name: str, *, ratio: float | None = None
) -> Callable[[Features, Features], Matches]:
    """The matcher of a name or file; arguments and errors as for `match`."""
    if name != "nearest":
        if ratio is not None:
            raise InputError(
                'ratio is for the matcher "nearest"; a learned matcher gives confidences instead'
            )
        return load_learned(name)

    def nearest(a: Features, b: Features) -> Matches:
        if a.descriptor_id and b.descriptor_id and a.descriptor_id != b.descriptor_id:
            raise InputError(
                f"descriptors {a.descriptor_id!r} and {b.descriptor_id!r} cannot be compared; "
                "extract both photos with the same weights and the same descriptor setting"
            )
        return mutual_nearest(a.descriptors, b.descriptors, ratio=ratio)

    return nearest


def check_matcher(name: str, descriptor_id: str) -> None:
    """InputError if there is no such matcher, or if it does not match these descriptors."""
    if name != "nearest":
        load_learned(name).network(descriptor_id)


def matcher_id(name: str) -> str:
    """The name of a matcher, with the checksum of its weights, for saving with matches."""
    return name if name == "nearest" else load_learned(name).id
