"""Planar sequences with homographies: HPatches and Oxford.

The protocol of D2-Net's authors (Dusmanu et al., CVPR 2019, section 5.1): mutual nearest neighbours
without a ratio test; a match is right at a threshold if the first keypoint, warped by the true
homography, lies within it of the second; the share of right matches is averaged over pairs, and a
pair without matches counts zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.metrics import accuracy
from d2net.evaluation.results import Drawing, PairResult, Result, averaged
from d2net.features import Features
from d2net.geometry.homography import transfer, transfer_error
from d2net.io.image_lists import EXTENSIONS
from d2net.matching import match
from d2net.matching.refine import refine

THRESHOLDS = tuple(range(1, 11))
CORNER_THRESHOLDS = (1, 3, 5)
REPEATABILITY_THRESHOLD = 3.0
MAGSAC_THRESHOLD = 3.0
"""Pixels; one for all methods, so that the corner errors compare features and nothing else."""
LEFT_OUT_OF_HPATCHES = frozenset(
    {
        *("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding"),
        *("v_artisans", "v_astronautis", "v_talent"),
    }
)
"""Sequences of HPatches with more than 1600 x 1200 pixels, which the protocol leaves out."""


@dataclass(frozen=True)
class HomographyPair:
    """Photo 1 and photo k of a sequence, and the homography between their pixels."""

    sequence: str
    first: Path
    second: Path
    H: NDArray[np.float64]


def find_pairs(folder: Path) -> list[HomographyPair]:
    """Pairs (1, k) of all sequences in a folder.

    A sequence is a folder with images named by a number (`1.ppm`, `img1.png`) and homographies
    `H_1_k` (HPatches) or `H1tokp` (Oxford). The folder itself may be one. Of HPatches proper (more
    than 100 sequences named `i_*` and `v_*`) the eight of the protocol are left out.

    Raises:
        InputError: no such folder, or no sequence in it.
        FormatError: a homography is missing, is no 3 x 3 matrix, or singular.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    sequences = [path for path in sorted(folder.iterdir()) if path.is_dir() and _images(path)]
    if not sequences and _images(folder):
        sequences = [folder]
    if len(sequences) > 100:
        sequences = [path for path in sequences if path.name not in LEFT_OUT_OF_HPATCHES]
    pairs = [pair for sequence in sequences for pair in _pairs_of(sequence)]
    if not pairs:
        raise InputError(
            f"{folder} holds no sequence: folders with images 1, 2, ... and homographies H_1_2 ... "
            "are expected"
        )
    return pairs


def _images(folder: Path) -> dict[int, Path]:
    found = {}
    for path in sorted(folder.iterdir()):
        number = re.fullmatch(r"(?:img)?(\d+)", path.stem)
        if number and path.suffix.lower() in EXTENSIONS:
            found[int(number[1])] = path
    return found


def _pairs_of(sequence: Path) -> Iterator[HomographyPair]:
    images = _images(sequence)
    if 1 not in images:
        raise FormatError(f"{sequence} has no image 1, from which its homographies start")
    for k, path in sorted(images.items()):
        if k != 1:
            yield HomographyPair(sequence.name, images[1], path, _homography(sequence, k))


def _homography(sequence: Path, k: int) -> NDArray[np.float64]:
    names = (f"H_1_{k}", f"H1to{k}p", f"H_1_{k}.txt", f"H1to{k}p.txt")
    path = next((sequence / name for name in names if (sequence / name).is_file()), None)
    if path is None:
        raise FormatError(f"{sequence} has an image {k} but no homography {names[0]} or {names[1]}")
    try:
        H: NDArray[np.float64] = np.array(path.read_text().split(), dtype=np.float64).reshape(3, 3)
    except ValueError as error:
        raise FormatError(f"{path} is not a 3 x 3 matrix of numbers") from error
    if not np.isfinite(H).all() or np.linalg.matrix_rank(H) < 3:
        raise FormatError(f"{path} is singular or holds no finite numbers: it is no homography")
    return H


