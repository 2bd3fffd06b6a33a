"""From the features of two photos to matches, verified if asked."""

from __future__ import annotations

from numpy.typing import ArrayLike

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry.robust import Method, Model
from d2net.matching import verify as verification
from d2net.matching.nearest import mutual_nearest


def match(
    a: Features,
    b: Features,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    verify: Model | None = None,
    threshold: float | None = None,
    method: Method = "magsac",
    intrinsics: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> Matches:
    """Match the features of two photos and, if asked, mark the matches that fit a camera motion.

    Args:
        a: features of the first photo.
        b: features of the second photo, on the same device.
        ratio: see `mutual_nearest`; None is best for D2-Net.
        min_similarity: see `mutual_nearest`.
        verify: "fundamental", "homography", "essential", or None for no verification. How, say
            the arguments that follow, see `matching.verify.verify`.
        threshold: largest error of an inlier in pixels of the photos; None for one that suits the
            features.
        method: "magsac", "poselib" or "pycolmap".
        intrinsics: 3 x 3 camera matrices of both photos, for "essential".
        seed: of the random samples.

    Returns:
        Mutual nearest neighbours in the order of the rows of `a`; with `inliers`, `model` and
        `matrix` if `verify` is given.

    Raises:
        InputError: for arguments out of range, or features that do not fit together.
        MissingPackageError: if the verification method needs a package that is not installed.
    """
    if verify is None and (threshold is not None or intrinsics is not None):
        raise InputError(
            "threshold and intrinsics are for verification, which is not asked for; add for "
            'example verify="fundamental"'
        )
    check_comparable(a, b)
    matches = mutual_nearest(
        a.descriptors, b.descriptors, ratio=ratio, min_similarity=min_similarity
    )
    if verify is None:
        return matches
    return verification.verify(
        a, b, matches, verify, threshold=threshold, method=method, intrinsics=intrinsics, seed=seed
    )


def check_comparable(a: Features, b: Features) -> None:
    """Raise InputError if descriptors of two photos are known to be of different kinds."""
    if a.descriptor_id and b.descriptor_id and a.descriptor_id != b.descriptor_id:
        raise InputError(
            f"descriptors {a.descriptor_id!r} and {b.descriptor_id!r} cannot be compared; "
            "extract both photos with the same weights and the same descriptor setting"
        )
