"""Teachers of a distillation, and their outputs for each training photo.

Teachers see every photo once, as it is. Their keypoints and descriptors are stored in one file per
photo, so the training itself does not run them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zipfile import is_zipfile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import D2NetError, ImageError, InputError, needs_package
from d2net.io.atomic import output_errors, replacing
from d2net.io.resume import fingerprint
from d2net.networks.base import Network, View
from d2net.networks.checkpoint import load_into
from d2net.networks.vgg import VGG
from d2net.networks.weights import load_network
from d2net.progress import Progress
from d2net.training.crops import RGB
from d2net.training.settings import MIN_PHOTO_EDGE, DistillationSettings
from d2net.training.sources.reading import read_photo

_ALIKED_OFFSETS = {"aliked-n16": (1.30, -2.05), "aliked-n16rot": (0.47, -0.02)}
"""Offset (x, y) in pixels of ALIKED's keypoints from the image structure. It was measured on 14
photos: n16rot against itself after quarter turns, and n16 against n16rot. It is removed, because a
student that sees rotated crops cannot know its direction and would learn blurred keypoints."""

_RANDOM_POINTS = 100  # per photo, described besides the keypoints
_SAME_KEYPOINT = 1.5  # pixels; keypoints of two teachers nearer than this are one

_log = logging.getLogger(__name__)


class TeacherOutput(NamedTuple):
    """The output of one teacher for a photo.

    Attributes:
        positions: N x 2 float32 (x, y) of keypoints in pixels, best first.
        scores: N float32, 0..1.
        describe: computes M x D descriptors at M x 2 positions.
    """

    positions: Tensor
    scores: Tensor
    describe: Callable[[Tensor], Tensor]


class NetworkTeacher:
    """Weights of the package. Scores are relative to the photo's highest."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        network, source = load_network(name)
        self._network: Network = network.to(device).eval()
        self._dtype = dtype if isinstance(network, VGG) else torch.float32  # light is fast anyway
        self.sha256 = source["sha256"]
        self._type, self.length = next(iter(network.descriptor_lengths.items()))

    def run(self, photo: Tensor, keypoints: int) -> TeacherOutput:
        """Run on an H x W x 3 float32 photo (RGB, 0..255); at most `keypoints` are returned."""
        network = self._network
        maps = tuple(part[0] for part in network.compute_maps(photo[None], self._dtype))
        positions, scores = photo.new_empty(0, 2), photo.new_empty(0)
        if keypoints:
            detector = network.detector(original=False)
            found = detector.detect(View(photo, maps, 1, 1.0, self._dtype))
            last = photo.new_tensor([photo.shape[1] - 1, photo.shape[0] - 1])
            near_border = (found.positions - last / 2).abs() > last / 2 - detector.border
            found = found[found.located & ~near_border.any(1)]
            found = found[found.scores.argsort(descending=True, stable=True)[:keypoints]]
            positions, scores = found.positions, found.scores / found.scores[:1].clamp_min(1e-6)
        return TeacherOutput(positions, scores, lambda at: network.describe(maps, at, self._type))


class AlikedTeacher:
    """ALIKED (Zhao et al., IEEE TIM 2023) through kornia, with its offset removed."""

    length = 128

    def __init__(self, model: str, file: Path, device: str, keypoints: int) -> None:
        with needs_package(f"the teacher {model} needs kornia", "baselines"):
            import kornia.feature as kf
        options: dict[str, Any] = {"max_num_keypoints": max(1, keypoints)}
        network: Any = kf.ALIKED(model_name=model, detection_threshold=0.0, **options)
        self.sha256 = load_into(network, file)
        self._network = network.to(device).eval()
        self._offset = torch.tensor(_ALIKED_OFFSETS[model], device=device)

    def run(self, photo: Tensor, keypoints: int) -> TeacherOutput:
        """See `NetworkTeacher.run`."""
        last = photo.new_tensor([photo.shape[1] - 1, photo.shape[0] - 1])
        features, score_map = self._network.extract_dense_map(photo.permute(2, 0, 1)[None] / 255)
        found, scores, _ = self._network.dkd(score_map)

        def describe(positions: Tensor) -> Tensor:
            at = (positions + self._offset) / last * 2 - 1
            descriptors: Tensor = self._network.desc_head(features, [at.clamp(-1, 1)])[0][0]
            return descriptors

        positions = (found[0][:keypoints] + 1) / 2 * last - self._offset
        return TeacherOutput(positions, scores[0][:keypoints].clamp(0, 1), describe)


Teacher: TypeAlias = NetworkTeacher | AlikedTeacher


