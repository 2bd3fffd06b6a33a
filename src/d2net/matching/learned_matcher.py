"""The learned matcher: a transformer that gives each match the probability that it is right."""

from __future__ import annotations

from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.io.resume import file_state
from d2net.matching.nearest import check_descriptors, mutual_nearest
from d2net.networks.catalogue import CATALOGUE, expand_user
from d2net.networks.matcher import KeypointBatch, MatchingTransformer, Prepared
from d2net.networks.weights import load_matcher

MAX_KEYPOINTS = 4096  # of a photo, the best; time grows with their number squared

MIN_CONFIDENCE = 0.1  # less probable matches are dropped, as in LightGlue

_ENOUGH, _FILLED_CONFIDENCE = 500, 0.05
"""If fewer matches are left, mutual nearest neighbours with both ends unmatched are added, up to
this number: robust estimation needs them across seasons and sensors, where 5 % are right."""

_MIN_DISTANCE = 2.5
"""Smallest distance of two keypoints in pixels at scale 1, times the smallest scale of the photo's
keypoints. Of closer ones, which confuse attention (arXiv 2602.08430), only the best is kept."""


class LearnedMatcher:
    """Matches keypoints by a transformer: that of a file, or the packaged one of their type."""

    def __init__(self, path: str) -> None:
        names = ("learned", "learned_seasons") if path == "learned" else (path,)
        loaded = [load_matcher(name) for name in names]
        self._networks = {weights.metadata["descriptor_id"]: network for network, weights in loaded}
        self._prepared: WeakKeyDictionary[Features, tuple[Tensor, Prepared]] = WeakKeyDictionary()
        self.id = f"{loaded[0][1].name} {'+'.join(weights.sha256[:8] for _, weights in loaded)}"

    @torch.no_grad()
    def __call__(self, a: Features, b: Features) -> Matches:
        """Matches of the features of two photos with `confidence`, the most confident one first."""
        network, _ = (self.network(f.descriptor_id, f.descriptors.shape[1]) for f in (a, b))
        check_descriptors(a.descriptors, b.descriptors)
        network = network.to(a.descriptors.device)
        with torch.autocast(a.descriptors.device.type, enabled=False):
            for photo in (a, b):  # once for each photo of many pairs
                if photo not in self._prepared:
                    distinct = distinct_keypoints(photo)
                    self._prepared[photo] = distinct, network.prepare(as_batch(photo[distinct]))
            (rows_a, of_a), (rows_b, of_b) = self._prepared[a], self._prepared[b]
            descriptors = a.descriptors[rows_a].float(), b.descriptors[rows_b].float()
            pairs, confidence = network.match(of_a, of_b, descriptors)
        order = confidence.argsort(descending=True, stable=True)
        order = order[confidence[order] >= MIN_CONFIDENCE]
        indices = torch.stack([rows_a[pairs[order, 0]], rows_b[pairs[order, 1]]], dim=1)
        confidence = confidence[order]
        if len(indices) < _ENOUGH:
            nearest = mutual_nearest(a.descriptors, b.descriptors)
            best = nearest.indices[nearest.similarity.argsort(descending=True, stable=True)]
            is_taken = torch.isin(best[:, 0], indices[:, 0]) | torch.isin(best[:, 1], indices[:, 1])
            indices = torch.cat([indices, best[~is_taken]])[:_ENOUGH]
            filled = confidence.new_full((len(indices) - len(confidence),), _FILLED_CONFIDENCE)
            confidence = torch.cat([confidence, filled])
        first, second = (f.descriptors[i].float() for f, i in zip((a, b), indices.T, strict=True))
        return Matches(indices, (first * second).sum(1), confidence=confidence)

    def network(self, descriptor_id: str | None, length: int | None = None) -> MatchingTransformer:
        """The network for a descriptor id and length; None stands for an unknown one."""
        for name, network in self._networks.items():
            lengths = None, network.settings.descriptor_length
            if descriptor_id in (None, name) and length in lengths:
                return network
        known, given = " or ".join(map(repr, self._networks)), descriptor_id or "unknown ones"
        size = f" of length {length}" if length else ""
        raise InputError(
            f"the matcher {self.id!r} matches descriptors {known}, not {given!r}{size}: extract "
            'the photos with those weights, or use the matcher "nearest"'
        )


def load_learned(path: str) -> LearnedMatcher:
    """The learned matcher of a name or file; it is read again only if the file has changed."""
    file = CATALOGUE[path].path if path in CATALOGUE else expand_user(str(path))
    if not file.is_file():
        raise InputError(
            f'matcher must be "nearest", "learned" or a file, but there is no file {path!r}'
        )
    return _read(str(path), str(file_state(file)))


@lru_cache(maxsize=2)
def _read(path: str, _state: str) -> LearnedMatcher:
    return LearnedMatcher(path)


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
