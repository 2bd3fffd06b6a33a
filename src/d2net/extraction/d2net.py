"""The model: from a photo to its `Features`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from d2net.errors import InputError
from d2net.extraction.keypoints import Keypoints, find_keypoints
from d2net.extraction.turning import find_in_turns
from d2net.features import Features
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.io import images
from d2net.io.images import ImageLike, MaskLike, Pixels
from d2net.networks.base import Network
from d2net.networks.catalogue import DEFAULT_ORIGINAL
from d2net.networks.vgg import VGG
from d2net.networks.weights import load_network
from d2net.settings import ExtractionOptions, ExtractionSettings

_log = logging.getLogger(__name__)


class D2Net(nn.Module):
    """D2-Net: joint description and detection of local features.

    Dusmanu et al., CVPR 2019. Most users want `D2Net.from_pretrained()`.

    Args:
        network: computes the maps, detects and describes; None for an untrained VGG-16.
        settings: defaults of `extract`.
        weights: name and checksum, saved with results. `load_state_dict` updates them. If you
            change parameters in place, set them yourself.
    """

    def __init__(
        self,
        network: Network | None = None,
        settings: ExtractionSettings | None = None,
        weights: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network or VGG()
        self.weights = weights or {"name": "untrained", "sha256": ""}
        self.settings = self.network.resolve(settings or ExtractionSettings())
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = "default",
        *,
        device: str | torch.device = "cpu",
        **settings: Unpack[ExtractionOptions],
    ) -> D2Net:
        """A model with trained weights.

        Args:
            name_or_path: a name that `d2net weights` lists, or a file: safetensors, or a `.pth` of
                the 2019 release (read without executing it). Light and a VGG can be joined, as in
                `light+seasons`, which is the default; with `original` it is `ots`.
            device: where the network runs.
            **settings: fields of `ExtractionSettings`, such as `original=True` or
                `max_keypoints=2000`.

        Raises:
            WeightsError: no such name or file, or the file is damaged or of another network.
            InputError: unknown or impossible setting.
        """
        chosen = ExtractionSettings.from_dict(settings)  # fails before the weights are loaded
        if name_or_path == "default" and chosen.original:
            name_or_path = DEFAULT_ORIGINAL
        network, weights = load_network(name_or_path)
        model = cls(network, chosen, weights)
        try:
            return model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"cannot use device {str(device)!r}: {reason}") from error

    @property
    def device(self) -> torch.device:
        """Where the network is, and where features are returned."""
        return next(self.parameters()).device

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (as torch has it)
        """See `torch.nn.Module`. If this changes the parameters, `weights` gets their checksum.

        `Map(MapFolder(path), model)` then opens maps of this model, and `Map.open` does not.
        """
        old = self._checksum()
        try:
            return super().load_state_dict(*args, **kwargs)
        finally:  # torch loads what fits before it raises an error
            if (new := self._checksum()) != old:
                self.weights = {"name": "loaded", "sha256": new}

    def _checksum(self) -> str:
        arrays = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        return sha256(safetensors.torch.save(arrays)).hexdigest()

    def resolve(self, **settings: Unpack[ExtractionOptions]) -> ExtractionSettings:
        """The model's settings with some changed, and with defaults of the network filled in.

        Raises:
            InputError: unknown or impossible setting, or one that these weights cannot follow.
        """
        return self.network.resolve(self.settings.updated(**settings))

    def provenance(self, settings: ExtractionSettings | None = None) -> dict[str, Any]:
        """Package version, weights and settings, for saving with features."""
        from d2net import __version__

        extraction = (settings or self.settings).to_dict()
        return {"d2net": __version__, "weights": self.weights, "extraction": extraction}

    def descriptor_id(self, settings: ExtractionSettings | None = None) -> str:
        """Weights and type of the descriptors that `extract` makes, see `Features`."""
        descriptor = (settings or self.settings).descriptor
        words = (self.weights["name"], self.weights["sha256"][:8], descriptor)
        return " ".join(word for word in words if word)

    def extract(
        self,
        image: ImageLike,
        *,
        mask: MaskLike | None = None,
        **settings: Unpack[ExtractionOptions],
    ) -> Features:
        """The local features of a photo.

        Args:
            image: path, PIL image, array (H x W grey, or H x W x 3 RGB; uint8, uint16, or float in
                [0, 1]) or tensor (3 x H x W RGB; uint8, or float in [0, 1]). OpenCV reads photos in
                BGR order: convert them with `image[..., ::-1]`.
            mask: image or array of the photo's size: no keypoints where it is 0.
            **settings: changes to the model's settings for this call.

        Returns:
            Features on the model's device, best score first (in the release's order with
            `original`), in pixels of the photo, which is upright unless `upright=False`.

        Raises:
            ImageError: the photo cannot be read.
            InputError: wrong shape or type, mask of another size, unknown setting.
        """
        return self.extract_batch([image], masks=[mask], **settings)[0]

    def extract_batch(
        self,
        batch: Iterable[ImageLike],
        *,
        masks: Iterable[MaskLike | None] | None = None,
        **settings: Unpack[ExtractionOptions],
    ) -> list[Features]:
        """`extract` for several photos, with as many masks; one pass for all photos of a size."""
        resolved = self.resolve(**settings)
        # A single array or path would be split into its rows or letters.
        is_one = not isinstance(batch, Iterable) or isinstance(batch, str | bytes)
        if is_one or getattr(batch, "ndim", 4) in (2, 3):
            raise InputError("extract_batch takes several photos; use extract for one photo")
        photos = list(batch)
        masks = [None] * len(photos) if masks is None else list(masks)
        if len(masks) != len(photos):
            raise InputError(f"there are {len(photos)} photos but {len(masks)} masks")
        pairs = zip(photos, masks, strict=True)
        return self.extract_prepared([prepare(image, resolved, mask) for image, mask in pairs])

    def extract_prepared(self, batch: Sequence[PreparedPhoto]) -> list[Features]:
        """`extract` for photos that `prepare` has read with the same settings."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for number, photo in enumerate(batch):
            by_shape.setdefault(photo.pixels.shape, []).append(number)
        features: dict[int, Features] = {}
        for numbers in by_shape.values():
            found = self._extract_one_size([batch[number] for number in numbers])
            features.update(zip(numbers, found, strict=True))
        return [features[number] for number in range(len(batch))]

    def _extract_one_size(self, batch: Sequence[PreparedPhoto]) -> list[Features]:
        settings = batch[0].settings
        if settings.precision == "float16" and self.device.type == "cpu":
            raise InputError("float16 needs a GPU: on a CPU use float32 or bfloat16")
        weights = next(self.parameters())
        if weights.is_meta:
            raise InputError("a model on torch's device 'meta' holds no values: use cpu or cuda")
        if weights.dtype != torch.float32:
            raise InputError(
                "the model's weights must stay float32: instead of model.half() or "
                "model.bfloat16(), give precision='float16' (GPU) or precision='bfloat16'"
            )
        # A mask may exclude any keypoint, so all must be kept.
        masked = any(photo.mask is not None for photo in batch)
        limit = None if masked else settings.max_keypoints
        find = partial(find_keypoints, self.network, settings=settings, limit=limit)
        pixels = torch.stack([torch.from_numpy(photo.pixels) for photo in batch]).to(self.device)
        selected: list[list[Keypoints]] = [[] for _ in batch]
        # The caller may have set another default device.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), torch.device("cpu"):
            for found in find_in_turns(find, pixels, settings.turns):
                for keypoints, photo, kept in zip(found, batch, selected, strict=True):
                    kept.append(_allowed(keypoints, photo).best(settings.max_keypoints))
        features = []
        for parts, photo in zip(selected, batch, strict=True):
            keypoints = Keypoints.concatenated(parts)
            key = keypoints.ranks if settings.original else -keypoints.scores
            keypoints = keypoints[key.argsort(stable=True)]
            photo_from_reduced = _photo_from_reduced(photo)
            magnification = max(photo_from_reduced.x.scale, photo_from_reduced.y.scale)
            features.append(
                Features(
                    keypoints=photo_from_reduced(keypoints.positions),
                    scores=keypoints.scores,
                    scales=keypoints.scales,
                    descriptors=keypoints.descriptors,
                    image_size=photo.size,
                    uncertainty=keypoints.uncertainty * magnification,
                    descriptor_id=self.descriptor_id(settings),
                )
            )
        return features

    def score_map(self, image: ImageLike) -> Tensor:
        """Detection scores of a photo, for display.

        This map is not tiled. So larger photos are reduced to the default size limits.

        Returns:
            h x w float32 at one scale: for light, a value per pixel; for a VGG, one per cell, the
            soft scores of equations 4 to 7, which sum to one. h or w is 0 if a photo is too small.
        """
        limits: ExtractionOptions = {}
        for name in ("max_edge", "max_sum_edges"):
            given, default = getattr(self.settings, name), getattr(ExtractionSettings, name)
            limits[name] = min(given or default, default)
        photo = prepare(image, self.settings.updated(**limits))
        pixels = torch.from_numpy(photo.pixels).to(self.device)[None].float()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False), torch.device("cpu"):
            maps = self.network.compute_maps(pixels, torch.float32)
            scores = self.network.score_map(tuple(part[0] for part in maps))
        return scores[: pixels.shape[1], : pixels.shape[2]]  # without light's padding

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Features of image tensors, with the keys of LightGlue and kornia.

        Args:
            data: `image`, B x 3 x H x W (or B x 1 x H x W) float in [0, 1]. It is used at its own
                size: `max_edge` and `max_sum_edges` do not apply.

        Returns:
            `keypoints` B x N x 2, `keypoint_scores` B x N, `descriptors` B x N x C, `image_size`
            B x 2 (width, height). N is the largest number of keypoints of an image; the rows of
            other images are padded with zeros, and `num_keypoints` (B) says how many are real.

        Raises:
            InputError: `data` has another form.
        """
        image = data.get("image") if isinstance(data, dict) else None
        if (
            not isinstance(image, Tensor)
            or image.ndim != 4
            or not len(image)
            or image.shape[1] not in (1, 3)
            or not image.is_floating_point()
        ):
            given = f"a {type(data).__name__}"
            if isinstance(image, Tensor):
                given = f"{image.dtype} of shape {tuple(image.shape)}"
            raise InputError(
                "give the model a dictionary {'image': tensor} with one tensor B x 3 x H x W of "
                f"floats in [0, 1], not {given}; for paths, arrays or photos of several sizes use "
                "model.extract or model.extract_batch"
            )
        features = self.extract_batch(list(image), max_edge=None, max_sum_edges=None)
        rows = [of_photo.to_dict() for of_photo in features]
        joined = {
            key: nn.utils.rnn.pad_sequence([row[key][0] for row in rows], batch_first=True)
            for key in rows[0]
        }
        counts = torch.tensor([len(of_photo) for of_photo in features], device=self.device)
        return {**joined, "num_keypoints": counts}


@dataclass(frozen=True)
class PreparedPhoto:
    """A photo that has been read and reduced to the size limits.

    Attributes:
        pixels: H x W x 3, RGB, 0..255, uint8 or float32.
        size: (width, height) of the photo before it was reduced.
        mask: bool array of `size`, True where keypoints are allowed; None for everywhere.
        settings: the settings that it was prepared for.
    """

    pixels: Pixels
    size: Size
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None
    settings: ExtractionSettings


def prepare(
    image: ImageLike, settings: ExtractionSettings, mask: MaskLike | None = None
) -> PreparedPhoto:
    """Read a photo and its mask: the part of `D2Net.extract` without the network."""
    photo = images.to_pixels(image, upright=settings.upright)
    if settings.stretch:
        photo = images.stretch_contrast(photo)
    elif images.has_low_contrast(photo):
        _advise_to_stretch()
    size = (photo.shape[1], photo.shape[0])
    allowed = None if mask is None else images.read_mask(mask, size, upright=settings.upright)
    limits = (settings.max_edge, settings.max_sum_edges)
    if settings.original:
        pixels = images.resize_like_release(photo, *limits)
    else:
        pixels = images.resize(photo, images.limited_size(size, *limits))
    return PreparedPhoto(np.require(pixels, requirements=["C", "W"]), size, allowed, settings)


@cache  # once, not for every photo
def _advise_to_stretch() -> None:
    _log.warning(
        "a photo uses less than a tenth of its range of grey values; a VGG finds few keypoints in "
        "it unless stretch=True (--stretch) extends the range"
    )


def _photo_from_reduced(photo: PreparedPhoto) -> GridMap:
    """Maps pixels that enter the network to pixels of the photo."""
    reduced = (photo.pixels.shape[1], photo.pixels.shape[0])
    resize = coordinates.resize_ratio if photo.settings.original else coordinates.resize
    return resize(reduced, photo.size)


def _allowed(keypoints: Keypoints, photo: PreparedPhoto) -> Keypoints:
    """The keypoints that reach the score threshold and that the mask allows."""
    keep = keypoints.scores >= photo.settings.score_threshold
    if photo.mask is not None:
        height, width = photo.mask.shape
        cols, rows = _photo_from_reduced(photo)(keypoints.positions).round().long().unbind(1)
        mask = torch.from_numpy(photo.mask).to(keep.device)
        keep &= mask[rows.clamp(0, height - 1), cols.clamp(0, width - 1)]
    return keypoints if bool(keep.all()) else keypoints[keep]
