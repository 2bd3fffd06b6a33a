"""D2-Net in hloc: with a stand-in of its contract, and with hloc itself if it is there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

import d2net
from d2net.errors import InputError
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import save_weights

from . import hloc_stand_in
from .io.samples import make_features
from .tiny import DATA, default_type

HAS_HLOC = importlib.util.find_spec("hloc") is not None
ROOT = Path(__file__).parent.parent

needs_hloc = pytest.mark.skipif(
    not HAS_HLOC,
    reason="wants hloc: pip install git+https://github.com/cvg/Hierarchical-Localization",
)
pytestmark = pytest.mark.filterwarnings("ignore")  # hloc's loader has its own


def forget() -> dict[str, ModuleType]:
    """Take hloc and our part for it out of the loaded modules."""
    names = [n for n in sys.modules if n.partition(".")[0] == "hloc" or n == "d2net.hloc"]
    return {name: sys.modules.pop(name) for name in names}


@pytest.fixture(params=["stand-in", pytest.param("real", marks=needs_hloc)])
def hloc(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    before = forget()
    if request.param == "stand-in":
        hloc_stand_in.write(tmp_path / "stand-in")
        monkeypatch.syspath_prepend(tmp_path / "stand-in")
    yield SimpleNamespace(
        plugin=importlib.import_module("d2net.hloc"),
        extractors=importlib.import_module("hloc.extractors"),
        base_model=importlib.import_module("hloc.utils.base_model"),
        extract_features=importlib.import_module("hloc.extract_features"),
    )
    forget()
    sys.modules.update(before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(DATA / "graf1.jpg") as photo:
        colour = photo.convert("RGB")
    colour.crop((100, 150, 313, 307)).save(folder / "odd.png")
    colour.crop((0, 200, 700, 300)).resize((1600, 200)).save(folder / "wide.png")
    Image.new("RGB", (120, 90), "grey").save(folder / "flat.png")
    return folder


@pytest.mark.parametrize("settings", [{}, {"multiscale": True}, {"original": True}], ids=str)
def test_hloc_extracts_what_d2net_extracts(
    hloc: SimpleNamespace, photos: Path, tmp_path: Path, settings: dict[str, bool]
) -> None:
    """Half precision is hloc's default, and beyond 1024 px it would cost keypoints half a pixel."""
    conf = hloc.plugin.conf(resize_max=400, max_keypoints=100, **settings)
    path = hloc.extract_features.main(conf, photos, tmp_path)
    model = d2net.D2Net.from_pretrained(max_edge=400, max_keypoints=100, **settings)
    with d2net.FeatureFile(path) as file:
        assert tuple(file) == ("flat.png", "odd.png", "wide.png")
        assert len(file["flat.png"]) == 0 or settings.get("original")
        for name in ("odd.png", "wide.png"):
            found, own = file[name], model.extract(photos / name)
            assert found.image_size == own.image_size
            if settings.get("original"):  # hloc knows half pixels, the release does not
                ratio = max(max(own.image_size) / 400, 1)
                own = replace(own, keypoints=own.keypoints + (ratio - 1) / 2)
            assert len(found) == len(own) > 50
            assert torch.allclose(found.keypoints, own.keypoints, atol=2e-3)
            assert torch.allclose(found.descriptors.float(), own.descriptors, atol=1e-3)
            assert torch.allclose(found.scores, own.scores, rtol=1e-3)
            typical = own.uncertainty.numpy()
            assert found.uncertainty[0].item() == pytest.approx(np.median(typical), rel=1e-2)
        assert file["wide.png"].keypoints[:, 0].max() > 1100


def test_the_contract(hloc: SimpleNamespace) -> None:
    model_type = hloc.base_model.dynamic_load(hloc.extractors, "d2net_package")
    model = model_type({"name": "d2net_package", "max_keypoints": 30}).eval()
    image = torch.rand(1, 3, 90, 140, generator=torch.Generator().manual_seed(0)) * 1.1
    found = model({"image": image})
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "keypoints": (1, 30, 2),
        "scores": (1, 30),
        "descriptors": (1, 576, 30),
    }
    assert torch.allclose(found["descriptors"].norm(dim=1), torch.ones(1, 30), atol=1e-5)
    with pytest.raises(AssertionError):
        model({})


