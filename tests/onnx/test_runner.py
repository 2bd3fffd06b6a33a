"""What the shipped program does with numpy is what the package does."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from d2net import Features, mutual_nearest
from d2net.io import images
from d2net.onnx import runner

from ..tiny import DATA


def test_size_limits_are_those_of_the_package() -> None:
    for size in ((1600, 1200), (1601, 3), (4000, 3000), (1, 9000), (7, 9000)):
        for limits in ((1600, 2800), (None, 2800), (1600, None), (None, None)):
            assert runner.limited_size(size, *limits) == images.limited_size(size, *limits)


def test_matches_are_those_of_the_package() -> None:
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (60, 50))
    none = np.empty(0)
    found = runner.match(*(runner.Features(none, x[:, 0].numpy(), none, x.numpy()) for x in (a, b)))
    np.testing.assert_array_equal(found, mutual_nearest(a, b).indices.numpy())
    empty = runner.Features(none, none, none, np.empty((0, 8)))
    assert runner.match(empty, empty).shape == (0, 2)


def test_it_needs_no_more_than_it_says() -> None:
    """It is copied to where neither torch nor d2net is."""
    tree = ast.parse(Path(runner.__file__).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert outside == {"numpy", "onnxruntime", "PIL"}


@pytest.mark.parametrize("name", ["missing.jpg", "list.txt", "cut.jpg", "long.png"])
def test_what_is_no_photo_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "list.txt").write_text("a.jpg b.jpg")
    (tmp_path / "cut.jpg").write_bytes((DATA / "graf1.jpg").read_bytes()[:9000])
    text = PngInfo()
    text.add_text("long", "x" * 2_000_000, zip=True)  # pillow reads at most a megabyte
    Image.new("RGB", (8, 8)).save(tmp_path / "long.png", pnginfo=text)
    monkeypatch.setattr(sys, "argv", ["d2net_onnx.py", str(tmp_path / name), "b.jpg"])
    with pytest.raises(SystemExit, match=f"^the photo .*{name} cannot be read"):
        runner.main()


def test_features_can_be_given_to_the_package() -> None:
    """The same names and layouts."""
    assert set(runner.Features._fields) <= set(Features.__dataclass_fields__)
