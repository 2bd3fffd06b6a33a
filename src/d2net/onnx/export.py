"""A model as an ONNX graph, from the pixels of a photo to its keypoints; a matcher as another."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from d2net.errors import InputError, needs_package
from d2net.extraction.d2net import D2Net
from d2net.io.atomic import new_folder
from d2net.matching.learned_matcher import load_learned
from d2net.networks.base import View
from d2net.networks.catalogue import CATALOGUE
from d2net.networks.matcher import KeypointBatch, MatchingTransformer
from d2net.settings import DescriptorType, ExtractionOptions, ExtractionSettings

MODEL = "d2net.onnx"
MATCHER = "matcher.onnx"
RUNNER = "d2net_onnx.py"

_OUTPUTS = ("keypoints", "scores", "uncertainty", "descriptors")


def export_onnx(
    model: D2Net,
    output: str | os.PathLike[str],
    matcher: str | None = None,
    **settings: Unpack[ExtractionOptions],
) -> None:
    """Write a model as a folder that needs neither torch nor d2net.

    It holds the graph, `d2net.onnx`, which takes a photo of any size from 8 x 8 pixels, and
    `d2net_onnx.py`, which reads photos, runs the graph, chooses the keypoints and matches them with
    numpy. Settings, weights and licence are in the graph's metadata.

    Args:
        model: the network and its settings.
        output: the folder to make.
        matcher: a learned matcher of the model's descriptors, whose graph is written as well.
        **settings: changes to the model's settings, such as `max_keypoints=2000`. `precision`
            may be float32 or float16.

    Raises:
        InputError: a setting that a graph of one scale cannot have.
        MissingPackageError: the packages that write graphs are not installed.
        OutputError: the folder holds something already, or cannot be written.
    """
    chosen = model.resolve(**settings)
    is_other = chosen.original or chosen.multiscale or chosen.stretch or chosen.turns > 1
    if is_other or not chosen.upright or chosen.precision == "bfloat16":
        raise InputError(
            "an ONNX graph has one scale, one turn, upright photos, the corrected grid, float32 "
            "or float16: leave out original, multiscale, turns, stretch, upright=False and bfloat16"
        )
    records = [CATALOGUE.get(name) for name in model.weights["name"].split("+")]
    licences = dict.fromkeys(record.licence if record else "unknown" for record in records)
    about = {**model.provenance(chosen), "licence": "; ".join(licences)}
    learned = None
    if matcher is not None:
        learned = load_learned(matcher).network(model.descriptor_id(chosen)).cpu()
    image = {"image": (torch.zeros(96, 128, 3, dtype=torch.uint8), ("height", "width"))}
    with new_folder(Path(output)) as folder:
        program = _program(_Graph(model, chosen), image, _OUTPUTS)
        program.model.metadata_props["d2net"] = json.dumps(about)
        program.save(folder / MODEL)
        if learned is not None:
            inputs: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
            for name, count in (("a", 30), ("b", 20)):
                descriptors = torch.rand(count, learned.settings.descriptor_length)
                inputs |= {
                    f"keypoints_{name}": (torch.rand(count, 2).float(), (f"count_{name}",)),
                    f"descriptors_{name}": (descriptors.float(), (f"count_{name}",)),
                    f"size_{name}": (torch.ones(2).float(), ()),
                }
            program = _program(_MatcherGraph(learned), inputs, ("matches", "confidence"))
            program.save(folder / MATCHER)
        shutil.copyfile(Path(__file__).with_name("runner.py"), folder / RUNNER)


def _program(
    graph: nn.Module, inputs: Mapping[str, tuple[Tensor, tuple[str, ...]]], outputs: tuple[str, ...]
) -> torch.onnx.ONNXProgram:
    """The ONNX graph; each input has an example and the names of its first sizes, which vary."""
    with needs_package("writing an ONNX graph needs more packages", "onnx"):
        import onnxscript  # noqa: F401 (the exporter needs it)
    # The exporter's remarks are about torch itself.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            tuple(example for example, _ in inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            opset_version=18,
            dynamo=True,
            dynamic_shapes={
                name: {i: torch.export.Dim(size) for i, size in enumerate(sizes)}
                for name, (_, sizes) in inputs.items()
            },
            verbose=False,
        )
    assert program is not None  # noqa: S101 (for the type checker)
    for node in program.model.graph:  # where in which file each came from
        node.metadata_props.clear()
        node.doc_string = None
    return program


class _Graph(nn.Module):
    """A model at one scale, for photos of at least 8 x 8 pixels at their own size."""

    def __init__(self, model: D2Net, settings: ExtractionSettings) -> None:
        super().__init__()
        self.dtype = getattr(torch, settings.precision)
        self.network = copy.deepcopy(model.network).to("cpu")
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self.dtype)
        self.detector = self.network.detector(original=False)
        assert settings.descriptor is not None  # noqa: S101 (resolved)
        self.descriptor: DescriptorType = settings.descriptor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All keypoints of a photo.

        Args:
            image: H x W x 3, RGB, uint8.

        Returns:
            The outputs: N x 2 positions (x, y) in pixels, the centre of the top-left pixel being
            (0, 0); N scores; N standard deviations of the position in pixels; and N x D descriptors
            of unit length. All are float32.
        """
        pixels = image.float()
        maps = tuple(part[0] for part in self.network.compute_maps(pixels[None], self.dtype))
        # On a constant image the network responds only to its own zero padding.
        varied = (image != image[:1, :1]).any()
        size = torch.tensor([image.shape[1], image.shape[0]])
        found = self.detector.detect(View(pixels, maps, 1, 1.0, self.dtype))
        border = self.detector.border
        inside = (found.anchors >= border) & (found.anchors < size - border)
        found = found[found.located & inside.all(dim=1) & varied]
        uncertainty = self.detector.uncertainty(torch.ones_like(found.scores))
        descriptors = self.network.describe(maps, found.positions, self.descriptor)
        return found.positions, found.scores, uncertainty, descriptors


class _MatcherGraph(nn.Module):
    """A learned matcher of two photos with at least one keypoint each."""

    def __init__(self, network: MatchingTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        keypoints_a: Tensor,
        descriptors_a: Tensor,
        size_a: Tensor,
        keypoints_b: Tensor,
        descriptors_b: Tensor,
        size_b: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """K x 2 rows of both photos, and K probabilities that they match."""
        a = KeypointBatch(descriptors_a[None], keypoints_a[None], size_a[None])
        b = KeypointBatch(descriptors_b[None], keypoints_b[None], size_b[None])
        pairs, probability = self.network(a, b)[-1].mutual_best()
        return pairs, self.network.calibrated(probability)
