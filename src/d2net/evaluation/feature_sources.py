"""Sources of the features that are evaluated: our weights, a baseline, or a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import InputError, needs_package
from d2net.extraction.d2net import D2Net
from d2net.features import Features
from d2net.geometry import coordinates
from d2net.io import images
from d2net.io.h5 import FeatureFile
from d2net.io.resume import are_unchanged, file_state
from d2net.networks.checkpoint import load_into
from d2net.networks.weights import file_names
from d2net.settings import ExtractionSettings, parse_settings


class FeatureSource(Protocol):
    """Gives the features of photos."""

    name: str
    provenance: dict[str, Any]
    """Everything that the features depend on besides the photo, as JSON."""

    def extract(self, photo: Path, name: str) -> Features:
        """Features of a photo; `name` is its path relative to the evaluated folder."""


def open_source(specification: str, device: str = "cpu") -> FeatureSource:
    """A source by its name; `device` is that of its network.

    The name is `rootsift`, `aliked` or `xfeat`; an HDF5 file in hloc's layout; or our weights by
    name or path. Settings follow a colon: `ots:original`, `default:turns=4,max_keypoints=2000`.
    """
    name, colon, tail = specification.partition(":")
    parts = tail.split(",") if colon else []
    if Path(specification).exists():
        name, parts = specification, []
    settings = parse_settings(parts)
    if Path(name).suffix in (".h5", ".hdf5"):
        _check_settings(name, settings)
        return FileSource(Path(name))
    if name == "rootsift":
        _check_settings(name, settings, "max_keypoints", "max_edge")
        return rootsift(specification, **settings)
    if name in ("aliked", "xfeat"):
        _check_settings(name, settings, "max_keypoints", "max_edge", "weights")
        return kornia_baseline(specification, device=device, **settings)
    return NetworkSource(specification, name, device, settings)


def _check_settings(name: str, settings: Mapping[str, Any], *known: str) -> None:
    for key in settings:
        if key not in known:
            has = f"its settings are {', '.join(known)}" if known else "it takes no settings"
            raise InputError(f"{name} has no setting {key!r}; {has}")
    if settings.get("max_keypoints", 0) is None:
        raise InputError(f"{name} needs a number for max_keypoints")
    ExtractionSettings.from_dict({k: v for k, v in settings.items() if k != "weights"})


class NetworkSource:
    """Our networks, with weights by name or path."""

    def __init__(self, name: str, weights: str, device: str, settings: Mapping[str, Any]) -> None:
        ExtractionSettings.from_dict(settings)  # checked before the weights are loaded
        # Tables show the names of files without their folders.
        parts = [Path(w).stem if w.endswith(".safetensors") else w for w in file_names(weights)]
        self.name = name.replace(weights, "+".join(parts))
        self._model = D2Net.from_pretrained(weights, device=device, **settings)
        self.provenance = self._model.provenance()

    def extract(self, photo: Path, name: str) -> Features:
        """Run the network."""
        return self._model.extract(photo).to("cpu")


class FileSource:
    """Features in hloc's layout, from any program."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self._file = FeatureFile(path)
        made_by = self._file.settings
        self.provenance = {"file": str(path), "state": file_state(path), "made by": made_by}

    def extract(self, photo: Path, name: str) -> Features:
        """Look the photo up by `name`, or by a longer end of its path."""
        parts = photo.absolute().parts
        ends = ("/".join(parts[start:]) for start in range(-len(parts), 0))
        longer = (end for end in ends if end.endswith(f"/{name}") and end in self._file)
        name = next(longer, name)
        found, inputs = self._file[name].to("cpu"), self._file.inputs(name)
        if inputs and not are_unchanged(inputs, photo):
            raise InputError(
                f"{photo} has changed since its features in {self._file.path} were made: extract "
                "it again"
            )
        return found


Detected = tuple[Tensor, Tensor, Tensor, Tensor]
"""Keypoints N x 2, scores N, descriptors N x D and scales N."""
Detect = Callable[[NDArray[np.uint8]], Detected]  # finds the features of a photo in RGB