def test_the_learned_matcher_in_hloc(hloc: SimpleNamespace, tmp_path: Path) -> None:
    """As hloc calls it: descriptors are D x N, and there is no scale."""
    network = MatchingTransformer(MatcherSettings(8, width=32, heads=2, layers=1))
    save_weights(tmp_path / "m.safetensors", network, {"name": "m", "descriptor_id": "x"})
    conf = hloc.plugin.matcher_conf(tmp_path / "m.safetensors")
    assert conf["output"].startswith("matches-d2net-m")
    matchers = importlib.import_module("hloc.matchers")
    model = hloc.base_model.dynamic_load(matchers, conf["model"]["name"])(conf["model"]).eval()
    ones = torch.ones(40)
    first = replace(make_features(40), scales=ones, uncertainty=ones, descriptor_id=None)
    photos = [first, first[torch.arange(5, 35)]]
    data = {}
    for i, photo in enumerate(photos):
        width, height = photo.image_size
        data |= {f"image{i}": torch.empty(1, 1, height, width), f"scores{i}": photo.scores[None]}
        data |= {f"keypoints{i}": photo.keypoints[None]}
        data |= {f"descriptors{i}": photo.descriptors.T[None]}
    with default_type(torch.float64):
        found = model(data)
    own = d2net.match(*photos, matcher=conf["model"]["weights"])
    rows = found["matches0"][0]
    assert len(rows) == len(found["matching_scores0"][0]) == 40
    matched = torch.nonzero(rows >= 0)[:, 0]
    pairs = torch.stack([matched, rows[matched]], dim=1)
    assert len(pairs) > 0
    assert {tuple(p) for p in pairs.tolist()} == {tuple(p) for p in own.indices.tolist()}


def test_hlocs_own_d2net_stays(hloc: SimpleNamespace) -> None:
    assert hloc.plugin.NAME != "d2net"
    assert "hloc.extractors.d2net" not in sys.modules


def test_other_choices_are_kept_in_another_file(hloc: SimpleNamespace) -> None:
    """hloc skips photos that its output holds, however they were made."""
    conf = hloc.plugin.conf
    choices = [
        conf(),
        conf(resize_max=800),
        conf(max_keypoints=800),
        conf(original=True),
        conf(weights="folder/mine.safetensors"),
    ]
    outputs = [choice["output"] for choice in choices]
    assert len(set(outputs)) == len(outputs)
    assert not any("/" in output for output in outputs)


def test_weights_files_of_one_name_are_kept_apart(hloc: SimpleNamespace, tmp_path: Path) -> None:
    files = []
    for run in ("run1", "run2", "copy of run2"):
        files.append(tmp_path / run / "weights.safetensors")
        files[-1].parent.mkdir()
        files[-1].write_bytes(b"weights of " + run[-4:].encode())
    for choose in (lambda weights: hloc.plugin.conf(weights=weights), hloc.plugin.matcher_conf):
        first, second, same = (choose(file) for file in files)
        assert len({first["output"], second["output"]}) == 2
        assert second["output"] == same["output"]
        assert choose(str(files[0])) == first
        assert "/" not in first["output"]
        joined = [choose(f"light+{file}")["output"] for file in files[:2]]
        assert joined[0] != joined[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"points": 7}, "unknown setting 'points'"),
        ({"max_keypoints": 0}, "max_keypoints must be"),
        ({"max_edge": 800}, "max_edge is not a setting.*resize_max"),
        ({"upright": True}, "upright is not a setting.*as stored"),
    ],
)
def test_settings_that_the_extractor_cannot_take(
    hloc: SimpleNamespace, setting: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        hloc.plugin.conf(**setting)
    with pytest.raises(InputError, match=message):
        hloc.plugin.Extractor(setting)


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    paths = ", ".join(repr(str(folder)) for folder in (*path, *sys.path))
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{paths}]; {code}"],
        check=False,
        capture_output=True,
        text=True,
    )


def test_without_hloc_one_sentence_says_what_to_do() -> None:
    run = run_python("sys.modules['hloc'] = None; import d2net.hloc")
    assert re.search(r"^d2net\S*MissingPackageError: .*pip install git\+https", run.stderr, re.M)


def test_photos_can_be_written_afterwards(tmp_path: Path) -> None:
    """hloc imports pycolmap, which breaks zlib if numpy comes after it."""
    hloc_stand_in.write(tmp_path)
    write = "from PIL import Image; Image.new('RGB', (300, 300)).save(sys.argv[0] + '.png')"
    code = f"import d2net.hloc; sys.argv = [{str(tmp_path / 'photo')!r}]; {write}"
    run = run_python(code, tmp_path)
    assert run.returncode == 0, run.stderr


# With hloc itself


