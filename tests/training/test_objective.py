"""The loop with another objective than `d2net train`'s: checkpoints, validation and records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from d2net.errors import FormatError, OutputError, TrainingError
from d2net.progress import Progress
from d2net.training.alarms import WINDOW, Alarm
from d2net.training.batches import Drawn
from d2net.training.loop import run
from d2net.training.objective import Objective
from d2net.training.settings import RunSettings
from d2net.training.state import TrainingState


class Lines(Dataset[Any]):
    """Points of a line; each step has its own."""

    def __init__(self, rank: int, processes: int) -> None:
        self.rank, self.processes = rank, processes

    def __getitem__(self, step: int) -> Drawn:
        x = torch.randn(8, 1, generator=torch.Generator().manual_seed(step))
        return Drawn(torch.cat([x, 3 * x + 1], dim=1))


class FitLine(Objective):
    """A linear layer that learns a line; a frozen teacher stays out of the checkpoints."""

    network: nn.Linear

    def __init__(self, learning: bool = True) -> None:
        super().__init__()
        self.learning = learning
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)
        self.teacher = nn.Linear(1, 1).requires_grad_(False)
        self.start = {"name": "none"}
        self.alarms = [Alarm("error", lambda mean: mean > 100, "too far: {value:.0f}", True)]

    def dataset(self, rank: int, processes: int) -> Lines:
        return Lines(rank, processes)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss = (self.network(batch[:, :1]) - batch[:, 1:]).square().mean()
        return loss, {"error": float(loss.detach()) if self.learning else 1e3}

    def optimizer(self, settings: RunSettings) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate)

    def validate(self) -> dict[str, float]:
        return {"score": -float((self.network.weight.detach() - 3).abs())}

    def save(self, path: Path, state: TrainingState) -> None:
        save_file({"weight": self.network.weight.data.clone()}, path)

    def finish(self, path: Path, progress: Progress) -> None:
        raise TrainingError("nothing to add")


SETTINGS = RunSettings(steps=40, learning_rate=0.1, save_every=7, validate_every=10)


def test_it_learns_validates_and_records(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = run(FitLine(), SETTINGS, tmp_path, workers=0)
    assert result.state.step == 40
    assert [row["step"] for row in result.state.validations] == [0, 10, 20, 30, 40]
    assert result.state.best == max(result.state.validations, key=lambda row: row["score"])
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if entry["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert caplog.messages[0] == "weights.safetensors: nothing to add"
    state = load_file(tmp_path / "last" / "state-000000040.safetensors")
    assert {name.split(".")[0] for name in state} == {"network", "optimizer"}
    assert not any("teacher" in name for name in state)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def interrupt(_: str, done: int, __: int | None) -> None:
        if done == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(FitLine(), SETTINGS, tmp_path / "two", workers=0, progress=interrupt)
    weights = [
        run(FitLine(), SETTINGS, tmp_path / name, workers=0).weights for name in ("one", "two")
    ]
    assert torch.equal(*(load_file(path)["weight"] for path in weights))


def test_a_run_on_other_files_is_not_passed_off_as_this_one(tmp_path: Path) -> None:
    photo, other, output = (tmp_path / name for name in ("a.bmp", "b.bmp", "run"))
    photo.write_bytes(b"one")
    other.write_bytes(b"new")
    run(FitLine(), SETTINGS, output, {"a": photo}, workers=0)
    os.utime(photo, (1, 1))  # copied without its time
    run(FitLine(), SETTINGS, output, {"a": photo}, workers=0)
    for files in ({"a": other}, {}, {"a": photo, "b": other}):
        with pytest.raises(OutputError, match="other data"):
            run(FitLine(), SETTINGS, output, files, workers=0)


def test_a_state_of_another_version_is_one_sentence(tmp_path: Path) -> None:
    run(FitLine(), SETTINGS, tmp_path, workers=0)
    path = tmp_path / "last" / "state.json"
    state = json.loads(path.read_text())
    del state["inputs"]
    path.write_text(json.dumps({**state, "photos": "8 (a)"}))
    with pytest.raises(FormatError, match="another version"):
        run(FitLine(), SETTINGS, tmp_path, workers=0)


@pytest.mark.parametrize(
    "name",
    [
        *("weights.safetensors", "best.safetensors", "unfinished.safetensors", "log.jsonl"),
        *("last/mine.safetensors", "tensorboard/events", "teachers/a.npz", "pairs/000000.npz"),
    ],
)
def test_files_of_the_user_are_not_overwritten(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        run(FitLine(), SETTINGS, tmp_path, workers=0)
    assert file.read_text() == "mine"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {file}


def test_weights_of_the_user_beside_an_interrupted_run(tmp_path: Path) -> None:
    def interrupt(_: str, done: int, __: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(FitLine(), SETTINGS, tmp_path, workers=0, progress=interrupt)
    (tmp_path / "weights.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="not overwritten"):
        run(FitLine(), SETTINGS, tmp_path, workers=0)
    assert (tmp_path / "weights.safetensors").read_text() == "mine"


def test_its_own_alarms_end_the_run(tmp_path: Path) -> None:
    settings = SETTINGS.updated(steps=2 * WINDOW)
    with pytest.raises(TrainingError, match="too far: 1000"):
        run(FitLine(learning=False), settings, tmp_path, workers=0)