class Baseline:
    """A method by other authors, on photos reduced to the size limit `max_edge`.

    The edges of the reduced photo are rounded down to a multiple of `multiple`. `settings` are
    everything that the features depend on, `max_edge` included.
    """

    def __init__(
        self, name: str, detect: Detect, *, multiple: int = 1, **settings: str | int | None
    ) -> None:
        self.name = name
        self.provenance = {"method": name, **settings}
        self._detect = detect
        self._multiple = multiple

    def extract(self, photo: Path, name: str) -> Features:
        """Reduce the photo and find its features."""
        pixels = images.to_pixels(photo)
        size = (pixels.shape[1], pixels.shape[0])
        width, height = (
            max(edge - edge % self._multiple, 1)
            for edge in images.limited_size(size, int(self.provenance["max_edge"] or 0), None)
        )
        reduced = np.rint(images.resize(pixels, (width, height))).astype(np.uint8)
        keypoints, scores, descriptors, scales = (x.float().cpu() for x in self._detect(reduced))
        return Features(
            keypoints=coordinates.resize((width, height), size)(keypoints),
            scores=scores,
            scales=scales,
            descriptors=torch.nn.functional.normalize(descriptors, dim=1),
            image_size=size,
            uncertainty=torch.full((len(keypoints),), size[0] / width),
        )


def rootsift(name: str, max_keypoints: int = 8000, max_edge: int = 1600) -> Baseline:
    """OpenCV's SIFT, with the RootSIFT descriptors of Arandjelovic and Zisserman (CVPR 2012)."""
    import cv2

    def detect(pixels: NDArray[np.uint8]) -> Detected:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        keypoints, descriptors = cv2.SIFT.create(max_keypoints).detectAndCompute(grey, None)
        sift = torch.zeros(0, 128) if descriptors is None else torch.from_numpy(descriptors)
        return (
            torch.tensor([k.pt for k in keypoints]).view(-1, 2),
            torch.tensor([k.response for k in keypoints]),
            (sift / sift.sum(dim=1, keepdim=True).clamp_min(1e-9)).sqrt(),
            torch.tensor([k.size for k in keypoints]),
        )

    version = f"OpenCV {cv2.__version__}"
    return Baseline(name, detect, version=version, max_keypoints=max_keypoints, max_edge=max_edge)


def kornia_baseline(
    name: str,
    *,
    device: str,
    max_keypoints: int = 4096,
    max_edge: int = 1600,
    weights: str | None = None,
) -> Baseline:
    """ALIKED-n16 (Zhao et al., 2023), or XFeat (Potje et al., CVPR 2024).

    `name` begins with that of the method. kornia downloads the weights unless `weights` is a file.
    """
    with needs_package(f"{name} needs kornia", "baselines"):
        import kornia
        import kornia.feature as kf
    is_xfeat, checksum = name.startswith("xfeat"), None
    network: Any
    if is_xfeat:
        network = kf.XFeat() if weights else kf.XFeat.from_pretrained()
        if weights:
            checksum = load_into(network.net, Path(weights))
    elif weights:
        network = kf.ALIKED(
            model_name="aliked-n16", max_num_keypoints=max_keypoints, detection_threshold=0.0
        )
        checksum = load_into(network, Path(weights))
    else:
        network = kf.ALIKED.from_pretrained("aliked-n16", max_num_keypoints=max_keypoints)
    network = network.to(device).eval()

    @torch.no_grad()
    def detect(pixels: NDArray[np.uint8]) -> Detected:
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().to(device) / 255
        if is_xfeat:
            found = network.detectAndCompute(image, top_k=max_keypoints)[0]
            parts = found["keypoints"], found["scores"], found["descriptors"]
        else:
            found = network(image)[0]
            parts = found.keypoints, found.keypoint_scores, found.descriptors
        return *parts, torch.ones(len(parts[0]))

    return Baseline(
        name.replace(weights, Path(weights).name) if weights else name,
        detect,
        multiple=32 if is_xfeat else 1,  # XFeat would resize the photo and ignore the half pixel
        version=f"kornia {kornia.__version__}",
        max_keypoints=max_keypoints,
        max_edge=max_edge,
        weights=checksum,
    )