@pytest.fixture
def world(tmp_path: Path) -> tuple[pycolmap.Reconstruction, dict[str, np.ndarray], list]:
    """A synthetic model, saved; keypoints of its photos and true matches."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_cameras_per_rig = 4, 1, 1
    options.num_points3D, options.num_points2D_without_point3D = 120, 20
    pycolmap.set_random_seed(0)
    model = pycolmap.synthesize_dataset(options)
    model.write(tmp_path)
    keypoints, points = {}, {}
    for image in model.images.values():
        keypoints[image.name] = np.array([p.xy - 0.5 for p in image.points2D], np.float32)
        points[image.name] = [p.point3D_id if p.has_point3D() else 0 for p in image.points2D]
    matches = []
    for a, b in combinations(sorted(keypoints), 2):
        rows = {point: row for row, point in enumerate(points[b]) if point}
        shared = [(row, rows[p]) for row, p in enumerate(points[a]) if p in rows]
        matches.append((a, b, torch.tensor(shared)))
    return model, keypoints, matches


@needs_hloc
def test_hloc_triangulates_our_files(world, tmp_path: Path) -> None:
    """Points are where they are: no half pixel is lost or added twice on the way."""
    triangulation = importlib.import_module("hloc.triangulation")
    truth, keypoints, matches = world
    with d2net.FeatureWriter(tmp_path / "features.h5", {}) as writer:
        for name, positions in keypoints.items():
            n = len(positions)
            ones = torch.ones(n)
            features = d2net.Features(
                torch.from_numpy(positions), ones, ones, torch.ones(n, 4) / 2, (1024, 768), ones
            )
            writer.add(name, features)
    with d2net.MatchWriter(tmp_path / "matches.h5", {}) as writer:
        for a, b, rows in matches:
            writer.add(a, b, d2net.Matches(rows, torch.ones(len(rows))), len(keypoints[a]))
    pairs = "".join(f"{a} {b}\n" for a, b, _ in matches)
    (tmp_path / "pairs.txt").write_text(pairs)
    found = triangulation.main(
        tmp_path / "sfm",
        tmp_path,
        tmp_path,
        *(tmp_path / name for name in ("pairs.txt", "features.h5", "matches.h5")),
        estimate_two_view_geometries=True,  # without it pycolmap 4.2.1 makes no points for hloc
    )
    true = np.array([point.xyz for point in truth.points3D.values()])
    assert found.num_points3D() > 110
    for point in found.points3D.values():
        assert np.linalg.norm(true - point.xyz, axis=1).min() < 1e-3
    for image in found.images.values():
        positions = np.array([p.xy for p in image.points2D])
        np.testing.assert_allclose(positions, keypoints[image.name] + 0.5, atol=1e-4)


@needs_hloc
def test_we_read_what_hloc_matches(photos: Path, tmp_path: Path) -> None:
    plugin = importlib.import_module("d2net.hloc")
    extract_features = importlib.import_module("hloc.extract_features")
    match_features = importlib.import_module("hloc.match_features")
    with Image.open(photos / "odd.png") as photo:
        photo.crop((8, 4, 213, 157)).save(photos / "moved.png")
    conf = plugin.conf(max_keypoints=200)
    features = extract_features.main(conf, photos, tmp_path)
    (tmp_path / "pairs.txt").write_text("odd.png moved.png\nflat.png odd.png\n")
    path = match_features.main(
        match_features.confs["NN-mutual"], tmp_path / "pairs.txt", conf["output"], tmp_path
    )
    with d2net.FeatureFile(features) as file, d2net.MatchFile(path) as matches:
        pairs = [("flat.png", "odd.png"), ("odd.png", "moved.png")]
        assert matches.pairs_among(file) == pairs
        assert len(matches.get("flat.png", "odd.png")) == 0
        a, b = file["odd.png"], file["moved.png"]
        found, own = matches.get("odd.png", "moved.png"), d2net.match(a, b)
        assert torch.equal(found.indices, own.indices)
        steps = a.keypoints[found.indices[:, 0]] - b.keypoints[found.indices[:, 1]]
        assert torch.allclose(steps.median(dim=0).values, torch.tensor([8.0, 4.0]), atol=0.5)


@needs_hloc
@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1200)
def test_script_of_the_page(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(shared / "data/eval/sacre_coeur/images")
    page = (ROOT / "docs" / "hloc.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    with d2net.FeatureFile(names["features"]) as file, d2net.MatchFile(names["matches"]) as matches:
        assert len(file) == 10
        assert len(matches) == 45
    assert names["model"].num_points3D() > 0  # how many depends on the mapper's random numbers
