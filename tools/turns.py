"""What turned passes and the pyramid buy where photos are turned or zoomed against each other.

usage: python tools/turns.py angle|zoom WEIGHTS NUMBER FOLDER...

NUMBER photos of the folders, in turn from each, are reduced to `EDGE` pixels; the second photo of a
pair is the same under a random mild homography, a rotation or zoom about the middle, and another
light. Keypoints are both kinds' best `BUDGET` (of each turn), the descriptors fused; "deep, plain"
is the deep half of them with D2-Net's descriptor. Printed are tables of EXPERIMENTS.md, after each
photo that of the photos so far: the share of matches that are right at 3 px, and in brackets how
many those are, means over the photos.

angle: the first photo in one turn, four or eight ("turns"), all of whose keypoints are matched at
once, or those of the turn alone that gives the most mutual matches ("best turn").
zoom: both photos at one scale or on the pyramid.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from d2net import D2Net, Features, mutual_nearest
from d2net.extraction.corners import BORDER
from d2net.extraction.corners import UNCERTAINTY as CORNER_UNCERTAINTY
from d2net.extraction.turning import turn_photos
from d2net.geometry.homography import transfer_error
from d2net.io.image_lists import find_images
from d2net.io.images import limited_size, read_image, resize
from d2net.training.augment import augment

EDGE = 480
BUDGET = 500
KINDS = ("deep, plain", "both, fused")
ANGLES = (0, 15, 30, 45, 60, 90, 135, 180)
ZOOMS = (0.5, 1.0, 2.0)
JITTER = 0.08
"""How far the homography moves a corner, in parts of the sides."""

Array = NDArray[Any]
Figures = dict[tuple[str, str], dict[str, list[tuple[float, int]]]]
"""By kind and way, then by angle or zoom: accuracy and number of right matches of each photo."""


def photos(folders: list[Path], number: int) -> Iterator[Array]:
    """The first photos of all folders, one of each in turn."""
    listed = [[found.path for found in find_images([folder])] for folder in folders]
    in_turn = [files[i] for i in range(max(map(len, listed))) for files in listed if i < len(files)]
    for path in in_turn[:number]:
        pixels = read_image(path)
        yield resize(pixels, limited_size((pixels.shape[1], pixels.shape[0]), EDGE, None))


def second_photo(
    photo: Array, degrees: float, zoom: float, rng: np.random.Generator
) -> tuple[Array, Array, Array]:
    """The other photo of a pair, its mask and b_from_a; smaller where it is zoomed out."""
    height, width = photo.shape[:2]
    size = np.ceil(np.array([width, height]) * min(zoom, 1)).astype(int)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    moved = corners + rng.uniform(-JITTER, JITTER, (4, 2)) * (width, height)
    jitter = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
    angle = np.radians(degrees)
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    about = np.eye(3)
    about[:2, :2] = turn
    about[:2, 2] = (size - 1) / 2 - turn @ (np.array([width, height]) - 1) / 2
    b_from_a = about @ jitter
    # Twice as large and averaged, so that zooming out by 2 is not aliased.
    larger = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]]) @ b_from_a
    twice = (int(2 * size[0]), int(2 * size[1]))
    warped = cv2.warpPerspective(
        photo, larger, twice, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    inside = cv2.warpPerspective(np.ones((height, width), np.uint8), b_from_a, tuple(size))
    mask = cv2.erode(inside, np.ones((17, 17)), borderType=cv2.BORDER_CONSTANT, borderValue=1)
    small = cv2.resize(warped, tuple(size), interpolation=cv2.INTER_AREA)
    return augment(small.astype(np.uint8), 0.4, rng), mask, b_from_a


def of_kind(features: Features, kind: str) -> Features:
    """Deep keypoints with the plain descriptor from both kinds with the fused one, or those."""
    is_corner = features.uncertainty == features.uncertainty.new_tensor(CORNER_UNCERTAINTY)
    corners, deep = features[is_corner].best(BUDGET), features[~is_corner].best(BUDGET)
    if kind == "both, fused":
        return joined([corners, deep])
    plain = F.normalize(deep.descriptors[:, :512].square(), dim=1)  # its root stands first in fused
    return replace(deep, descriptors=plain)


def joined(parts: list[Features]) -> Features:
    """All features of one photo."""
    names = ("keypoints", "scores", "scales", "descriptors", "uncertainty")
    rows: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    return replace(parts[0], **rows)


def judged(a: Features, b: Features, b_from_a: Array) -> tuple[float, int, int]:
    """Share and number of the right matches, and how many there are in all."""
    rows_a, rows_b = mutual_nearest(a.descriptors, b.descriptors).indices.T.numpy()
    errors = transfer_error(
        b_from_a, a.keypoints.double().numpy()[rows_a], b.keypoints.double().numpy()[rows_b]
    )
    number = int((errors <= 3).sum())
    return number / max(len(errors), 1), number, len(errors)


def in_turn(model: D2Net, photo: Array, degrees: float) -> Features:
    """What one turned pass adds."""
    turned, photo_from_turned = turn_photos(torch.from_numpy(photo)[None], degrees)
    found = model.extract(turned[0].numpy())
    places = photo_from_turned(found.keypoints)
    size = (photo.shape[1], photo.shape[0])
    inside = ((places >= BORDER) & (places <= torch.tensor(size) - 1 - BORDER)).all(dim=1)
    return replace(found, keypoints=places, image_size=size)[inside]


def angle(model: D2Net, photo: Array, rng: np.random.Generator, figures: Figures) -> None:
    """All angles with one photo."""
    passes = [in_turn(model, photo, 45.0 * i) for i in range(8)]
    for degrees in ANGLES:
        pixels, mask, b_from_a = second_photo(photo, degrees, 1.0, rng)
        found = model.extract(pixels, mask=mask)
        for kind in KINDS:
            b, turned = of_kind(found, kind), [of_kind(part, kind) for part in passes]
            alone = [judged(part, b, b_from_a) for part in turned]
            ways = {"one turn": alone[0]}
            for count in (4, 8):
                some = range(0, 8, 8 // count)
                ways[f"{count} turns"] = judged(joined([turned[i] for i in some]), b, b_from_a)
                ways[f"best turn of {count}"] = max((alone[i] for i in some), key=lambda x: x[2])
            for way, (share, number, _) in ways.items():
                figures[kind, way][f"{degrees}"].append((share, number))


def zoom(model: D2Net, photo: Array, rng: np.random.Generator, figures: Figures) -> None:
    """All zooms with one photo."""
    first = {way: model.extract(photo, multiscale=way) for way in (False, True)}
    for factor in ZOOMS:
        pixels, mask, b_from_a = second_photo(photo, rng.uniform(-10, 10), factor, rng)
        second = {w: model.extract(pixels, mask=mask, multiscale=w) for w in (False, True)}
        for kind in KINDS:
            for a_way, b_way, name in (
                (False, False, "one scale"),
                (True, True, "pyramid"),
                (True, False, "pyramid, first photo"),
            ):
                a, b = of_kind(first[a_way], kind), of_kind(second[b_way], kind)
                share, number, _ = judged(a, b, b_from_a)
                figures[kind, name][f"{factor}"].append((share, number))


def main() -> None:
    """Print the tables of the experiment that is asked for."""
    experiment = {"angle": angle, "zoom": zoom}[sys.argv[1]]
    number, folders = int(sys.argv[3]), [Path(path) for path in sys.argv[4:]]
    model = D2Net.from_pretrained(
        sys.argv[2], detector="both", descriptor="fused", precision="bfloat16"
    )
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for i, photo in enumerate(photos(folders, number)):
        experiment(model, photo, np.random.default_rng(i), figures)
        print_table(figures, i + 1)


def print_table(figures: Figures, number: int) -> None:
    """Rows of a Markdown table."""
    names = list(next(iter(figures.values())))
    print(f"\n{number} photos\n\n| | {' | '.join(names)} |\n|---{'|---' * len(names)}|")
    for (kind, way), row in figures.items():
        means = [np.mean(row[name], axis=0) for name in names]
        cells = " | ".join(f"{share:.3f} ({right:.0f})" for share, right in means)
        print(f"| {kind}: {way} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
