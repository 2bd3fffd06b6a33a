"""ONNX Runtime gives what torch gives."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import d2net
from d2net import D2Net, Features, InputError, export_onnx
from d2net.matching.learned_matcher import as_batch
from d2net.networks.light import Light, LightSettings
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import load_matcher, save_weights
from d2net.onnx.export import MATCHER, MODEL, RUNNER

from ..release_outputs import released
from ..tiny import DATA, default_type, make_tiny_model

PHOTOS = ("graf_320x256", "graf_odd_313x237", "grey_251x199", "tall_96x301", "tiny_40x33")
WEIGHTS = ("ots", "light+seasons")
pytestmark = pytest.mark.timeout(1200)  # an export takes half a minute, on a busy machine minutes


@pytest.fixture(scope="module")
def model() -> D2Net:
    return D2Net.from_pretrained()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Exports each network once; gives its folder."""
    folders: dict[tuple[str, ...], Path] = {}

    def export(weights: str = "light+seasons", precision: Any = "float32") -> Path:
        if (weights, precision) not in folders:
            folder = tmp_path_factory.mktemp("onnx") / "model"
            model = D2Net.from_pretrained(weights)
            export_onnx(model, folder, max_keypoints=300, precision=precision)
            folders[weights, precision] = folder
        return folders[weights, precision]

    return export


def runner_of(folder: Path) -> Any:
    """The program in an exported folder."""
    spec = importlib.util.spec_from_file_location("shipped", folder / RUNNER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS)
def test_keypoints_on_the_golden_photos(exported: Any, weights: str) -> None:
    """None missing, none extra, same values: without a budget and with one."""
    model = D2Net.from_pretrained(weights)
    shipped = runner_of(exported(weights))
    extractor = shipped.Extractor()
    for photo in (released(f"{name}.png") for name in PHOTOS):
        for most in (None, 150):
            expected = model.extract(photo, max_keypoints=most)
            extractor.settings["max_keypoints"] = most
            found = extractor.extract(shipped.read_photo(photo))
            assert len(found.scores) == len(expected) > 0
            # Equal scores may come in another order, and the budget may cut between them.
            apart = np.abs(expected.keypoints.numpy()[:, None] - found.keypoints[None]).max(axis=2)
            near = apart.min(axis=1) < 1e-3
            assert near.mean() > (0.999 if most is None else 0.98)
            found_rows = apart.argmin(axis=1)[near]
            same = expected[torch.from_numpy(near)]
            np.testing.assert_allclose(found.scores[found_rows], same.scores.numpy(), rtol=1e-4)
            np.testing.assert_array_equal(found.uncertainty[found_rows], same.uncertainty.numpy())
            cosine = (found.descriptors[found_rows] * same.descriptors.numpy()).sum(axis=1)
            assert cosine.min() > 0.99999


@pytest.mark.slow
def test_half_precision_moves_few_keypoints(model: D2Net, exported: Any) -> None:
    folder = exported(precision="float16")
    shipped = runner_of(folder)
    extractor = shipped.Extractor()
    extractor.settings["max_keypoints"] = None
    photo = released("graf_320x256.png")
    found = extractor.extract(shipped.read_photo(photo))
    expected = model.extract(photo).keypoints.numpy()
    distances = np.abs(expected[:, None] - found.keypoints[None]).max(axis=2)
    assert (distances.min(axis=1) < 0.1).mean() > 0.95
    whole = (exported() / MODEL).stat().st_size
    assert (folder / MODEL).stat().st_size < 0.55 * whole


@pytest.mark.slow
def test_photos_of_any_size(model: D2Net, exported: Any) -> None:
    """A reduced one, one as small as can be, one too small, one without contrast."""
    shipped = runner_of(exported())
    extractor = shipped.Extractor()
    photo = shipped.read_photo(released("graf_320x256.png"))
    extractor.settings["max_edge"] = 200
    expected = model.extract(photo, max_edge=200, max_keypoints=300)
    found = extractor.extract(photo)
    apart = np.abs(expected.keypoints.numpy()[:, None] - found.keypoints[None]).max(axis=2)
    assert (apart.min(axis=1) < 1e-3).mean() > 0.98
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty.numpy(), rtol=1e-6)
    assert len(extractor.extract(photo[:7, :40]).scores) == 0
    for part in (
        photo[:9, :80],
        photo[:15, :90],
        photo[:8, :40],
        np.full((60, 70, 3), 9, np.uint8),
    ):
        assert len(extractor.extract(part).scores) == len(model.extract(part, max_keypoints=300))


@pytest.mark.slow
def test_the_graph_is_sound_and_says_what_it_is(exported: Any) -> None:
    file = exported() / MODEL
    onnx.checker.check_model(file, full_check=True)
    graph = onnx.load(file)
    (about,) = (json.loads(p.value) for p in graph.metadata_props if p.key == "d2net")
    assert about["d2net"] == d2net.__version__
    assert about["weights"]["name"] == "light+seasons"
    assert "CC BY 4.0" in about["licence"]
    assert about["extraction"]["max_keypoints"] == 300
    assert str(Path(d2net.__file__).parent).encode() not in file.read_bytes()