def evaluate_homography(
    source: CachedFeatures,
    folder: Path,
    *,
    max_keypoints: int | None = None,
    refined: bool = False,
    seed: int = 0,
    report: Callable[[str, int], None] | None = None,
) -> Result:
    """Matching accuracy and homography accuracy of a source on a folder of sequences.

    Args:
        source: features.
        folder: see `find_pairs`.
        max_keypoints: the best by score; None for all, as the authors did.
        refined: move the second keypoints of the matches that a fundamental matrix verifies, see
            `matching.refine`; all matches count as before.
        seed: of the homography's estimation.
        report: called after each pair with its name and how many are left.

    Returns:
        Per pair, with means per sequence, over `i_*` and `v_*`, and overall: `MMA@t` for 1 to 10
        px; `corner@t`, 1 if the estimated homography puts the photo's corners within t px on
        average; `repeatability` at 3 px; `matching score`; `matches`, and `features` (of both
        photos; in means, each photo counts once).
    """
    pairs = find_pairs(folder)
    results = []
    counts: dict[str, dict[str, int]] = {pair.sequence: {} for pair in pairs}
    for left, pair in zip(range(len(pairs) - 1, -1, -1), pairs, strict=True):
        names = tuple(str(p.relative_to(folder).as_posix()) for p in (pair.first, pair.second))
        a, b = (
            source.features(path, name).best(max_keypoints)
            for path, name in zip((pair.first, pair.second), names, strict=True)
        )
        if refined:
            a, b = refine(a, b, match(a, b, verify="fundamental"), pair.first, pair.second)
        results.append(_evaluate_pair(pair, (names[0], names[1]), a, b, seed))
        counts[pair.sequence] |= {names[0]: len(a), names[1]: len(b)}
        if report is not None:
            report(f"{pair.sequence} {pair.second.stem}", left)
    kinds = {
        "illumination": [name for name in counts if name.startswith("i_")],
        "viewpoint": [name for name in counts if name.startswith("v_")],
    }
    groups = averaged(results, kinds)
    for name, figures in groups.items():
        members = [name] if name in counts else kinds.get(name, list(counts))
        photos = [n for member in members for n in counts[member].values()]
        figures["features"] = float(np.mean(photos))  # photo 1 is in every pair, and counts once
    return Result(
        protocol="homography",
        method=source.name,
        folder=str(folder),
        provenance=source.source.provenance(),
        settings={
            "max_keypoints": max_keypoints,
            "seed": seed,
            "magsac_px": MAGSAC_THRESHOLD,
            "refined": refined,
        },
        pairs=results,
        groups=groups,
        headline=["MMA@1", "MMA@3", "MMA@5", "MMA@10", "corner@3", "features", "matches"],
        curve={float(t): f"MMA@{t}" for t in THRESHOLDS},
    )


def _evaluate_pair(
    pair: HomographyPair, names: tuple[str, str], a: Features, b: Features, seed: int
) -> PairResult:
    matches = match(a, b, verify="homography", threshold=MAGSAC_THRESHOLD, seed=seed)
    rows_a, rows_b = matches.indices.T.numpy()
    all_a, all_b = (f.keypoints.double().numpy() for f in (a, b))
    errors = transfer_error(pair.H, all_a[rows_a], all_b[rows_b])
    figures = {
        f"MMA@{t}": float(value)
        for t, value in zip(THRESHOLDS, accuracy(errors, THRESHOLDS), strict=True)
    }
    corner_error = _corner_error(matches.matrix, pair.H, a.image_size)
    for t in CORNER_THRESHOLDS:
        figures[f"corner@{t}"] = float(corner_error <= t)
    shared_a, shared_b = _shared(all_a, all_b, pair.H, a.image_size, b.image_size)
    fewer = max(min(len(shared_a), len(shared_b)), 1)
    figures["repeatability"] = _repeated(shared_a, shared_b, pair.H) / fewer
    figures["matching score"] = np.count_nonzero(errors <= REPEATABILITY_THRESHOLD) / fewer
    figures["features"] = (len(a) + len(b)) / 2
    figures["matches"] = float(len(matches))
    drawing = Drawing(
        all_a[rows_a].astype(np.float32),
        all_b[rows_b].astype(np.float32),
        np.asarray(errors <= REPEATABILITY_THRESHOLD),
    )
    return PairResult(pair.sequence, names, figures, drawing)


def _corner_error(
    estimate: NDArray[np.float64] | None, truth: NDArray[np.float64], size: tuple[int, int]
) -> float:
    """Mean distance of the photo's corners under both; infinite without an estimate."""
    if estimate is None:
        return float("inf")
    width, height = size
    right, bottom = width - 1.0, height - 1.0
    corners = np.array([[0.0, 0.0], [right, 0], [right, bottom], [0, bottom]])
    return float(transfer_error(estimate, corners, transfer(truth, corners)).mean())


def _shared(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    H: NDArray[np.float64],
    size_a: tuple[int, int],
    size_b: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The keypoints of each photo that the other one also sees."""

    def inside(points: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
        x, y = points.T
        within: NDArray[np.bool_] = (x >= -0.5) & (x <= size[0] - 0.5)
        within &= (y >= -0.5) & (y <= size[1] - 0.5)
        return within

    return a[inside(transfer(H, a), size_b)], b[inside(transfer(_inverse(H), b), size_a)]


def _inverse(H: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(H), dtype=np.float64)


def _repeated(a: NDArray[np.float64], b: NDArray[np.float64], H: NDArray[np.float64]) -> int:
    """Keypoints of the photo with fewer whose nearest one in the other lies within 3 px."""
    from scipy.spatial import KDTree

    if len(a) == 0 or len(b) == 0:
        return 0
    warped = transfer(H, a)
    few, many = (warped, b) if len(warped) <= len(b) else (b, warped)
    distance, _ = KDTree(many).query(few)
    return int(np.count_nonzero(distance <= REPEATABILITY_THRESHOLD))
