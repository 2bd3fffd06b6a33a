"""Fine-tuning of a tiny network light."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from d2net import D2Net
from d2net.errors import InputError
from d2net.networks.light import Light, LightSettings
from d2net.networks.weights import save_weights
from d2net.training.fine_tuning import FineTuningObjective
from d2net.training.recipes import read_recipe, settings_for_photos, train
from d2net.training.settings import FineTuningSettings, TrainingSettings

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photos and starting weights."""
    (tmp_path / "photos").mkdir()
    for name in ("graf1.jpg", "graf3.jpg"):
        shutil.copy(DATA / name, tmp_path / "photos" / name)
    torch.manual_seed(3)
    widths = LightSettings((4, 4, 8, 8, 8), neck=8, hidden=16, dimension=16)
    save_weights(tmp_path / "start.safetensors", Light(widths), {"name": "before"})
    return tmp_path


def settings(folder: Path, **changes: Any) -> FineTuningSettings:
    values = {
        "sources": [{"kind": "photos", "path": "photos", "min_correspondences": 16, "hold_out": 2}],
        "start": str(folder / "start.safetensors"),
        "crop": 64,
        "batch": 2,
        "steps": 3,
        "save_every": 1,
        "warmup": 0,
        "validation_pairs": 2,
    }
    return FineTuningSettings.from_dict({**values, **changes})


def run(folder: Path, name: str = "run", progress: Any = lambda *_: None, **changes: Any) -> Path:
    given = settings(folder, **changes)
    return train(given, folder / name, data=folder, workers=0, progress=progress).weights


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_killed_and_resumed_ends_with_the_same_bits(folder: Path, precision: str) -> None:
    def interrupt(stage: str, done: int, _: int | None) -> None:
        if stage.startswith("training") and done == 2:
            raise KeyboardInterrupt

    whole = run(folder, "whole", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        run(folder, "killed", interrupt, precision=precision)
    killed = run(folder, "killed", precision=precision)
    expected, found, before = map(load_file, (whole, killed, folder / "start.safetensors"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(before[name], value) for name, value in expected.items())
    model = D2Net.from_pretrained(killed)
    assert model.extract(DATA / "graf1.jpg", max_edge=100).descriptors.shape[1] == 16


def test_crops_are_matched_better_and_the_score_stays(folder: Path) -> None:
    steps = 60
    weights = run(folder, steps=steps, learning_rate=3e-3, batch=4, validate_every=steps)
    log = [json.loads(line) for line in (weights.parent / "log.jsonl").read_text().splitlines()]
    before, after = (row for row in log if row["kind"] == "validation")
    assert after["loss"] < 0.9 * before["loss"]
    assert log[-2]["score"] < 0.01


@pytest.mark.slow
def test_weights_adapt_to_a_folder_by_one_command(folder: Path) -> None:
    """The same command as for a VGG; the weights decide what is trained."""
    given = settings_for_photos(folder / "photos", start=str(folder / "start.safetensors"), steps=1)
    assert isinstance(given, FineTuningSettings)
    assert isinstance(settings_for_photos(folder / "photos"), TrainingSettings)
    weights = train(given, folder / "run", data=folder / "photos", workers=0).weights
    assert D2Net.from_pretrained(weights).network.descriptor_lengths == {"light": 16}


def test_a_recipe_names_the_network(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    recipe.write_text('objective = "light"\nstart = "seasons"\n')
    given = read_recipe(recipe)
    assert isinstance(given, FineTuningSettings)
    (folder / "wrong.toml").write_text('objective = "lights"')
    with pytest.raises(InputError, match="light or matcher, not 'lights'"):
        read_recipe(folder / "wrong.toml")
    with pytest.raises(InputError, match="points must be at least 2"):
        settings(folder, points=1)
    with pytest.raises(InputError, match="seasons are not weights of the network light"):
        FineTuningObjective(given, folder)