def load_teachers(settings: DistillationSettings, data: Path, device: str) -> list[Teacher]:
    """The teachers of a run."""
    teachers: list[Teacher] = []
    for entry in settings.teachers:
        model, _, file = entry.name.partition(":")
        if model in _ALIKED_OFFSETS:
            if not file:
                raise InputError(f'the teacher {model} needs its file: name = "{model}:FILE"')
            teachers.append(AlikedTeacher(model, data / file, device, entry.keypoints))
        else:
            local = data / entry.name
            dtype: torch.dtype = getattr(torch, settings.precision)
            name = str(local) if local.is_file() else entry.name
            teachers.append(NetworkTeacher(name, device, dtype))
    return teachers


class Targets(NamedTuple):
    """The merged outputs of all teachers for a photo, which the student learns to reproduce.

    Attributes:
        positions: N x 2 float32 (x, y) in pixels of the reduced photo: keypoints, then others.
        scores: N float32, 0..1, the best score that a teacher gives a keypoint; 0: no keypoint.
        descriptors: N x D float16, the weighted descriptors of all teachers side by side.
    """

    positions: NDArray[np.float32]
    scores: NDArray[np.float32]
    descriptors: NDArray[np.float16]


@torch.inference_mode()
def compute_targets(
    photo: RGB,
    teachers: Sequence[Teacher],
    settings: DistillationSettings,
    device: str,
    rng: np.random.Generator,
) -> Targets:
    """Run all teachers on a photo, and merge keypoints that several teachers found."""
    pixels = torch.from_numpy(np.array(photo)).to(device).float()
    outputs = [
        teacher.run(pixels, entry.keypoints)
        for teacher, entry in zip(teachers, settings.teachers, strict=True)
    ]
    positions, scores = pixels.new_empty(0, 2), pixels.new_empty(0)
    for output in outputs:
        if not len(output.positions):
            continue
        near = torch.cdist(positions, output.positions) < _SAME_KEYPOINT
        scores = torch.maximum(scores, (near * output.scores).amax(1))
        new = ~near.any(0)
        positions = torch.cat([positions, output.positions[new]])
        scores = torch.cat([scores, output.scores[new]])
    last = np.array([photo.shape[1] - 1, photo.shape[0] - 1])
    others = rng.uniform(0.02, 0.98, (_RANDOM_POINTS, 2)) * last
    positions = torch.cat([positions, torch.from_numpy(others).to(positions)])
    scores = F.pad(scores, (0, len(others)))
    parts = [
        entry.weight * F.normalize(output.describe(positions).float(), dim=1)
        for output, entry in zip(outputs, settings.teachers, strict=True)
    ]
    descriptors = F.normalize(torch.cat(parts, 1), dim=1).half()
    return Targets(*(x.cpu().numpy() for x in (positions, scores, descriptors)))


class StoredTargets:
    """The targets of a run, stored in one file per photo."""

    def __init__(self, folder: Path, data: Path, settings: DistillationSettings) -> None:
        self._folder, self._data, self._settings = folder, data, settings

    def _path(self, photo: Path) -> Path:
        return self._folder / f"{fingerprint(os.path.relpath(photo, self._data))}.npz"

    def compute(
        self, photos: Sequence[Path], teachers: Sequence[Teacher], device: str, progress: Progress
    ) -> None:
        """Compute missing targets. Photos that cannot be read are logged and left out."""
        with output_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(photos):
            progress("running teachers", number, len(photos))
            file = self._path(photo)
            if self.has(photo):
                continue
            rng = np.random.default_rng(int(file.stem, 16))
            try:
                pixels = read_photo(photo, self._settings.photo_edge)
            except D2NetError as error:
                _log.warning("a photo is left out: %s", error)
                continue
            is_large = min(pixels.shape[:2]) >= MIN_PHOTO_EDGE
            targets = is_large and compute_targets(pixels, teachers, self._settings, device, rng)
            if not targets or not targets.scores.any():
                _log.warning("a photo is left out: %s has no keypoints for the student", photo)
                continue
            with replacing(file, lock=False) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **targets._asdict())
        progress("running teachers", len(photos), len(photos))

    def has(self, photo: Path) -> bool:
        """Whether a photo has targets."""
        return is_zipfile(self._path(photo))

    def read(self, photo: Path) -> Targets:
        """The targets of a photo."""
        try:
            with np.load(self._path(photo)) as arrays:
                return Targets(**arrays)
        except Exception as error:  # a damaged file may cause any
            raise ImageError(
                f"there are no teachers' outputs for {photo}: the photo or its outputs are damaged"
            ) from error
