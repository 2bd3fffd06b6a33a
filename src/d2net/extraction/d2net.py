"""The model: from a photo to its `Features`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from d2net.errors import InputError
from d2net.extraction.detectors import PROPOSERS
from d2net.extraction.keypoints import Keypoints, find_keypoints
from d2net.extraction.selection import best_first, in_order
from d2net.extraction.turning import find_in_turns
from d2net.features import Features
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.io import images
from d2net.io.images import ImageLike, MaskLike, Pixels
from d2net.networks.catalogue import CAFFE, Normalisation
from d2net.networks.detection import soft_scores
from d2net.networks.vgg import Trunk
from d2net.networks.weights import load_weights
from d2net.networks.whitening import Whitening
from d2net.settings import ExtractionSettings

if TYPE_CHECKING:
    from d2net.networks.sampling import Form


class D2Net(nn.Module):
    """D2-Net: joint description and detection of local features.

    Dusmanu et al., CVPR 2019. One VGG-16 gives a dense map; each cell is a descriptor, and each
    local maximum of a cell's strongest channel is a keypoint.

    Most users want `D2Net.from_pretrained()`. The constructor gives an untrained network.

    Args:
        trunk: the network.
        normalisation: what its weights want; it belongs to them and is no option.
        settings: defaults of `extract`.
        weights: name and checksum of the weights, saved with results.
        whitening: of descriptors; it belongs to the weights, too, and not all have one.
    """

    def __init__(
        self,
        trunk: Trunk | None = None,
        normalisation: Normalisation = CAFFE,
        settings: ExtractionSettings | None = None,
        weights: dict[str, str] | None = None,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk or Trunk()
        self.normalisation = normalisation
        self.weights = weights or {"name": "untrained", "sha256": ""}
        self.whitening = whitening
        self.settings = settings or ExtractionSettings()
        self.settings = self.chosen()
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "default",
        *,
        device: str | torch.device = "cpu",
        **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
    ) -> D2Net:
        """A model with trained weights.

        Args:
            name_or_path: a name that `d2net weights` lists, or a file: safetensors, or a `.pth` of
                the 2019 release (read without executing it).
            device: where the network runs.
            **settings: fields of `ExtractionSettings`, as `original=True` or `max_keypoints=2000`.

        Raises:
            WeightsError: no such name or file, or the file is damaged or of another network.
            InputError: unknown or impossible setting.
        """
        loaded = load_weights(name_or_path)
        model = cls(
            normalisation=loaded.normalisation,
            settings=ExtractionSettings.from_dict(settings),
            weights={"name": loaded.name, "sha256": loaded.sha256},
            whitening=loaded.whitening,
        )
        model.trunk.load_state_dict(loaded.state)
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"cannot use device {str(device)!r}: {reason}") from error

    @property
    def device(self) -> torch.device:
        """Where the network is, and where features are returned."""
        return next(self.parameters()).device

    def chosen(
        self,
        **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
    ) -> ExtractionSettings:
        """The model's settings with some changed, and what they leave to the weights decided.

        Raises:
            InputError: unknown or impossible setting, or one that these weights cannot follow.
        """
        changed = self.settings.updated(**settings)
        if changed.detector is None:
            changed = changed.updated(detector="deep" if changed.original else "both")
        if changed.descriptor is None:
            if changed.original:
                return changed.updated(descriptor="plain")
            return changed.updated(descriptor="whitened" if self.whitening else "fused")
        if changed.descriptor == "whitened" and self.whitening is None:
            raise InputError(
                f"the weights {self.weights['name']!r} have no whitening of descriptors: choose "
                "descriptor 'fused', or weights that have one"
            )
        return changed

    def provenance(self, settings: ExtractionSettings | None = None) -> dict[str, Any]:
        """How features are made: package version, weights and settings, for saving with them."""
        from d2net import __version__

        return {
            "d2net": __version__,
            "weights": self.weights,
            "extraction": (settings or self.settings).to_dict(),
        }

    def extract(
        self,
        image: ImageLike,
        *,
        mask: MaskLike | None = None,
        **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
    ) -> Features:
        """The local features of a photo.

        Args:
            image: path, PIL image, array (H x W or H x W x 3; uint8, uint16, or float in [0, 1]) or
                tensor (3 x H x W; uint8, or float in [0, 1]).
            mask: image or array of the photo's size: no keypoints where it is 0.
            **settings: changes to the model's settings for this call.

        Returns:
            Features on the model's device, best score first (in the release's order with
            `original`); positions in pixels of the photo, upright unless `upright=False`.

        Raises:
            ImageError: the photo cannot be read.
            InputError: wrong shape or type, mask of another size, unknown setting.
        """
        return self.extract_batch([image], masks=[mask], **settings)[0]

    def extract_batch(
        self,
        batch: Sequence[ImageLike],
        *,
        masks: Sequence[MaskLike | None] | None = None,
        **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
    ) -> list[Features]:
        """`extract` for photos of one size in one pass of the network.

        Raises:
            InputError: the photos differ in size, or there are not as many masks as photos.
        """
        chosen = self.chosen(**settings)
        if masks is None:
            masks = [None] * len(batch)
        if len(masks) != len(batch):
            raise InputError(f"there are {len(batch)} photos but {len(masks)} masks")
        pairs = zip(batch, masks, strict=True)
        return self.extract_prepared([prepare(image, chosen, mask) for image, mask in pairs])

    def extract_prepared(self, batch: Sequence[PreparedPhoto]) -> list[Features]:
        """`extract` for photos of one size that `prepare` has read, perhaps in another thread.

        Raises:
            InputError: the photos differ in size or settings.
        """
        if not batch:
            return []
        sizes = {photo.size for photo in batch}
        if len(sizes) > 1:
            listed = ", ".join(f"{w} x {h}" for w, h in sorted(sizes))
            raise InputError(f"photos of one batch must have one size, not {listed}")
        settings = batch[0].settings
        if any(photo.settings != settings for photo in batch):
            raise InputError("photos of one batch must be prepared with the same settings")
        pixels = [torch.from_numpy(photo.pixels) for photo in batch]
        turns = find_in_turns(
            partial(self._find, settings=settings, most=_looked_at(batch)),
            torch.stack(pixels).to(self.device),
            settings.turns,
        )
        chosen = [
            [_chosen(keypoints, photo) for keypoints, photo in zip(found, batch, strict=True)]
            for found in turns  # whose maps are held one at a time
        ]
        made_by = (self.weights["name"], self.weights["sha256"][:8], settings.descriptor)
        descriptor = " ".join(word for word in made_by if word)
        return [
            _features(in_order([of_turn[i] for of_turn in chosen]), photo, descriptor)
            for i, photo in enumerate(batch)
        ]

    def score_map(
        self,
        image: ImageLike,
        **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
    ) -> Tensor:
        """Soft detection scores (equations 4 to 7) of a photo, to look at.

        The photo is reduced to the default size limits at least: this map is never tiled.

        Returns:
            h x w float32 at stride 4, one level, the whole summing to one; h or w is 0 where the
            photo is too small for a cell.
        """
        chosen, most = self.chosen(**settings), ExtractionSettings()
        photo = prepare(
            image,
            chosen.updated(
                max_edge=_smaller(chosen.max_edge, most.max_edge),
                max_sum_edges=_smaller(chosen.max_sum_edges, most.max_sum_edges),
            ),
        )
        pixels = torch.from_numpy(photo.pixels).to(self.device)
        with torch.no_grad():
            maps = self.trunk.extract(self.normalisation(pixels.permute(2, 0, 1)[None].float()))
            return soft_scores(maps.permute(0, 3, 1, 2))[0]

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of image tensors, with the keys of LightGlue and kornia.

        Args:
            data: `image`, B x 3 x H x W (or B x 1 x H x W) float in [0, 1]. It is used at its own
                size: `max_edge` and `max_sum_edges` do not apply.

        Returns:
            `keypoints` B x N x 2, `keypoint_scores` B x N, `descriptors` B x N x C, `image_size`
            B x 2 (width, height). Images with fewer keypoints than the richest are filled up with
            zeros; `num_keypoints` (B) says how many are real.
        """
        image = data["image"]
        if image.ndim != 4 or image.shape[1] not in (1, 3) or not image.is_floating_point():
            raise InputError(
                "image must be a float tensor B x 3 x H x W in [0, 1], not "
                f"{image.dtype} of shape {tuple(image.shape)}"
            )
        features = self.extract_batch(list(image), max_edge=None, max_sum_edges=None)
        return _padded(features)

    def _find(
        self, photos: Tensor, settings: ExtractionSettings, most: int | None
    ) -> list[list[Keypoints]]:
        dtype = getattr(torch, settings.precision)
        if dtype == torch.float16 and photos.device.type == "cpu":
            raise InputError("float16 needs a GPU: on a CPU use float32 or bfloat16")
        with torch.no_grad():
            return find_keypoints(
                self.trunk,
                self.normalisation,
                photos,
                multiscale=settings.multiscale,
                original=settings.original,
                dtype=dtype,
                proposers=PROPOSERS[settings.detector or "both"],
                form=cast("Form", settings.descriptor),
                whitening=self.whitening,
                most=most,
            )


