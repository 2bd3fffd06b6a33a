"""Planar sequences with homographies: HPatches and Oxford.

The protocol of D2-Net (Dusmanu et al., CVPR 2019, section 5.1). Matches are mutual nearest
neighbours without a ratio test. A match is correct at a threshold if the true homography takes its
first keypoint to within the threshold of its second. The share of correct matches is averaged over
pairs; a pair without matches counts as zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.pair_protocol import PhotoPair, accuracy, evaluate_pairs, matched_points
from d2net.evaluation.results import (
    COUNTS,
    Curve,
    Drawing,
    Figures,
    Metric,
    Protocol,
    Result,
    averaged,
)
from d2net.features import Features, Matches
from d2net.geometry import robust
from d2net.geometry.coordinates import Array
from d2net.geometry.homography import transfer, transfer_error
from d2net.io.h5 import are_upright
from d2net.io.image_lists import EXTENSIONS
from d2net.io.text_lists import finite_numbers, read_lines
from d2net.matching.refine import refine
from d2net.matching.verification import verify
from d2net.progress import Progress, no_progress

MMA = Curve(
    "MMA",
    tuple(range(1, 11)),
    "share of matches that are correct at the threshold in pixels (mean matching accuracy)",
)
CORNER_THRESHOLDS = (1, 3, 5)
DRAWN_AS_CORRECT = 3.0
MAGSAC_THRESHOLD = 3.0
"""Threshold in pixels; the same for all methods, so that corner errors compare only features."""
LEFT_OUT_OF_HPATCHES = (
    *("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding"),
    *("v_artisans", "v_astronautis", "v_talent"),
)
"""Sequences of HPatches with more than 1600 x 1200 pixels, which the protocol leaves out."""
_MIN_SEQUENCES_OF_HPATCHES = 101

PROTOCOL = Protocol(
    "homography",
    "Planar sequences with homographies",
    "Photo 1 of each sequence is matched with every other one by mutual nearest neighbours without "
    "a ratio test. A match is correct if the true homography takes its first keypoint close enough "
    "to its second. Figures are means over pairs; a pair without matches counts as zero.",
    group="sequence",
    correct=f"within {DRAWN_AS_CORRECT:g} px",
)
_CORNER = Metric(
    "corner@3",
    "share of pairs whose estimated homography moves the corners of the photo by at most 3 px from "
    "their true positions, on average",
)
_HEADLINE = [*(MMA.metric(t) for t in (1, 3, 5, 10)), _CORNER, *COUNTS]


@dataclass(frozen=True)
class HomographyPair(PhotoPair):
    """Photos 1 and k of a sequence, and the homography between their pixels."""

    H: Array


def find_pairs(folder: Path) -> list[HomographyPair]:
    """Pairs (1, k) of all sequences in a folder.

    A sequence is a folder with images named by a number (`1.ppm`, `img1.png`) and homographies
    `H_1_k` (HPatches) or `H1tokp` (Oxford). The folder itself may be one. In HPatches (more than
    100 sequences) the eight sequences of `LEFT_OUT_OF_HPATCHES` are left out.
    """
    sequences = [path for path in sorted(folder.iterdir()) if path.is_dir() and _images(path)]
    if not sequences and _images(folder):
        sequences = [folder]
    if len(sequences) >= _MIN_SEQUENCES_OF_HPATCHES:
        sequences = [path for path in sequences if path.name not in LEFT_OUT_OF_HPATCHES]
    pairs = []
    for sequence in sequences:
        images = _images(sequence)
        if 1 not in images:
            raise FormatError(f"{sequence} has no image 1, the first image of every pair")
        first = images.pop(1)
        for path in sequence.iterdir():
            of_image = re.fullmatch(r"H_?1(?:_|to)(\d+)p?(?:\.txt)?", path.name)
            if of_image and path.is_file() and int(of_image[1]) not in {1, *images}:
                raise FormatError(f"{path} is the homography of an image that {sequence} lacks")
        for k, image in sorted(images.items()):
            names = (f"H_1_{k}", f"H1to{k}p", f"H_1_{k}.txt", f"H1to{k}p.txt")
            paths = [sequence / name for name in names if (sequence / name).is_file()]
            if len(paths) != 1:
                found = " and ".join(path.name for path in paths) or "none"
                raise FormatError(
                    f"the image {k} in {sequence} needs one homography, {names[0]} or {names[1]}, "
                    f"but has {found}"
                )
            lines = read_lines(paths[0], "a matrix")
            H = finite_numbers(" ".join(line for _, line in lines).split(), 3, 3)
            if H is None or np.linalg.matrix_rank(H) < 3:
                raise FormatError(f"{paths[0]} is not a matrix of 3 x 3 finite numbers with rank 3")
            pairs.append(HomographyPair(sequence.name, (first, image), H))
    if not pairs:
        raise InputError(
            f"{folder} holds no sequence: expected folders with images 1, 2, ... and H_1_2, ..."
        )
    return pairs


def _images(folder: Path) -> dict[int, Path]:
    images: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        number = re.fullmatch(r"(?:img)?(\d+)", path.stem)
        if number and path.suffix.lower() in EXTENSIONS:
            other = images.setdefault(int(number[1]), path)
            if other != path:
                raise FormatError(f"two files are image {int(number[1])}: {other} and {path}")
    return images


def evaluate_homography(
    source: CachedSource, folder: Path, *, refined: bool = False, progress: Progress = no_progress
) -> Result:
    """Matching accuracy and homography accuracy on the sequences of a folder.

    With `refined`, the second keypoints of the matches that a fundamental matrix verifies are moved
    (`matching.refine`). All matches count, verified or not.

    Returns:
        Per pair, with means per sequence, over `i_*` and `v_*`, and overall: `MMA@t` for t from 1
        to 10 px; `corner@t`, 1 if the estimated homography takes the corners of the photo to within
        t px of their true positions on average; `matches`, and `features`, the mean over both
        photos (in means over pairs, each photo counts once).
    """
    num_keypoints: dict[str, dict[Path, int]] = {}
    upright = are_upright(source.provenance.get("made by", source.provenance))

    def judge(
        pair: HomographyPair, a: Features, b: Features, matches: Matches
    ) -> tuple[Figures, Drawing]:
        if refined:
            a, b = refine(a, b, verify(a, b, matches), *pair.photos, upright=upright)
        sizes = zip(pair.photos, (len(a), len(b)), strict=True)
        num_keypoints.setdefault(pair.group, {}).update(sizes)
        return _judge(pair.H, a, b, matches)

    pairs = evaluate_pairs(source, folder, find_pairs(folder), judge, progress)
    unions = {
        union: [name for name in num_keypoints if name.startswith(f"{union[0]}_")]
        for union in ("illumination", "viewpoint")
        if union not in num_keypoints
    }
    groups = averaged(pairs, unions)
    for name, figures in groups.items():
        members = [name] if name in num_keypoints else unions.get(name, list(num_keypoints))
        photos = [n for member in members for n in num_keypoints[member].values()]
        figures["features"] = float(np.mean(photos))  # photo 1 is in every pair, but counts once
    return Result(
        PROTOCOL,
        *source.described(folder),
        {"magsac_px": MAGSAC_THRESHOLD, "refined": refined},
        pairs,
        groups,
        _HEADLINE,
        pair_metrics=[MMA.metric(5), *_HEADLINE],
        curve=MMA,
        dataset="hpatches" if len(num_keypoints) >= _MIN_SEQUENCES_OF_HPATCHES else "",
    )


def _judge(H: Array, a: Features, b: Features, matches: Matches) -> tuple[Figures, Drawing]:
    points_a, points_b = matched_points(a, b, matches)
    errors = transfer_error(H, points_a, points_b)
    options = robust.RobustOptions(threshold=MAGSAC_THRESHOLD)
    estimate, _ = robust.estimate("homography", points_a, points_b, options)
    right, bottom = a.image_size[0] - 1.0, a.image_size[1] - 1.0
    corners = np.array([[0.0, 0.0], [right, 0], [right, bottom], [0, bottom]])
    corner_error = np.inf
    if estimate is not None:
        corner_error = float(transfer_error(estimate, corners, transfer(H, corners)).mean())
    return {
        **MMA.figures(accuracy(errors, MMA.thresholds)),
        **{f"corner@{t}": float(corner_error <= t) for t in CORNER_THRESHOLDS},
    }, Drawing(points_a, points_b, errors <= DRAWN_AS_CORRECT)
