"""Distillation with a tiny student of a tiny teacher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from d2net import D2Net
from d2net.errors import InputError
from d2net.networks.light import Light, LightSettings
from d2net.networks.weights import save_weights
from d2net.training import teachers
from d2net.training.distillation import contrast, splat
from d2net.training.recipes import train
from d2net.training.settings import DistillationSettings

DATA = Path(__file__).parents[1] / "data"
WIDTHS = {"channels": [4, 4, 8, 8, 8], "neck": 8, "hidden": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos of a view, and the weights of a teacher."""
    (tmp_path / "photos").mkdir()
    for name in ("graf1.jpg", "graf3.jpg"):
        shutil.copy(DATA / name, tmp_path / "photos" / name)
    torch.manual_seed(3)
    widths = LightSettings.from_dict({**WIDTHS, "dimension": 24})
    save_weights(tmp_path / "teacher.safetensors", Light(widths), {"name": "t"})
    return tmp_path


def settings(**changes: Any) -> DistillationSettings:
    values = {
        "sources": [{"kind": "photos", "path": "photos"}],
        "teachers": [{"name": "teacher.safetensors", "keypoints": 300}],
        "student": {**WIDTHS, "dimension": 16},
        "crop": 64,
        "batch": 2,
        "steps": 3,
        "save_every": 1,
        "warmup": 0,
        "photo_edge": 200,
        "points": 64,
        "name": "small",
    }
    return DistillationSettings.from_dict({**values, **changes})


def run(folder: Path, name: str = "run", progress: Any = lambda *_: None, **changes: Any) -> Path:
    given = settings(**changes)
    return train(given, folder / name, data=folder, workers=0, progress=progress).weights


def test_killed_and_resumed_ends_with_the_same_bits(folder: Path) -> None:
    def interrupt(stage: str, done: int, _: int | None) -> None:
        if stage.startswith("training") and done == 2:
            raise KeyboardInterrupt

    whole = run(folder, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(folder, "killed", interrupt)
    killed = run(folder, "killed")
    state = "last/state-000000003.safetensors"
    for one, other in ((whole, killed), (whole.parent / state, killed.parent / state)):
        expected, found = load_file(one), load_file(other)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    model = D2Net.from_pretrained(killed)
    assert model.extract(DATA / "graf1.jpg", max_edge=100).descriptors.shape[1] == 16


@pytest.mark.slow
def test_two_processes_share_photos_and_batches(folder: Path) -> None:
    given = settings().to_dict()
    worker = "import json, sys; from d2net.training.recipes import train; "
    worker += "from d2net.training.settings import DistillationSettings as S; "
    worker += "train(S.from_dict(json.loads(sys.argv[1])), 'run', workers=0)"
    (folder / "worker.py").write_text(worker)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *launch, json.dumps(given)],
        cwd=folder,
        env=environment,
        check=True,
        timeout=200,
    )
    assert len(list((folder / "run" / "teachers").glob("*.npz"))) == 2
    assert (folder / "run" / "weights.safetensors").is_file()


def test_teachers_see_a_photo_once_and_again_if_their_output_is_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def compute_targets(photo: Any, *arguments: Any) -> Any:
        seen.append(photo.shape)
        return original(photo, *arguments)

    original = teachers.compute_targets
    monkeypatch.setattr(teachers, "compute_targets", compute_targets)
    result = run(folder, steps=1)
    for damaged in (lambda whole: whole, lambda whole: whole[:-9], lambda _: b"", lambda _: b"no"):
        result.unlink()
        file = next((result.parent / "teachers").glob("*.npz"))
        file.write_bytes(damaged(file.read_bytes()))
        run(folder, steps=1)
    assert len(seen) == 2 + 3


def test_the_loss_falls_on_one_photo(folder: Path) -> None:
    (folder / "photos" / "graf3.jpg").unlink()
    losses = []

    def record(stage: str, *_: object) -> None:
        if stage.startswith("training"):
            losses.append(float(stage.split()[2].rstrip(",")))

    run(folder, progress=record, steps=60, learning_rate=5e-3, save_every=100)
    assert losses[-1] < 0.85 * losses[0]


def test_a_student_with_starting_weights_keeps_the_basis_of_its_descriptors(folder: Path) -> None:
    teacher = str(folder / "teacher.safetensors")
    run(folder, start=teacher, student={}, steps=20, learning_rate=1e-9, save_every=20)
    (figures,) = map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
    assert figures["cosine"] < 0.05  # the teacher's descriptors, projected, are the student's own


def test_useless_photos_are_left_out_and_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    for name, size in (("black", (90, 80)), ("tiny", (8, 6)), ("thin", (300, 3))):
        Image.new("RGB", size).save(folder / "photos" / f"{name}.jpg")
    run(folder, steps=6)
    left_out = [message for message in caplog.messages if "a photo is left out" in message]
    for name in ("broken", "tiny", "thin"):  # this teacher finds keypoints in black photos
        assert any(f"{name}.jpg" in message for message in left_out)


def test_other_photos_of_a_view(folder: Path) -> None:
    """Crops come from the photos of either light; the teachers see only those asked for."""
    for light in ("day", "night"):
        (folder / "view" / light).mkdir(parents=True)
        shutil.copy(DATA / "graf1.jpg", folder / "view" / light / "a.jpg")
    source = {"kind": "aligned", "path": "view", "taught": ["day/*"]}
    run(folder, sources=[source], other_photo=1.0)
    assert len(list((folder / "run" / "teachers").glob("*.npz"))) == 1
    with pytest.raises(InputError, match="has no photos"):
        run(folder, "none", sources=[{**source, "left_out": ["day/*"]}])


def test_validation_and_records(folder: Path) -> None:
    validation = [{"kind": "photos", "path": "photos", "min_correspondences": 8}]
    run(folder, validation=validation, validation_pairs=1)
    entries = map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
    assert [e["step"] for e in entries if e["kind"] == "validation"] == [0, 3]
    assert (folder / "run" / "best.safetensors").is_file()


def test_settings_survive_json() -> None:
    given = settings(groups=["a"], clip=None)
    assert DistillationSettings.from_dict(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": []}, "needs"),
        ({"crop": 72}, "multiple of 32"),
        ({"teachers": [{"name": "x", "colour": 1}]}, "unknown setting 'colour'"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**changes)


def test_contrast_ignores_near_points() -> None:
    similarity = torch.tensor([[2.0, 9.0], [9.0, 2.0]])
    near = torch.tensor([[False, True], [True, False]])
    assert torch.allclose(contrast(similarity, near), torch.zeros(2), atol=1e-6)
    assert (contrast(similarity, ~near & near) > 10).all()


def test_splat_keeps_mass_and_mean() -> None:
    image = splat(torch.tensor([[[2.25, 5.5]]]), torch.tensor([[0.8]]), 8)[0, 0]
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    assert torch.isclose(image.sum(), torch.tensor(0.8))
    assert torch.isclose((image * x).sum() / 0.8, torch.tensor(2.25))
    assert torch.isclose((image * y).sum() / 0.8, torch.tensor(5.5))