def _smaller(*limits: int | None) -> int | None:
    """The strictest of some size limits, of which None is none."""
    return min((limit for limit in limits if limit is not None), default=None)


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo that has been read and reduced to the size limits.

    Attributes:
        pixels: H x W x 3, RGB, 0..255, uint8 or float32.
        size: (width, height) of the photo before it was reduced.
        mask: bool array of `size`, True where keypoints are allowed; None for everywhere.
        settings: what it was prepared for.
    """

    pixels: Pixels
    size: Size
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None
    settings: ExtractionSettings


def prepare(
    image: ImageLike, settings: ExtractionSettings, mask: MaskLike | None = None
) -> PreparedPhoto:
    """Read a photo and its mask: all of `D2Net.extract` that needs no network."""
    photo = images.to_pixels(image, upright=settings.upright)
    size = (photo.shape[1], photo.shape[0])
    allowed = None if mask is None else images.read_mask(mask, size, upright=settings.upright)
    limits = (settings.max_edge, settings.max_sum_edges)
    if settings.original:
        pixels = images.resize_like_release(photo, *limits)
    else:
        pixels = images.resize(photo, images.limited_size(size, *limits))
    return PreparedPhoto(np.require(pixels, requirements=["C", "W"]), size, allowed, settings)


def _looked_at(batch: Sequence[PreparedPhoto]) -> int | None:
    """How many of a proposer's best can matter; None where a mask may take any of them.

    A kept corner takes the place of deep detections within a pixel, never more than three.
    """
    budget = batch[0].settings.max_keypoints
    if budget is None or any(photo.mask is not None for photo in batch):
        return None
    return 4 * budget


def _photo_from_entered(photo: PreparedPhoto) -> GridMap:
    """Where pixels that enter the network lie in the photo."""
    entered = (photo.pixels.shape[1], photo.pixels.shape[0])
    resize = coordinates.resize_ratio if photo.settings.original else coordinates.resize
    return resize(entered, photo.size)


def _chosen(found: Sequence[Keypoints], photo: PreparedPhoto) -> Keypoints:
    """What the proposers have found in one turn, with mask, threshold and budget applied."""
    settings = photo.settings
    allowed = []
    for keypoints in found:
        keep = keypoints.scores >= settings.score_threshold
        if photo.mask is not None:
            positions = _photo_from_entered(photo)(keypoints.positions)
            keep &= _allowed(positions, photo.mask)
        allowed.append(keypoints if bool(keep.all()) else keypoints[keep])
    return best_first(allowed, settings.max_keypoints)


def _features(chosen: Keypoints, photo: PreparedPhoto, descriptor: str) -> Features:
    """Positions to the photo; in the release's order if asked for."""
    photo_from_entered = _photo_from_entered(photo)
    if photo.settings.original:
        chosen = chosen[chosen.order.argsort()]
    magnification = max(photo_from_entered.x.scale, photo_from_entered.y.scale)
    return Features(
        keypoints=photo_from_entered(chosen.positions),
        scores=chosen.scores,
        scales=chosen.scales,
        descriptors=chosen.descriptors,
        image_size=photo.size,
        uncertainty=chosen.deviations * magnification,
        descriptor_id=descriptor,
    )


def _allowed(positions: Tensor, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Tensor:
    """N bool: the pixel that a keypoint lies in is not masked."""
    height, width = mask.shape
    cols, rows = positions.round().long().unbind(dim=1)
    inside = torch.from_numpy(mask).to(positions.device)
    return inside[rows.clamp(0, height - 1), cols.clamp(0, width - 1)]


def _padded(features: list[Features]) -> dict[str, Tensor]:
    """Features of several images as tensors with a batch dimension."""

    def stack(name: str) -> Tensor:
        rows = [getattr(f, name) for f in features]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    device = features[0].keypoints.device
    return {
        "keypoints": stack("keypoints"),
        "keypoint_scores": stack("scores"),
        "descriptors": stack("descriptors"),
        "image_size": torch.tensor([f.image_size for f in features], device=device).float(),
        "num_keypoints": torch.tensor([len(f) for f in features], device=device),
    }
