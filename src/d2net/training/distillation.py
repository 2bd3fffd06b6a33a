"""Distillation: the network light learns to imitate teachers.

The descriptors of all teachers are concatenated and projected to their first principal components.
The student sees two warped and augmented crops of a photo. It learns to reproduce these descriptors
in both crops, to match the crops, and to detect those keypoints of the teachers that it matches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.errors import InputError
from d2net.extraction.d2net import D2Net
from d2net.io.arrays import evenly_spaced
from d2net.networks.light import SCORE_CELL, Light, LightSettings
from d2net.networks.weights import load_network, save_weights
from d2net.progress import Progress, no_progress
from d2net.training.alarms import COLLAPSE
from d2net.training.batches import PairBatches
from d2net.training.muon import Muon
from d2net.training.objective import FeatureObjective, mean_over_processes
from d2net.training.settings import DistillationSettings, RunSettings
from d2net.training.sources.base import TrainingPair
from d2net.training.sources.distillation import (
    DistillationPairs,
    StudentPair,
    find_teacher_photos,
    stack,
)
from d2net.training.sources.reading import read_photo
from d2net.training.state import TrainingState
from d2net.training.teachers import StoredTargets, load_teachers

_COSINE, _SCORE = 1.0, 3.0  # weights of the terms
_FLOOR = 0.2  # share of the teachers' score that remains of a keypoint that is not matched
_MIN_DISTANCE = 3.0  # px; points of a photo nearer than this are no negatives of each other
_FIRST_SCALE, _LEARNED_SCALE, _MAX_SCALE = 15.0, 33.0, 50.0
"""Factor of the cosines in the softmax, learned: random, of starting weights, and at most."""
_AVERAGING = 0.999  # of the weights
_WEIGHT_DECAY = 1e-4
_PROJECTION_PHOTOS, _PROJECTION_STEP = 200, 5  # from which the principal components come


class Student(nn.Module):
    """The network that learns, and the rest of its training state.

    Attributes:
        light: the network.
        average: moving average of its weights.
        log_scale: logarithm of the factor of the cosines in the softmax.
        projection: D x d, from the teachers' descriptors to the student's; zero until known.
        updates: number of updates of the average.
    """

    projection: Tensor
    updates: Tensor

    def __init__(self, light: Light, teacher_length: int, scale: float) -> None:
        super().__init__()
        self.light = light
        light.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(light).requires_grad_(False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.register_buffer("projection", torch.zeros(teacher_length, light.widths.dimension))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def scale(self) -> Tensor:
        """The factor of the cosines in the softmax."""
        return self.log_scale.exp().clamp(max=_MAX_SCALE)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the weights; it follows faster in the first steps."""
        self.updates += 1
        updates = int(self.updates)
        keep = min(_AVERAGING, updates / (updates + 9))
        average = self.average.state_dict()
        for name, value in self.light.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - keep)
            else:
                average[name].copy_(value)


class DistillationObjective(FeatureObjective):
    """The network light, its teachers' outputs and the losses."""

    settings: DistillationSettings
    network: Student
    alarms = (COLLAPSE,)

    def __init__(
        self,
        settings: DistillationSettings,
        data: Path,
        folder: Path,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__(settings, data)
        self._progress = progress
        teachers = load_teachers(settings, data, "cpu")
        self._targets = StoredTargets(folder, data, settings)
        if settings.start == "none":
            widths = LightSettings.from_dict(settings.student) if settings.student else None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(settings.seed)
                light, self.start = Light(widths), {"name": "none"}
        else:
            network, self.start = load_network(settings.start)
            if not isinstance(network, Light):
                raise InputError(f"{settings.start} are not weights of the network light")
            light = network.float()
        names = [entry.name for entry in settings.teachers]
        self.start |= dict(zip(names, (teacher.sha256 for teacher in teachers), strict=True))
        length = sum(teacher.length for teacher in teachers)
        if length < light.widths.dimension:
            raise InputError(
                f"the teachers' descriptors have {length} dimensions in total, fewer than the "
                f"student's {light.widths.dimension}: lower dimension in student"
            )
        scale = _FIRST_SCALE if settings.start == "none" else _LEARNED_SCALE
        self.network = Student(light, length, scale)

    def dataset(self, rank: int, processes: int) -> PairBatches[StudentPair]:
        """See `Objective.dataset`; first, the teachers run on photos that are new or changed."""
        sources = self.settings.training_sources
        found = (find_teacher_photos(source, self.data) for source in sources)
        photos = sorted({photo.path for part in found for photo in part})
        mine = photos[rank::processes]
        if not all(self._targets.has(photo) for photo in mine):
            device = str(self.network.projection.device)
            teachers = load_teachers(self.settings, self.data, device)
            self._targets.compute(mine, teachers, device, self._progress)
        if processes > 1:
            torch.distributed.barrier()
        if not self.network.projection.any():
            known = [photo for photo in photos if self._targets.has(photo)]
            if not known:
                raise InputError(f"none of the photos in {self.data} can be used")
            self.network.projection.copy_(self._compute_projection(known))
        open_one = partial(
            DistillationPairs, settings=self.settings, data=self.data, targets=self._targets
        )
        return PairBatches(self.settings, open_one, stack, rank, processes)

    @torch.no_grad()
    def _compute_projection(self, photos: Sequence[Path]) -> Tensor:
        """The directions in which the teachers' descriptors have the most energy, D x d.

        They are rotated towards the descriptors of the starting weights, if there are any, so
        the student need not learn another basis first.
        """
        light = self.network.average.for_inference()
        device, has_start = self.network.projection.device, self.start["name"] != "none"
        energy, product = 0.0, 0.0
        for i in evenly_spaced(len(photos), _PROJECTION_PHOTOS):
            targets = self._targets.read(photos[i])
            teacher = targets.descriptors[::_PROJECTION_STEP].astype(np.float64)
            energy = energy + teacher.T @ teacher
            if has_start:
                pixels = np.array(read_photo(photos[i], self.settings.photo_edge))[None]
                image = torch.from_numpy(pixels).to(device).float()
                maps = light.compute_maps(image, torch.float32)
                points = torch.from_numpy(targets.positions[None, ::_PROJECTION_STEP]).to(device)
                own = light.describe_batch(maps, points)[0].double().cpu().numpy()
                product = product + teacher.T @ own
        vectors = np.linalg.eigh(energy)[1][:, -light.widths.dimension :]
        if has_start:  # the orthogonal Procrustes problem
            left, _, right = np.linalg.svd(vectors.T @ product)
            vectors = vectors @ left @ right
        return torch.from_numpy(vectors.copy())

    def optimizer(self, settings: RunSettings) -> torch.optim.Optimizer:
        """See `Objective.optimizer`."""
        learned = [p for p in self.network.parameters() if p.requires_grad]
        return Muon(learned, settings.learning_rate, _WEIGHT_DECAY)

    def forward(self, batch: StudentPair) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses.

        - teacher: contrastive, the student's descriptors against the teachers' of all points;
        - cosine: distance of each student's descriptor from the teachers' of the same point;
        - between: contrastive, the descriptors of one crop against those of the other;
        - score: cross-entropy of the keypoint's place in each cell.
        """
        student = self.network
        if torch.is_grad_enabled():
            student.update_average()  # with the weights after the previous step
        images, points = batch.images.flatten(0, 1), batch.points.flatten(0, 1)
        maps = student.light.compute_maps(images, getattr(torch, self.settings.precision))
        descriptors = student.light.describe_batch(maps, points)
        descriptors = descriptors.view(*batch.points.shape[:3], -1)
        a, b = (descriptors[:, k][batch.valid] for k in (0, 1))
        teacher = F.normalize(batch.targets[batch.valid].float() @ student.projection, dim=1)
        near = near_points(batch.places, batch.valid)
        to_teacher = [contrast(x @ teacher.T * student.scale, near) for x in (a, b)]
        between = contrast(a @ b.T * student.scale, near)
        matched = (-between.detach()).exp()  # probability of a match in both directions
        cosine = 2 - (a * teacher).sum(1) - (b * teacher).sum(1)
        terms = {
            "teacher": mean_over_processes(to_teacher[0] + to_teacher[1]) / 4,
            "cosine": mean_over_processes(cosine),
            "between": mean_over_processes(between) / 2,
            "score": mean_over_processes(self._score_loss(maps[3].float(), batch, matched)),
        }
        loss = terms["teacher"] + _COSINE * terms["cosine"] + terms["between"]
        figures = {name: float(value.detach()) for name, value in terms.items()}
        figures["matched"] = float(matched.mean())
        figures["scale"] = float(student.scale.detach())
        figures["similarity"] = float(a.detach().mean(0).square().sum())
        return loss + _SCORE * terms["score"], figures

    def _score_loss(self, score: Tensor, batch: StudentPair, matched: Tensor) -> Tensor:
        """Cross-entropy of the cells that lie on the photo.

        The target of a keypoint is the teachers' score times a factor that grows with the
        probability of its right match between the crops, so the student learns to score keypoints
        that can be matched. Keypoints that only one crop shows get their pair's mean probability.
        """
        chance = torch.zeros(batch.valid.shape, device=score.device)
        chance = chance.masked_scatter(batch.valid, matched)
        mean = chance.sum(1, keepdim=True) / batch.valid.sum(1, keepdim=True)
        chance = torch.cat([chance, mean], 1)  # the row -1 is the mean
        rows = batch.rows.flatten(1) % chance.shape[1]
        chance = chance.gather(1, rows).view_as(batch.scores)
        mass = batch.scores * (_FLOOR + (1 - _FLOOR) * chance)
        target = splat(batch.keypoints.flatten(0, 1), mass.flatten(0, 1), self.settings.crop)
        target = F.pixel_unshuffle(target, SCORE_CELL)
        total = target.sum(1, keepdim=True)
        target = torch.cat([target / total.clamp(min=1), (1 - total).clamp(min=0)], 1)
        loss = -(target * self.network.light.score_head.log_probability(score)).sum(1)
        shown: Tensor = loss[batch.shown.flatten(0, 1)]
        return shown

    def pair_loss(self, pair: TrainingPair) -> float:
        """The loss between the crops of a validation pair, at its correspondences."""
        return contrast_of_pair(self.network.average, pair, float(self.network.scale.detach()))

    def model(self) -> D2Net:
        """See `FeatureObjective.model`."""
        return D2Net(self.network.average.for_inference())

    def save(self, path: Path, state: TrainingState) -> None:
        """See `Objective.save`; the moving average is saved."""
        made_of = "outputs of " + ", ".join(entry.name for entry in self.settings.teachers)
        save_weights(path, self.network.average, self.header(path, state, made_of))


def near_points(places: Tensor, valid: Tensor) -> Tensor:
    """Pairs of points of one photo that are too near to be negatives, n x n bool.

    Takes B x K x 2 positions in pixels; n of the B x K points are valid.
    """
    photo = torch.arange(len(valid), device=valid.device)[:, None].expand(valid.shape)[valid]
    places = places[valid].double()
    near = torch.cdist(places, places) < _MIN_DISTANCE
    return (near & (photo[:, None] == photo)).fill_diagonal_(False)


def contrast(similarity: Tensor, near: Tensor) -> Tensor:
    """N cross-entropies of each point's partner in its row and in its column, added.

    Partners are on the diagonal of the n x n logits; entries in `near` are no negatives.
    """
    similarity = similarity.masked_fill(near, -1e4)
    return similarity.logsumexp(1) + similarity.logsumexp(0) - 2 * similarity.diagonal()


@torch.no_grad()
def contrast_of_pair(network: Light, pair: TrainingPair, scale: float) -> float:
    """The mean of `contrast` between the crops of a validation pair, at its correspondences."""
    network = network.for_inference()
    device = network.score_head.nothing.device
    images = torch.from_numpy(np.stack([pair.image_a, pair.image_b])).to(device).float()
    points = torch.from_numpy(np.stack([pair.points_a, pair.points_b])).to(device)
    a, b = network.describe_batch(network.compute_maps(images, torch.float32), points)
    near = torch.zeros(len(a), len(a), dtype=torch.bool, device=device)
    return float(contrast(a @ b.T * scale, near).mean() / 2)


def splat(positions: Tensor, mass: Tensor, edge: int) -> Tensor:
    """Spread the mass of points over the four pixels around them, bilinear.

    Takes B x K x 2 positions (x, y) in pixels and B x K masses; gives B x 1 x edge x edge.
    """
    low = positions.floor()
    part = positions - low
    out = torch.zeros(len(positions), edge * edge, device=positions.device)
    for offset in low.new_tensor([(0, 0), (1, 0), (0, 1), (1, 1)]):
        x, y = (low + offset).clamp(0, edge - 1).unbind(-1)
        across, down = (1 - offset - part).abs().unbind(-1)
        out.scatter_add_(1, (y * edge + x).long(), mass * across * down)
    return out.view(-1, 1, edge, edge)
