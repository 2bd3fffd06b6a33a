"""Writing the graph, with the program that runs it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.io.atomic import new_folder
from d2net.networks.catalogue import CATALOGUE
from d2net.onnx.graph import INPUT, OUTPUTS, Graph
from d2net.settings import ExtractionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

MODEL = "d2net.onnx"
RUNNER = "d2net_onnx.py"

_OPSET = 18
_TRACED_SIZE = (96, 128)


def export_onnx(
    model: D2Net,
    output: str | os.PathLike[str],
    **settings: Unpack[ExtractionOptions],
) -> None:
    """Write a model as a folder that needs neither torch nor d2net.

    It holds the graph, `d2net.onnx`, which takes a photo of any size from 16 x 16 pixels, and
    `d2net_onnx.py`, which reads photos, runs the graph, chooses the keypoints and matches them with
    numpy. Settings, weights and licence are in the graph's metadata.

    Args:
        model: the network and its settings.
        output: the folder to make.
        **settings: changes to the model's settings, as `detector="both"`. `precision` may be
            float32 or float16.

    Raises:
        InputError: a setting that a graph of one scale cannot have.
        MissingPackageError: the packages that write graphs are not installed.
        OutputError: the folder holds something already, or cannot be written.
    """
    chosen = model.resolve(**settings)
    if (
        chosen.original
        or chosen.multiscale
        or chosen.turns > 1
        or chosen.stretch
        or chosen.precision == "bfloat16"
    ):
        raise InputError(
            "an ONNX graph works at one scale, in one turn, with the corrected grid, in float32 or "
            "float16: leave out original, multiscale, turns, stretch and bfloat16"
        )
    record = CATALOGUE.get(model.weights["name"])
    about = {**model.provenance(chosen), "licence": record.licence if record else "unknown"}
    with new_folder(Path(output)) as folder:
        program = _program(Graph(model, chosen).eval())
        program.model.metadata_props["d2net"] = json.dumps(about)
        program.save(folder / MODEL)
        shutil.copyfile(Path(__file__).with_name("runner.py"), folder / RUNNER)


def _program(graph: Graph) -> torch.onnx.ONNXProgram:
    """The graph for photos of any size."""
    try:
        import onnxscript
    except ImportError as error:
        raise MissingPackageError(
            "writing an ONNX graph needs more packages: pip install 'd2net[onnx]'"
        ) from error
    operators = onnxscript.opset18

    def hypot(x: Any, y: Any) -> Any:  # noqa: ANN401 (ONNX has no such operator)
        return operators.Sqrt(operators.Add(operators.Mul(x, x), operators.Mul(y, y)))

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            graph,
            (torch.zeros(*_TRACED_SIZE, 3, dtype=torch.uint8),),
            input_names=[INPUT],
            output_names=OUTPUTS,
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes={INPUT: {0: torch.export.Dim("height"), 1: torch.export.Dim("width")}},
            custom_translation_table={torch.ops.aten.hypot.default: hypot},
            verbose=False,
        )
    assert program is not None  # noqa: S101 (for the type checker)
    for node in program.model.graph:  # where in which file each came from
        node.metadata_props.clear()
        node.doc_string = None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about torch itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
