"""The learned matcher: a transformer that gives each match the probability that it is right."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.matching.nearest import check_descriptors
from d2net.networks.catalogue import CATALOGUE, expand_user
from d2net.networks.matcher import KeypointBatch
from d2net.networks.weights import load_matcher

MAX_KEYPOINTS = 4096
"""Only the best keypoints of a photo are matched, because time grows with their number squared."""

_CONFIDENT, MIN_CONFIDENCE, _ENOUGH = 0.1, 0.01, 500
"""Matches above 0.1, LightGlue's limit, are kept. If they are fewer than 500, the best ones above
0.01 make up the number. Robust estimation needs these across sensors and seasons only."""

_MIN_DISTANCE = 2.5
"""Smallest distance of two keypoints in pixels at scale 1, times the smallest scale of the photo's
keypoints. Closer keypoints confuse attention (arXiv 2602.08430), so only the one with the highest
score is kept. Keypoints of light are never closer: its detector keeps one in 5 x 5 pixels."""


class LearnedMatcher:
    """Matches keypoints of one descriptor type by a transformer, with the weights in `file`."""

    def __init__(self, file: Path) -> None:
        self._network, loaded = load_matcher(file)
        self._descriptor_id = loaded.metadata["descriptor_id"]
        self.id = f"{loaded.name} {loaded.sha256[:8]}"

    @torch.no_grad()
    def __call__(self, a: Features, b: Features) -> Matches:
        """Matches of the features of two photos with `confidence`, the most confident one first."""
        expected = self._network.settings.descriptor_length
        for features in (a, b):
            given, length = features.descriptor_id, features.descriptors.shape[1]
            if given not in (None, self._descriptor_id) or length != expected:
                raise InputError(
                    f"the matcher {self.id!r} matches descriptors {self._descriptor_id!r} of "
                    f"length {expected}, not {given or 'unknown ones'!r} of length {length}: "
                    'extract the photos with those weights, or use the matcher "nearest"'
                )
        check_descriptors(a.descriptors, b.descriptors)
        rows = distinct_keypoints(a), distinct_keypoints(b)
        network = self._network.to(a.descriptors.device)
        with torch.autocast(a.descriptors.device.type, enabled=False):
            pairs, confidence = network.match(as_batch(a[rows[0]]), as_batch(b[rows[1]]))
        order = confidence.argsort(descending=True, stable=True)
        confident, likely = (int((confidence >= c).sum()) for c in (_CONFIDENT, MIN_CONFIDENCE))
        order = order[: max(confident, min(likely, _ENOUGH))]
        indices = torch.stack([r[p] for r, p in zip(rows, pairs[order].T, strict=True)], dim=1)
        first, second = (f.descriptors[i].float() for f, i in zip((a, b), indices.T, strict=True))
        return Matches(indices, (first * second).sum(1), confidence=confidence[order])


def load_learned(path: str) -> LearnedMatcher:
    """The learned matcher of a name or file; it is read again only if the file has changed."""
    file = CATALOGUE[path].path if path in CATALOGUE else expand_user(str(path))
    if not file.is_file():
        raise InputError(
            f'matcher must be "nearest", "learned" or the file of a learned matcher, but there is '
            f"no file {path!r}"
        )
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(file: Path, _changed: int) -> LearnedMatcher:
    return LearnedMatcher(file)


def distinct_keypoints(features: Features) -> Tensor:
    """Rows of at most MAX_KEYPOINTS keypoints that are not close to a better one, best first."""
    from scipy.spatial import cKDTree

    order = features.scores.argsort(descending=True, stable=True)
    if len(order) > 1:
        tree = cKDTree(features.keypoints[order].cpu().numpy())
        distance = _MIN_DISTANCE * float(features.scales.min())
        close = tree.query_pairs(distance, output_type="ndarray")
        keep = torch.ones(len(order), dtype=torch.bool, device="cpu")
        for better, worse in close[close[:, 0].argsort(kind="stable")].tolist():
            if keep[better]:
                keep[worse] = False
        order = order[keep.to(order.device)]
    return order[:MAX_KEYPOINTS]


def as_batch(photo: Features) -> KeypointBatch:
    """The keypoints of one photo as a batch (B = 1) in float32."""
    size = torch.tensor([photo.image_size], dtype=torch.float32, device=photo.keypoints.device)
    return KeypointBatch(photo.descriptors[None].float(), photo.keypoints[None].float(), size)
