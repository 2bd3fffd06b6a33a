"""Where the features that are evaluated come from: our weights, a baseline, or another program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.features import Features
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Size
from d2net.io import images
from d2net.io.h5 import FeatureFile
from d2net.io.images import Pixels
from d2net.settings import ExtractionSettings


class FeatureSource(Protocol):
    """Gives the features of photos, and says how it makes them."""

    name: str

    def provenance(self) -> dict[str, Any]:
        """How features are made, as JSON: what a cached result may be used for."""

    def extract(self, photo: Path, name: str) -> Features:
        """Features of a photo; `name` is its path relative to the evaluated folder."""


def open_source(specification: str, device: str = "cpu") -> FeatureSource:
    """A source from its name.

    Args:
        specification: `rootsift`; `aliked`, `disk` or `xfeat` (package kornia); an HDF5 file in
            hloc's layout; or our weights by name or path. After a colon, settings: `ots:original`,
            `default:multiscale,max_keypoints=2000`, `aliked:weights=FILE`.
        device: for networks.

    Raises:
        InputError: unknown name or setting.
        MissingPackageError: the baseline needs a package that is not installed.
    """
    name, settings = _parsed(specification)
    if Path(name).suffix in (".h5", ".hdf5"):
        if settings:
            raise InputError(f"{specification!r}: a features file takes no settings")
        return FileSource(Path(name))
    if name == "rootsift":
        _check_settings(name, settings, ("max_keypoints", "max_edge"))
        return RootSift(specification, **settings)
    if name in KORNIA:
        _check_settings(name, settings, ("max_keypoints", "max_edge", "weights"))
        return KorniaSource(_label(specification, settings), name, device=device, **settings)
    return NetworkSource(specification, name, device, settings)


def _parsed(specification: str) -> tuple[str, dict[str, Any]]:
    """`name:flag,key=value` to the name and its settings."""
    head, colon, tail = specification.partition(":")
    if not colon or Path(specification).exists():
        return specification, {}
    settings: dict[str, Any] = {}
    for part in tail.split(","):
        key, equals, text = part.partition("=")
        settings[key.strip()] = _value(text) if equals else True
    return head, settings


def _label(specification: str, settings: Mapping[str, Any]) -> str:
    """The specification without the folders of its weights file."""
    weights = settings.get("weights")
    return specification.replace(weights, Path(weights).name) if weights else specification


def _check_settings(name: str, settings: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in settings:
        if key not in known:
            raise InputError(f"{name} knows no setting {key!r}; known are {', '.join(known)}")


def _value(text: str) -> Any:  # noqa: ANN401 (whatever the text says)
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class NetworkSource:
    """D2-Net with weights by name or path."""

    def __init__(self, name: str, weights: str, device: str, settings: Mapping[str, Any]) -> None:
        ExtractionSettings.from_dict(settings)  # wrong ones are told before weights are loaded
        self.name = name
        self._model = D2Net.from_pretrained(weights, device=device, **settings)

    def provenance(self) -> dict[str, Any]:
        """Package version, weights and settings."""
        return self._model.provenance()

    def extract(self, photo: Path, name: str) -> Features:
        """Run the network."""
        return self._model.extract(photo).to("cpu")


class FileSource:
    """Features that any program has written in hloc's layout."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = path
        self._file = FeatureFile(path)

    def provenance(self) -> dict[str, Any]:
        """The file and what it says of itself."""
        return {"file": str(self._file.path), "made by": self._file.settings}

    def extract(self, photo: Path, name: str) -> Features:
        """Look the photo up by its relative name, or by its file name alone."""
        features = self._file[name if name in self._file else photo.name]
        return features.to("cpu")


