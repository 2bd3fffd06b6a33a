"""The training loop, shared by all objectives.

It runs in one process or in many: under torchrun each process takes its part of every batch, and
the gradients are those of the whole batch. A run writes one folder:

- `weights.safetensors`: the result, with everything in its header that is needed to reproduce it;
- `best.safetensors`: the weights with the best validation;
- `last/`: the state from which an interrupted run resumes, see `state.py`;
- `log.jsonl`, `tensorboard/`: figures along the way, see `records.py`.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from d2net.errors import InputError, OutputError, TrainingError
from d2net.io.atomic import locked, output_errors, replacing
from d2net.progress import Progress, no_progress
from d2net.training.alarms import Monitor
from d2net.training.batches import load
from d2net.training.objective import Objective
from d2net.training.processes import launch
from d2net.training.records import Records
from d2net.training.settings import RunSettings
from d2net.training.state import TrainingState, load_state, restore_tensors, save_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_RECORD_EVERY = 20  # steps; their mean is recorded

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        weights: the weights file.
        best: the file of the weights with the best validation; None without validation.
        state: settings, steps, pairs, seconds and validations.
    """

    weights: Path
    best: Path | None
    state: TrainingState


def run(
    objective: Objective,
    settings: RunSettings,
    output: str | Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train, or resume an interrupted run with the same output.

    On a CPU, with the same number of threads, a run that was killed and resumed ends with the same
    bits as one that was not. Under torchrun every process calls this. Alarms are logged as
    warnings.

    Args:
        objective: network, batches and loss.
        settings: settings of the run; an interrupted run resumes with the same settings only.
        output: folder of all files that the run writes.
        device: device of the network: cpu, cuda or cuda:1; under torchrun cpu or cuda.
        workers: number of processes that prepare batches ahead of time; 0: this one prepares them.
        progress: called after every step.

    Raises:
        InputError: impossible settings, or no usable training pairs.
        OutputError: the output belongs to a run with other settings, or cannot be written.
        TrainingError: the training diverged or cannot succeed.
        MissingPackageError: Lightning Fabric is not installed.
    """
    fabric = launch(device)
    if settings.batch % fabric.world_size:
        raise InputError(
            f"{fabric.world_size} processes cannot share batches of {settings.batch} pairs: make "
            "batch a multiple of the number of processes"
        )
    output = Path(output)
    weights, best = output / "weights.safetensors", output / "best.safetensors"
    with _deterministic_on_cpu(), _locked(output, fabric):
        # Begin a new run, or resume an interrupted one.
        state = load_state(output / "last") or TrainingState(settings.to_dict(), objective.start)
        _check_same_run(state, settings, objective, output)
        learned = [p for p in objective.network.parameters() if p.requires_grad]
        optimizer = objective.optimizer(settings)
        if state.step:
            restore_tensors(output / "last", objective.network, optimizer)
        forward, fabric_optimizer = fabric.setup(objective, optimizer)
        dataset = objective.dataset(fabric.global_rank, fabric.world_size)
        batches = load(dataset, range(state.step, settings.steps), workers)
        records = Records(output, state.step) if fabric.is_global_zero else None
        monitor = Monitor(objective.alarms)
        recent: deque[dict[str, float]] = deque(maxlen=_RECORD_EVERY)
        first_step, seconds_before, waited = state.step, state.seconds, 0.0
        began = time.monotonic()

        if state.step == 0:
            _validate(objective, state, best, records, fabric)

        while state.step < settings.steps:
            asked = time.monotonic()
            drawn = next(batches)
            waited += time.monotonic() - asked

            rate = learning_rate(settings, state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, figures = forward(drawn.content.to(fabric.device))
            fabric_optimizer.zero_grad()
            fabric.backward(loss)
            norm = nn.utils.clip_grad_norm_(learned, settings.clip or math.inf)
            figures |= {
                "loss": float(loss.detach()),
                "gradient": float(norm),
                "learning_rate": rate,
                "empty": float(drawn.empty),
            }
            for sentence in monitor.step(figures, drawn.problems):
                _warn(sentence, state, records)
            fabric_optimizer.step()

            state.step += 1
            state.pairs += settings.batch
            recent.append(figures)
            elapsed = time.monotonic() - began
            state.seconds = seconds_before + elapsed
            means = {name: sum(row[name] for row in recent) / len(recent) for name in figures}
            means["pairs_per_second"] = (state.step - first_step) * settings.batch / elapsed
            means["waiting"] = waited / elapsed
            if state.step % _RECORD_EVERY == 0:
                _check_weights(learned)
                if records is not None:
                    records.write("train", state.step, means)
            progress(
                f"training: loss {means['loss']:.3f}, {means['waiting']:.0%} of the time waiting "
                "for data",
                state.step,
                settings.steps,
            )
            is_last = state.step == settings.steps
            if state.step % settings.validate_every == 0 or is_last:
                _validate(objective, state, best, records, fabric)
            if state.step % settings.save_every == 0 or is_last:
                if fabric.is_global_zero:
                    save_state(output / "last", state, objective.network, optimizer)
                fabric.barrier()

        if fabric.is_global_zero:
            objective.save(weights, state)
            _finish(objective, weights, best, state, records, progress)
        fabric.barrier()
    return TrainingResult(weights, best if best.exists() else None, state)


def learning_rate(settings: RunSettings, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    rate *= min(1.0, (settings.steps - step) / max(1, settings.decay))
    return rate * min(1.0, (step + 1) / max(1, settings.warmup))


def _validate(
    objective: Objective, state: TrainingState, best: Path, records: Records | None, fabric: Fabric
) -> None:
    """Validate in the main process, and save the weights if none were better."""
    if records is not None:
        figures = objective.validate()
        if figures is not None:
            entry = {"step": state.step, **figures}
            state.validations.append(entry)
            records.write("validation", state.step, figures)
            if records.takes_pictures:
                for name, picture in objective.pictures().items():
                    records.write_picture(name, state.step, picture)
            if state.best is None or figures["score"] > state.best["score"]:
                state.best = entry
                objective.save(best, state)
    fabric.barrier()


def _finish(
    objective: Objective,
    weights: Path,
    best: Path,
    state: TrainingState,
    records: Records | None,
    progress: Progress,
) -> None:
    """Complete the last weights, and the best ones too."""

    def finish(path: Path) -> None:
        try:
            objective.finish(path, progress)
        except TrainingError as error:  # the weights are worth keeping without it
            _warn(f"{path.name}: {error}", state, records)

    finish(weights)
    if state.best is not None and best.exists():
        if state.best["step"] == state.step:
            with replacing(best) as temporary:
                shutil.copyfile(weights, temporary)
        else:
            finish(best)


def _warn(sentence: str, state: TrainingState, records: Records | None) -> None:
    if records is not None:
        records.write("alarm", state.step, {"alarm": sentence})
    _logger.warning("%s", sentence)


def _check_weights(learned: list[nn.Parameter]) -> None:
    """Raise TrainingError if a weight has become too large for half precision.

    A loss of normalised descriptors does not notice that.
    """
    largest = max(float(p.detach().abs().max()) for p in learned)
    if not largest <= torch.finfo(torch.half).max:
        raise TrainingError(
            f"the training diverged: a weight has become {largest:.3g}; start again with a lower "
            "learning_rate or with clip"
        )


def _check_same_run(
    state: TrainingState, settings: RunSettings, objective: Objective, output: Path
) -> None:
    """Raise OutputError if a state belongs to a run with other settings or starting weights."""
    before, now = state.settings, settings.to_dict()
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        name = changed[0]
        raise OutputError(
            f"{output} holds a run with other settings ({name} was {before.get(name)!r} and is now "
            f"{now[name]!r}): give the same settings to resume it, or another output"
        )
    if state.start != objective.start:
        raise OutputError(
            f"{output} holds a run that started from other weights ({state.start} instead of "
            f"{objective.start}): choose another output"
        )


@contextmanager
def _locked(output: Path, fabric: Fabric) -> Iterator[None]:
    """Create the output folder and hold its lock in the main process."""
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    with locked(output / "run"):
        fabric.barrier()
        yield


@contextmanager
def _deterministic_on_cpu() -> Iterator[None]:
    """Let torch sum in a fixed order on a CPU. On GPUs it has no such order for all operations."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    memory.fill_uninitialized_memory = False  # costs time and does not change the result
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill
