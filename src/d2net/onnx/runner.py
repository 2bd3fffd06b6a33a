"""D2-Net's features without torch: ONNX Runtime, numpy and pillow run the graph beside this file.

    pip install onnxruntime pillow
    python d2net_onnx.py A.jpg B.jpg

The graph, d2net.onnx, takes `image` (H x W x 3, RGB, uint8, at least 8 x 8) and gives for all its
keypoints `keypoints` (N x 2, x and y in pixels, the centre of the top-left pixel being (0, 0)),
`scores` (N), `uncertainty` (N, pixels) and `descriptors` (N x D, unit length). This program does
the rest: it reduces the photo, keeps the best keypoints, and matches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

Array = np.ndarray[Any, np.dtype[Any]]

SMALLEST_SIDE = 8  # a photo with a shorter side has no keypoints


class Features(NamedTuple):
    """The local features of a photo, best first.

    Attributes:
        keypoints: N x 2 float32 (x, y) in pixels of the photo.
        scores: N float32.
        uncertainty: N float32, standard deviation of the position in pixels of the photo.
        descriptors: N x D float32, unit length.
    """

    keypoints: Array
    scores: Array
    uncertainty: Array
    descriptors: Array


class Extractor:
    """An exported model.

    Args:
        path: the graph; the one beside this file unless another is given.
        options: options of the session, such as the number of threads.
        providers: ONNX Runtime's execution providers, best first.
    """

    def __init__(
        self,
        path: Path | None = None,
        options: onnxruntime.SessionOptions | None = None,
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
    ) -> None:
        path = path or Path(__file__).with_name("d2net.onnx")
        self.session = onnxruntime.InferenceSession(str(path), options, list(providers))
        about = json.loads(self.session.get_modelmeta().custom_metadata_map["d2net"])
        self.settings: dict[str, Any] = about["extraction"]

    def extract(self, photo: Array) -> Features:
        """Features of H x W x 3, RGB, uint8; with the settings the model was exported with."""
        full = (photo.shape[1], photo.shape[0])
        size = limited_size(full, self.settings["max_edge"], self.settings["max_sum_edges"])
        if size != full:
            photo = np.array(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR))
        if min(size) < SMALLEST_SIDE:
            photo = np.zeros((SMALLEST_SIDE, SMALLEST_SIDE, 3), np.uint8)
        keypoints, scores, uncertainty, descriptors = self.session.run(
            ["keypoints", "scores", "uncertainty", "descriptors"], {"image": photo}
        )
        best = np.argsort(-scores, kind="stable")[: self.settings["max_keypoints"]]
        best = best[scores[best] >= self.settings["score_threshold"]]
        factor = np.divide(full, size)
        return Features(
            ((keypoints[best] + 0.5) * factor - 0.5).astype(np.float32),
            scores[best],
            uncertainty[best] * np.float32(factor.max()),
            descriptors[best],
        )


def limited_size(
    size: tuple[int, int], max_edge: int | None, max_sum_edges: int | None
) -> tuple[int, int]:
    """(width, height) reduced so that both limits are met."""
    factor = min(1.0, (max_edge or np.inf) / max(size), (max_sum_edges or np.inf) / sum(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def match(a: Features, b: Features) -> Array:
    """K x 2 rows of mutual nearest neighbours; D2-Net matches best without a ratio test."""
    if len(a.scores) == 0 or len(b.scores) == 0:
        return np.empty((0, 2), np.int64)
    similarity = a.descriptors @ b.descriptors.T
    forth, back = similarity.argmax(axis=1), similarity.argmax(axis=0)
    rows = np.arange(len(forth))
    mutual = back[forth] == rows
    return np.stack([rows[mutual], forth[mutual]], axis=1)


def read_photo(path: str) -> Array:
    """H x W x 3, RGB, uint8, rotated upright; 16 bits and floats are reduced to 8 bits."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in ("I", "F") and not upright.mode.startswith("I;16"):
            return np.array(upright.convert("RGB"))
        samples = np.array(upright, np.float32)
    white = 65535
    if upright.mode == "F":  # the smallest range that contains 99 % of the samples
        white = next((w for w in (1, 255) if (samples > 1.001 * w).mean() <= 0.01), white)
    grey = np.rint(samples.clip(0, white) * (255 / white)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def main() -> None:
    """Match the two photos named on the command line."""
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} A.jpg B.jpg")
    photos = []
    for path in sys.argv[1:]:
        try:
            photos.append(read_photo(path))
        except Exception as error:  # damaged files raise all kinds
            sys.exit(f"the photo {path} cannot be read: {error}")
    a, b = map(Extractor().extract, photos)
    print(f"{len(a.scores)} and {len(b.scores)} keypoints, {len(match(a, b))} matches")


if __name__ == "__main__":
    main()