@pytest.mark.slow
def test_two_photos_are_matched_where_there_is_no_torch(exported: Any, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("numpy", "pillow", "onnxruntime"):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top not in (".", "..") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 2])
    python = [sys.executable, "-I", "-S", "-c"]
    place = f"import sys; sys.path.insert(0, {str(packages)!r}); "
    torchless = subprocess.run([*python, place + "import torch"], check=False, capture_output=True)
    assert b"No module named 'torch'" in torchless.stderr
    folder = exported()
    for name in ("graf1", "graf3"):
        Image.open(DATA / f"{name}.jpg").resize((400, 320)).save(tmp_path / f"{name}.jpg")
    run = subprocess.run(
        [
            *python,
            f"{place}import runpy; sys.argv = ['run', 'graf1.jpg', 'graf3.jpg']; "
            f"runpy.run_path({str(folder / RUNNER)!r}, run_name='__main__')",
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    words = run.stdout.split()
    assert words[:3] == ["300", "and", "300"]
    assert int(words[4]) > 60


@pytest.mark.parametrize(
    "setting",
    [
        {"original": True},
        {"multiscale": True},
        {"turns": 4},
        {"upright": False},
        {"precision": "bfloat16"},
    ],
)
def test_what_a_graph_cannot_be(setting: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has one scale"):
        export_onnx(make_tiny_model(), tmp_path / "model", **setting)
    assert not (tmp_path / "model").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(d2net.OutputError, match="exists already"):
        export_onnx(make_tiny_model(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_the_exporter_prints_nothing_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "d2net", "export", "onnx", str(tmp_path / "model"), "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.slow
def test_the_network_light_is_exported_with_ordinary_operators(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = D2Net(Light(LightSettings(channels=(8, 8, 8, 8, 8), neck=16, hidden=16, dimension=12)))
    export_onnx(model, tmp_path / "light", max_keypoints=None)
    shipped = runner_of(tmp_path / "light")
    photo = shipped.read_photo(released("graf_odd_313x237.png"))
    found, expected = shipped.Extractor().extract(photo), model.extract(photo, max_keypoints=None)
    nearest = np.abs(found.keypoints[:, None] - expected.keypoints.numpy()[None]).max(2)
    assert (nearest.min(1) < 1e-2).mean() > 0.97
    same = nearest.argmin(1)
    cosine = (found.descriptors * expected.descriptors.numpy()[same]).sum(1)
    assert np.median(cosine) > 0.9999
    assert {node.domain for node in onnx.load(tmp_path / "light" / MODEL).graph.node} == {""}
    # The mean over a large photo is as exact as over a small one.
    large = np.tile(photo, (5, 5, 1))
    found, expected = shipped.Extractor().extract(large), model.extract(large, max_keypoints=None)
    np.testing.assert_allclose(np.mean(found.scores), expected.scores.mean(), rtol=1e-5)


@pytest.mark.slow
def test_a_learned_matcher_matches_the_same(tmp_path: Path) -> None:
    """For any numbers of keypoints, with ordinary operators; not with another model."""
    torch.manual_seed(0)
    model = D2Net(Light(LightSettings(channels=(8, 8, 8, 8, 8), neck=16, hidden=16, dimension=12)))
    network = MatchingTransformer(MatcherSettings(12, width=32, heads=2, layers=2)).eval()
    network.calibration.copy_(torch.tensor([1.5, 2.0]))
    file = str(tmp_path / "matcher.safetensors")
    about = {"name": "m", "licence": "none", "training_data": "none"}
    save_weights(file, network, {**about, "descriptor_id": model.descriptor_id()})
    with default_type(torch.float64):  # a graph is in float32 nevertheless
        export_onnx(model, tmp_path / "model", matcher=file)
    graph = tmp_path / "model" / MATCHER
    assert {node.domain for node in onnx.load(graph).graph.node} == {""}
    session = onnxruntime.InferenceSession(str(graph))
    for counts in ((200, 150), (3, 70), (1, 5)):
        photos = []
        for count, size in zip(counts, ((640, 480), (300, 500)), strict=True):
            descriptors = torch.nn.functional.normalize(torch.randn(count, 12), dim=1)
            keypoints = torch.rand(count, 2) * torch.tensor(size) * 0.99
            ones = torch.ones(count)
            photos.append(Features(keypoints, ones, ones, descriptors, size, ones))
        arrays = {
            f"{name}_{which}": array.numpy()
            for which, photo in zip("ab", photos, strict=True)
            for name, array in (
                ("keypoints", photo.keypoints),
                ("descriptors", photo.descriptors),
                ("size", torch.tensor(photo.image_size, dtype=torch.float32)),
            )
        }
        rows, confidence = session.run(["matches", "confidence"], arrays)
        batches = (as_batch(photo) for photo in photos)
        learned, _ = load_matcher(file)
        expected, probability = learned(*batches)[-1].mutual_best()
        np.testing.assert_array_equal(rows, expected.numpy())
        calibrated = learned.calibrated(probability).numpy()
        np.testing.assert_allclose(confidence, calibrated, rtol=1e-3, atol=1e-6)
    with pytest.raises(InputError, match="matches descriptors"):
        export_onnx(make_tiny_model(), tmp_path / "other", matcher=file)
