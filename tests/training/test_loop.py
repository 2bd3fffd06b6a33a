"""The run: it learns, it can be killed, shared between processes, and fails in one sentence."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from d2net import D2Net
from d2net.errors import InputError, OutputError, TrainingError
from d2net.networks.weights import load_weights
from d2net.training.loop import learning_rate
from d2net.training.recipes import train
from d2net.training.settings import TrainingSettings
from d2net.training.supervised import SupervisedObjective

from . import made
from .workers import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**changes: Any) -> TrainingSettings:
    return TrainingSettings.from_dict({**SMALL, **changes})


def process(
    output: Path, settings: dict[str, Any], more: dict[str, Any] | None = None, processes: int = 0
) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own, or in several under torchrun."""
    run = [
        "-m",
        "tests.training.workers",
        str(output),
        json.dumps(settings),
        json.dumps(more or {}),
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launch if processes else []), *run]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=200
    )


def assert_same(one: Path, other: Path) -> None:
    assert one.read_bytes() == other.read_bytes()


def log(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = (output / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def test_learns_and_the_result_loads(tmp_path: Path) -> None:
    settings = small(steps=24, learning_rate=3e-4, batch=1, seed=3)
    stages: list[str] = []
    result = train(settings, tmp_path, workers=0, progress=lambda stage, *_: stages.append(stage))
    start, info = load_weights("ots"), load_weights(result.weights)
    learnt = info.network.backbone.state_dict()
    losses = [float(stage.split()[2].rstrip(",")) for stage in stages]
    assert sum(losses[-4:]) < sum(losses[:4])
    model = D2Net.from_pretrained(result.weights)
    assert len(model.extract(made.DATA / "graf1.jpg", max_edge=200)) > 50
    for name, before in start.network.backbone.state_dict().items():
        assert torch.equal(learnt[name], before) == (not name.startswith("conv4_3"))
    assert info.network.normalisation == start.network.normalisation
    assert info.bytes < 16e6
    assert info.metadata["training_data"] == f"conv4_3 of ots on {Path.cwd().name} (here)"
    assert TrainingSettings.from_dict(json.loads(info.metadata["settings"])) == settings
    assert info.metadata["pairs"] == "24"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path, workers: int) -> None:
    settings = {
        "schedule": "cosine",
        "warmup": 2,
        "contrast": 0.5,
        "clip": 1.0,
    }
    more = {"workers": workers}
    assert process(tmp_path / "whole", settings, more).returncode == 0
    for kill in (1, 5, 7):  # before the first checkpoint, and between two
        run = process(tmp_path / "killed", settings, {**more, "kill": kill})
        assert run.returncode == -signal.SIGKILL, run.stderr
        assert not (tmp_path / "killed" / "weights.safetensors").exists()
    run = process(tmp_path / "killed", settings, more)
    assert run.returncode == 0, run.stderr
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    assert_same(whole / "weights.safetensors", killed / "weights.safetensors")
    state = "last/state-000000008.safetensors"
    assert_same(whole / state, killed / state)
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_finished_run_is_not_done_again(tmp_path: Path) -> None:
    steps: list[int] = []
    settings = small(steps=2)
    weights = train(settings, tmp_path, workers=0).weights
    content, time = weights.read_bytes(), weights.stat().st_mtime_ns
    train(settings, tmp_path, workers=0, progress=lambda _, done, __: steps.append(done))
    assert not steps
    assert weights.stat().st_mtime_ns == time
    weights.unlink()
    train(settings, tmp_path, workers=0)
    assert weights.read_bytes() == content


def gradients(output: Path, step: int) -> dict[str, torch.Tensor]:
    """Adam's mean of the gradients: after one step a tenth of the gradient."""
    state = load_file(output / "last" / f"state-{step:09d}.safetensors")
    return {name: value for name, value in state.items() if name.endswith("exp_avg")}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_joint_batch(tmp_path: Path) -> None:
    """Also where a process has more pairs without correspondences than the other."""
    sources = [{"kind": "made", "path": "here", "empty": 3}]
    settings = {
        "sources": sources,
        "batch": 4,
        "steps": 1,
        "contrast": 0.5,
        "seed": 2,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    train(small(**settings), one, workers=0)
    run = process(two, settings, processes=2)
    assert run.returncode == 0, run.stderr
    expected, found = gradients(one, 1), gradients(two, 1)
    assert len(expected) == 2
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert gradient.norm() > 0
        assert difference < 1e-5, name
    files = (one / "weights.safetensors", two / "weights.safetensors", "ots")
    *ends, start = (load_weights(file).network.backbone.state_dict() for file in files)
    moved = ends[0]["conv4_3.weight"] - start["conv4_3.weight"]
    apart = ends[0]["conv4_3.weight"] - ends[1]["conv4_3.weight"]
    assert apart.norm() < 0.01 * moved.norm()


@pytest.mark.slow
def test_processes_must_divide_the_batch(tmp_path: Path) -> None:
    run = process(tmp_path, {"batch": 3}, processes=2)
    assert run.returncode != 0
    assert "2 processes cannot share batches of 3 pairs" in run.stderr


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_a_resume(tmp_path: Path) -> None:
    whole, full = tmp_path / "whole", tmp_path / "full"
    settings = {"steps": 4, "save_every": 2}
    assert process(whole, settings).returncode == 0
    for limit in (100, 1_000_000, 20_000_000):
        run = process(full, settings, {"bytes": limit})
        assert run.returncode == 1
        assert run.stderr.startswith("OutputError: "), run.stderr
        assert "the disk is full" in run.stderr
        assert run.stderr.count("\n") == 1
    assert process(full, settings).returncode == 0
    assert_same(full / "weights.safetensors", whole / "weights.safetensors")
    assert len(list((full / "last").iterdir())) == 2


def test_other_settings_need_another_output(tmp_path: Path) -> None:
    train(small(steps=1), tmp_path, workers=0)
    with pytest.raises(OutputError, match=r"learning_rate was 0.001 and is now 0.1"):
        train(small(steps=1, learning_rate=0.1), tmp_path, workers=0)
    with pytest.raises(OutputError, match="steps was 1 and is now 2"):
        train(small(steps=2), tmp_path, workers=0)


def test_a_damaged_state_says_so(tmp_path: Path) -> None:
    train(small(steps=1), tmp_path, workers=0).weights.unlink()
    (state,) = (tmp_path / "last").glob("*.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(Exception, match="choose another output"):
        train(small(steps=1), tmp_path, workers=0)


def test_missing_photos_are_reported_once_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [{"kind": "made", "path": "here", "broken": 6}]
    train(small(sources=sources, steps=8), tmp_path, workers=0)
    said = caplog.messages
    assert sorted(said) == [
        "a training pair was left out: the photo 0.jpg is missing",
        "a training pair was left out: the photo 6.jpg is missing",
    ]
    assert [entry["alarm"] for entry in log(tmp_path, "alarm")] == said


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_sentence(tmp_path: Path, workers: int) -> None:
    source = {"kind": "photos", "path": "photos", "min_correspondences": 8}
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        (tmp_path / "photos" / f"{name}.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"20 pairs could not be read; the last: .*photo"):
        train(small(sources=[source]), tmp_path / "run", data=tmp_path, workers=workers)


def test_pairs_without_correspondences_end_the_run_early(tmp_path: Path) -> None:
    sources = [{"kind": "made", "path": "here", "empty": 1}]
    steps: list[int] = []
    with pytest.raises(TrainingError, match="has a correspondence"):
        train(
            small(sources=sources, batch=1, steps=1000),
            tmp_path,
            workers=0,
            progress=lambda _, done, __: steps.append(done),
        )
    assert len(steps) < 60


def test_divergence_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(small(steps=200, learning_rate=1e12), tmp_path, workers=0)


def test_validation_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.2, 0.5, 0.4])
    monkeypatch.setattr(SupervisedObjective, "validate", lambda _: {"score": next(scores)})
    result = train(small(steps=4, validate_every=2), tmp_path, workers=0)
    assert result.state.best == {"step": 2, "score": 0.5}
    assert [entry["step"] for entry in result.state.validations] == [0, 2, 4]
    assert result.best is not None
    assert load_weights(result.best).metadata["steps"] == "2"
    assert load_weights(result.weights).metadata["steps"] == "4"
    assert [entry["score"] for entry in log(tmp_path, "validation")] == [0.2, 0.5, 0.4]


def test_the_log_and_tensorboard_hold_the_figures(tmp_path: Path) -> None:
    train(small(steps=20, batch=1), tmp_path, workers=0)
    (entry,) = log(tmp_path, "train")
    assert entry["step"] == 20
    assert entry["usable"] == 1
    assert entry["correspondences"] == 64
    assert entry["learning_rate"] == pytest.approx(1e-3)
    assert 0 <= entry["waiting"] < 1
    assert entry["pairs_per_second"] > 0
    assert list((tmp_path / "tensorboard").iterdir())


def test_learning_rates() -> None:
    assert {learning_rate(TrainingSettings(), step) for step in (0, 5, 116_999)} == {1e-3}
    cosine = TrainingSettings(schedule="cosine", steps=100, learning_rate=1.0, warmup=10)
    rates = [learning_rate(cosine, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] < 1e-3
    assert max(rates) == rates[9]


def test_the_state_is_plain(tmp_path: Path) -> None:
    train(small(steps=1), tmp_path, workers=0)
    state = json.loads((tmp_path / "last" / "state.json").read_text())
    with safetensors.safe_open(tmp_path / "last" / state["tensors"], "pt") as file:
        names = set(file.keys())
    assert "network.conv4_3.weight" in names
    assert {n for n in names if n.startswith("optimizer.")} == {
        f"optimizer.conv4_3.{kind}.{key}"
        for kind in ("weight", "bias")
        for key in ("exp_avg", "exp_avg_sq", "step")
    }
