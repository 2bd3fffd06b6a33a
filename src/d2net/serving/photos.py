"""Photos that were sent, with their features, and verified matches of two. All stay in memory."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.geometry.coordinates import Size
from d2net.io.images import Pixels, read_image
from d2net.mapping.picture.drawing import small_jpeg
from d2net.matching import match
from d2net.matching.verification import default_threshold, verify
from d2net.networks.combined import Combined
from d2net.networks.vgg import VGG
from d2net.settings import ExtractionSettings

MAX_FILE = 32 * 2**20  # bytes; the largest JPEG files of cameras

MAX_PIXELS = 64_000_000  # of a photo; reducing it takes about 200 MB

MAX_MEMORY = 768 * 2**20  # bytes of all photos with features; the least recently used go first

MAX_KEYPOINTS = 8192
"""Keypoints of a photo. They are extracted once; smaller numbers take the best of them."""


def presets(model: D2Net) -> dict[str, D2Net]:
    """The models that a visitor can choose: the given one, its networks alone, and the paper's."""
    chosen, network = {"default": model}, model.network
    if isinstance(network, Combined):
        chosen["light"], network = D2Net(network.light), network.vgg
    if isinstance(network, VGG):
        chosen["deep"] = D2Net(network, ExtractionSettings(descriptor="plain"))
        chosen["original"] = D2Net(network, ExtractionSettings(original=True))
    return chosen


@dataclass(eq=False)
class SentPhoto:
    """A photo and its features.

    `key` is a random secret. Only the sender of the photo has it, and so can ask for the photo.
    """

    content: bytes
    upright: bool  # rotated as its EXIF orientation says
    size: Size
    picture: bytes  # a JPEG for the screen
    features: dict[str, Features] = field(default_factory=dict)  # by preset, best score first
    matched: tuple[object, Matches] | None = None  # the last matches, and their key
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @classmethod
    def read(cls, content: bytes, *, upright: bool = True) -> SentPhoto:
        """Read a photo from the bytes of its file; ImageError if it is no photo, or too large."""
        pixels = read_image(io.BytesIO(content), upright=upright, max_pixels=MAX_PIXELS)
        return cls(content, upright, (pixels.shape[1], pixels.shape[0]), screen_jpeg(pixels))

    @property
    def file(self) -> io.BytesIO:
        """The photo's file."""
        return io.BytesIO(self.content)

    def extract(self, model: D2Net, preset: str) -> Features:
        """The photo's features by the preset's model, best score first, extracted once."""
        if preset not in self.features:
            found = model.extract(self.file, upright=self.upright, max_keypoints=MAX_KEYPOINTS)
            best_first = found.scores.argsort(descending=True, stable=True)
            self.features[preset] = found[best_first]  # `original` keeps the release's order
        return self.features[preset]

    @property
    def num_bytes(self) -> int:
        """Memory that the photo and its features take."""
        tensors = [t for f in self.features.values() for t in (f.keypoints, f.descriptors)]
        return len(self.content) + len(self.picture) + sum(tensor.nbytes for tensor in tensors)


class Photos:
    """Photos by their keys. The last used photo is kept whatever its size."""

    def __init__(self, max_memory: int = MAX_MEMORY) -> None:
        self._max_memory = max_memory
        self._photos: OrderedDict[str, SentPhoto] = OrderedDict()

    def add(self, photo: SentPhoto) -> None:
        """Keep a photo."""
        self._photos[photo.key] = photo
        self.tidy()

    def get(self, key: str) -> SentPhoto | None:
        """The photo, which counts as used; None if it is unknown or forgotten."""
        if key in self._photos:
            self._photos.move_to_end(key)
        return self._photos.get(key)

    def forget(self, key: str) -> None:
        """Forget a photo; does nothing if it is unknown."""
        self._photos.pop(key, None)

    def tidy(self) -> None:
        """Forget the least recently used photos that exceed the memory budget."""
        memory = sum(photo.num_bytes for photo in self._photos.values())
        while memory > self._max_memory and len(self._photos) > 1:
            memory -= self._photos.popitem(last=False)[1].num_bytes


def match_best(
    a: SentPhoto,
    b: SentPhoto,
    preset: str,
    number: int,
    threshold: float | None,
    matcher: str = "nearest",
) -> dict[str, Any]:
    """Match the `number` best keypoints of two photos whose features are extracted, and verify.

    Returns JSON: that of `matches_to_dict`, the `threshold` (largest error of an inlier in pixels),
    the `verdict` and the `significance`.
    """
    best_a, best_b = a.features[preset][:number], b.features[preset][:number]
    key = (b.key, preset, number)
    if a.matched is None or a.matched[0] != key:  # a new threshold needs no new matches
        a.matched = (key, match(best_a, best_b, matcher=matcher))
    matches = a.matched[1]
    if threshold is None:
        threshold = default_threshold(best_a, best_b, matches, "fundamental")
    verified = verify(best_a, best_b, matches, "fundamental", threshold=threshold)
    return {
        **matches_to_dict(verified),
        "threshold": threshold,
        "verdict": verified.verdict,
        "significance": verified.significance,
    }


def matches_to_dict(matches: Matches) -> dict[str, Any]:
    """Verified matches as JSON: rows `first` and `second`, `similarity`; the `inliers` first."""
    assert matches.inliers is not None  # noqa: S101 (verified)
    order = matches.inliers.int().argsort(descending=True, stable=True)
    first, second = matches.indices[order].T.tolist()
    return {
        "first": first,
        "second": second,
        "similarity": [round(cosine, 4) for cosine in matches.similarity[order].tolist()],
        "inliers": matches.num_inliers,
    }


def screen_jpeg(pixels: Pixels) -> bytes:
    """The photo as JPEG, reduced to the size of a screen."""
    return small_jpeg(pixels, 1600, 85)
