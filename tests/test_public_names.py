"""What users may import: changing it is a decision, so it is written down here."""

from __future__ import annotations

import subprocess
import sys

import pytest

import d2net

PUBLIC = [
    *("D2Net", "D2NetError", "ExtractionSettings", "FeatureFile", "FeatureWriter", "Features"),
    *("FormatError", "ImageError", "InputError", "MatchFile", "MatchWriter", "Matches"),
    *("MissingPackageError", "OutputBusyError", "OutputError", "TrainingError", "WeightsError"),
    "__version__",
    "export_onnx",
    *("extract_folder", "find_images", "match", "match_pairs", "mutual_nearest"),
    *("Map", "MappingError", "MappingSettings", "PairChoice", "reconstruct", "refine"),
    *("plot_keypoints", "plot_matches", "read_image", "verify"),
]


def test_inventory() -> None:
    assert sorted(d2net.__all__) == sorted(PUBLIC)
    assert {*dir(d2net), "__version__"} == {*PUBLIC}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(d2net, name)
    if name != "__version__":
        assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Superpoint"):
        _ = d2net.Superpoint


def test_pictures_are_written_in_a_program_that_starts_with_maps() -> None:
    program = """
import io, d2net
d2net.reconstruct
from PIL import Image
Image.effect_noise((600, 600), 50).save(io.BytesIO(), "PNG")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
