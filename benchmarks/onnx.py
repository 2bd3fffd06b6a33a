"""The exported graph in ONNX Runtime beside torch: time in turn, and memory of a process each."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from benchmarks import memory
from benchmarks.table import Row
from benchmarks.timing import medians_in_turn
from d2net import D2Net, export_onnx
from d2net.onnx import runner
from d2net.onnx.export import MODEL, RUNNER

WEIGHTS = ("light+seasons", "light")
SIZE = (1600, 1200)

SCRIPT = """
import sys
import numpy as np
from PIL import Image
sys.path.insert(0, sys.argv[1])
from d2net_onnx import Extractor
photo = np.asarray(Image.open(sys.argv[2]).resize((int(sys.argv[3]), int(sys.argv[4]))))
features = Extractor().extract(photo)
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(len(features.scores), 1024 * peak)
"""


def rows() -> list[Row]:
    """Time at 800 x 640, and memory where it can be read: on Linux."""
    found = []
    with tempfile.TemporaryDirectory() as place:
        for weights in WEIGHTS:
            model = D2Net.from_pretrained(weights, max_edge=None, max_sum_edges=None)
            folder = Path(place) / weights
            export_onnx(model, folder)
            found.append(_time(model, folder, weights))
            if sys.platform == "linux":
                found.append(_memory(folder, weights))
    return found


def _time(model: D2Net, folder: Path, weights: str) -> Row:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    extractor = runner.Extractor(folder / MODEL, options)
    photo = runner.read_photo(str(memory.PHOTO))
    seconds = medians_in_turn(
        {
            "torch": partial(model.extract, photo),
            "onnx": partial(extractor.extract, photo),
        },
        rounds=5,
    )
    return Row(
        f"ONNX Runtime, extraction at 800 x 640, float32, {weights}: time relative to torch",
        f"{seconds['onnx'] / seconds['torch']:.2f}",
        "-",
        True,
        f"{seconds['onnx']:.2f} s and {seconds['torch']:.2f} s",
    )


def _memory(folder: Path, weights: str) -> Row:
    size = [str(side) for side in SIZE]
    command = [sys.executable, "-c", SCRIPT, str((folder / RUNNER).parent), str(memory.PHOTO)]
    run = subprocess.run([*command, *size], capture_output=True, text=True, check=True)
    count, peak = map(int, run.stdout.split())
    expected, in_torch = memory.peak(*SIZE, weights)
    return Row(
        f"ONNX Runtime, peak memory of the process, {SIZE[0]} x {SIZE[1]}, {weights}: "
        "relative to torch",
        f"{peak / in_torch:.2f}",
        "-",
        True,
        f"{peak / 1e9:.2f} GB and {in_torch / 1e9:.2f} GB; {count:,} and {expected:,} keypoints",
    )