class RootSift:
    """OpenCV's SIFT with Arandjelovic and Zisserman's square root (CVPR 2012)."""

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

        pixels, size = _reduced(photo, self._max_edge)
        limited = (pixels.shape[1], pixels.shape[0])
        grey = cv2.cvtColor(np.rint(pixels).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        sift = cv2.SIFT.create(self._max_keypoints)
        found, descriptors = sift.detectAndCompute(grey, None)
        if descriptors is None:
            descriptors = np.empty((0, 128), np.float32)
        points = torch.tensor([k.pt for k in found], dtype=torch.float32).view(-1, 2)
        root = torch.from_numpy(descriptors)
        root = (root / root.sum(dim=1, keepdim=True).clamp_min(1e-9)).sqrt()
        magnification = size[0] / limited[0]
        sizes = torch.tensor([k.size for k in found], dtype=torch.float32)
        return Features(
            keypoints=coordinates.resize(limited, size)(points),
            scores=torch.tensor([k.response for k in found], dtype=torch.float32),
            scales=sizes,
            descriptors=torch.nn.functional.normalize(root, dim=1),
            image_size=size,
            uncertainty=torch.full((len(found),), magnification),
        )


def _reduced(photo: Path, max_edge: int | None) -> tuple[Pixels, Size]:
    """The photo within its longest edge, and its own size."""
    pixels = images.to_pixels(photo)
    size = (pixels.shape[1], pixels.shape[0])
    return images.resize(pixels, images.limited_size(size, max_edge, None)), size


KORNIA = ("aliked", "disk", "xfeat")


class KorniaSource:
    """A learned baseline from kornia (extra `baselines`); its weights are kornia's or a file."""

    def __init__(
        self,
        name: str,
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
                f"{method} comes through kornia: pip install 'd2net[baselines]'"
            ) from error
        self.name = name
        self._method = method
        self._settings = {
            "max_keypoints": max_keypoints,
            "max_edge": max_edge,
            "weights": weights or "kornia's",
        }
        self._max_edge = max_edge
        self._device = device
        self._network = _kornia_network(kf, method, max_keypoints, weights).to(device).eval()
        self._max_keypoints = max_keypoints

    def provenance(self) -> dict[str, Any]:
        """Kornia's version and the settings."""
        import kornia

        return {self._method: f"kornia {kornia.__version__}", **self._settings}

    def extract(self, photo: Path, name: str) -> Features:
        """Run the network on the photo in colour, reduced to the longest edge."""
        pixels, size = _reduced(photo, self._max_edge)
        limited = (pixels.shape[1], pixels.shape[0])
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        image = (tensor[None].float() / 255).to(self._device)
        with torch.no_grad():
            points, scores, descriptors = self._run(image)
        n = len(points)
        return Features(
            keypoints=coordinates.resize(limited, size)(points.float().cpu()),
            scores=scores.float().cpu(),
            scales=torch.ones(n),
            descriptors=torch.nn.functional.normalize(descriptors.float(), dim=1).cpu(),
            image_size=size,
            uncertainty=torch.full((n,), size[0] / limited[0]),
        )

    def _run(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._method == "xfeat":
            found = self._network.detectAndCompute(image, top_k=self._max_keypoints)[0]
            return found["keypoints"], found["scores"], found["descriptors"]
        if self._method == "disk":
            disk = self._network(image, n=self._max_keypoints, pad_if_not_divisible=True)[0]
            return disk.keypoints, disk.detection_scores, disk.descriptors
        aliked = self._network(image)[0]
        return aliked.keypoints, aliked.keypoint_scores, aliked.descriptors


def _kornia_network(kf: Any, method: str, n: int, weights: str | None) -> Any:  # noqa: ANN401
    if method == "aliked":
        if weights is None:
            return kf.ALIKED.from_pretrained("aliked-n16", max_num_keypoints=n)
        network = kf.ALIKED(model_name="aliked-n16", max_num_keypoints=n, detection_threshold=0.0)
        network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
        return network
    if weights is not None:
        raise InputError(f"weights=FILE is for aliked, not for {method}")
    return kf.DISK.from_pretrained("depth") if method == "disk" else kf.XFeat()
