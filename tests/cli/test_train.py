"""`d2net train`: a person's own photos in one command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2net import D2Net
from d2net.networks.light import Light, LightSettings
from d2net.networks.weights import save_weights

from .conftest import Real, Run

DATA = Path(__file__).parents[1] / "data"

RECIPE = """
crop = 64
steps = {steps}
save_every = 1

[[sources]]
kind = "photos"
path = "photos"
min_correspondences = 16
hold_out = 2
"""


@pytest.fixture
def folder(here: Path) -> Path:
    """A folder of photos and a small recipe for it."""
    (here / "photos").mkdir()
    for name in ("graf1.jpg", "graf3.jpg"):
        shutil.copy(DATA / name, here / "photos" / name)
    (here / "recipe.toml").write_text(RECIPE.format(steps=2))
    return here


def test_a_recipe(d2net: Run, folder: Path) -> None:
    run = d2net("train", "--config", "recipe.toml", "-o", "run", "--workers", 0, "--batch", 2)
    assert run.code == 0, run.err
    assert "4 pairs in 2 steps" in run.out
    assert "On pairs that were not trained on:" in run.out
    rows = [line.split() for line in run.out.splitlines()[-3:]]
    assert rows[0] == ["loss", "accuracy@3", "accuracy@10", "right@10"]
    assert [row[0] for row in rows[1:]] == ["before", "after"]
    for name in ("weights.safetensors", "best.safetensors", "log.jsonl", "last/state.json"):
        assert (folder / "run" / name).is_file()
    arguments = ("train", "--config", "recipe.toml", "-o", "run", "--workers", 0, "--json")
    assert d2net(*arguments, "--batch", 2).json["pairs"] == 4
    other = d2net(*arguments, "--batch", 5)
    assert other.code == 2
    assert "to resume it, give the same settings" in other.json["error"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_own_photos_for_some_seconds_killed_and_started_again(real: Real, folder: Path) -> None:
    """With nothing but the folder, the output and the number of steps."""
    arguments = ("train", "photos", "--output", "run", "--steps", 2, "--batch", 1)
    process = real.start(*arguments, start_new_session=True)
    state = folder / "run" / "last" / "state.json"
    deadline = time.monotonic() + 100
    log = folder / "run" / "log.jsonl"
    while not log.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "run" / "weights.safetensors").exists()
    with real.start(*arguments, "--json") as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["steps"] >= 1
    assert json.loads(state.read_text())["settings"]["sources"][0]["kind"] == "photos"
    weights = load_file(folder / result["weights"])
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give a folder of photos, or --config FILE"),
        (("missing",), "there is no folder missing"),
        (("photos", "--from", "nothing"), "there are no weights called 'nothing'"),
        (("photos", "--device", "warp"), "device"),
        (("photos", "--workers", "-1"), "--workers must be 0 or more, not -1"),
        (("photos", "--config", "missing.toml"), "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    d2net: Run, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    run = d2net("train", *arguments, "--output", "run")
    assert run.code == 2
    assert message in run.err
    assert run.err.count("\n") == 1
    assert not (folder / "run" / "weights.safetensors").exists()


def test_a_recipe_of_a_matcher(d2net: Run, folder: Path) -> None:
    widths = "[widths]\nwidth = 16\nheads = 2\nlayers = 1\n"
    few = 'objective = "matcher"\npairs = 20\nkeypoints = 32\ndifferent = 0\n'
    recipe = few + RECIPE.format(steps=2) + widths
    (folder / "matcher.toml").write_text(recipe)
    arguments = ("train", "--config", "matcher.toml", "-o", "run", "--workers", 0)
    run = d2net(*arguments)
    assert run.code == 0, run.err
    assert "2 pairs in 2 steps" in run.out
    assert ["loss", "precision", "recall", "different"] in [x.split() for x in run.out.splitlines()]
    matched = d2net(
        "match",
        "photos/graf1.jpg",
        "photos/graf3.jpg",
        "--max-edge",
        200,
        "--matcher",
        "run/weights.safetensors",
        "-o",
        "m.csv",
        "--verify",
        "none",
    )
    assert matched.code == 0, matched.err
    assert Path("m.csv").read_text().startswith("x_a,y_a,x_b,y_b,similarity,confidence\n")


DISTILLATION = """
crop = 64
steps = 2
batch = 1
photo_edge = 200
student = {channels = [4, 4, 8, 8, 8], neck = 8, hidden = 16, dimension = 16}

[[teachers]]
name = "teacher.safetensors"
keypoints = 300

[[sources]]
kind = "photos"
path = "photos"
"""


def test_distillation(real: Real, folder: Path) -> None:
    widths = LightSettings(channels=(4, 4, 8, 8, 8), neck=8, hidden=16, dimension=24)
    save_weights(folder / "teacher.safetensors", Light(widths), {"name": "t"})
    (folder / "light.toml").write_text(DISTILLATION)
    arguments = (".", "--config", "light.toml", "-o", "run", "--batch", 2, "--json")
    with real.start("distill", *arguments) as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert json.loads(out)["pairs"] == 4
    model = D2Net.from_pretrained(folder / "run" / "weights.safetensors")
    assert model.extract(folder / "photos" / "graf1.jpg", max_edge=100).descriptors.shape[1] == 16
