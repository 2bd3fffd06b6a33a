"""The training loop, shared by all objectives.

It runs in one process or in many: under torchrun each process takes its part of every batch, and
the gradients are those of the whole batch. A run writes one folder:

- `weights.safetensors`: the result, with everything in its header that is needed to reproduce it;
- `best.safetensors`: the weights with the best validation;
- `last/`: the state from which an interrupted run resumes, see `state.py`;
- `log.jsonl`, `tensorboard/`: figures along the way, see `run_log.py`.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from d2net.errors import InputError, OutputError, TrainingError, WeightsError, needs_package
from d2net.io.atomic import locked, output_errors, replacing
from d2net.io.resume import are_unchanged, record_files
from d2net.progress import Progress, no_progress
from d2net.training.alarms import Monitor
from d2net.training.batches import load
from d2net.training.objective import Objective
from d2net.training.run_log import RunLog
from d2net.training.settings import RunSettings
from d2net.training.state import TrainingState, load_state, restore_tensors, save_state, write_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_FILES = (
    *("weights.safetensors", "best.safetensors", "unfinished.safetensors"),
    *("last/*.safetensors", "log.jsonl", "tensorboard", "teachers", "pairs"),
)
"""The files and folders of a run, besides `last/state.json`, which is written first."""

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
    files: Mapping[str, Path] = MappingProxyType({}),
    *,
    device: str = "cpu",
    workers: int = 1,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train, or resume an interrupted run with the same output.

    On a CPU, with the same number of threads, a run that was killed and resumed ends with the same
    bits as one that was not. Under torchrun every process calls this. Alarms are logged.

    Args:
        objective: network, batches and loss.
        settings: an interrupted run resumes with the same settings only.
        output: folder of all files that the run writes.
        files: the files that the run reads, by name; a run resumes only with the same.
        device: device of the network: cpu, cuda or cuda:1; under torchrun cpu or cuda.
        workers: number of processes that prepare batches ahead of time; 0: this one prepares them.
        progress: called after every step.
    """
    fabric = _launch(device)
    if settings.batch % fabric.world_size:
        raise InputError(
            f"{fabric.world_size} processes cannot share batches of {settings.batch} pairs: make "
            "batch a multiple of the number of processes"
        )
    output = Path(output)
    weights, best, unfinished, *_ = (output / name for name in _FILES)

    def warn(sentence: str) -> None:
        if log is not None:
            log.write("alarm", state.step, {"alarm": sentence})
        _logger.warning("%s", sentence)

    def finish(path: Path, name: str) -> None:
        try:
            objective.finish(path, progress)
        except TrainingError as error:  # the weights are worth keeping without it
            warn(f"{name}: {error}")
        except WeightsError:
            warn(f"{name} is missing or damaged, and stays so")

    with _deterministic_on_cpu(), ExitStack() as stack:
        if fabric.is_global_zero:
            with output_errors(output):
                output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(output / "run"))
        fabric.barrier()
        # Begin a new run, or resume an interrupted one.
        new_run = TrainingState(settings.to_dict(), objective.start, {})
        state = load_state(output / "last") or new_run
        for file in (file for name in _FILES for file in output.glob(name)):
            if state is new_run or (file == weights and state.step < state.settings["steps"]):
                raise OutputError(
                    f"{file} was not made by a run in this folder: choose another output, so that "
                    "the file is not overwritten"
                )
        before = {**state.settings, "starting weights": state.start}
        now = {**settings.to_dict(), "starting weights": objective.start}
        for name, value in now.items():
            if before.get(name) != value:
                raise OutputError(
                    f"{output} holds {state.step} steps of a run with other settings ({name} was "
                    f"{before.get(name)!r} and is now {value!r}): to resume it, give the same "
                    "settings; otherwise delete the folder or choose another output"
                )
        if state is new_run:
            state.inputs = {name: record_files(path) for name, path in files.items()}
        for name in state.inputs.keys() | files.keys():
            if not are_unchanged(state.inputs.get(name, ""), files.get(name)):
                raise OutputError(
                    f"{output} holds a run on other data: {name} is changed, new or missing; "
                    "choose another output"
                )
        if weights.exists():
            return TrainingResult(weights, best if best.exists() else None, state)
        learned = [p for p in objective.network.parameters() if p.requires_grad]
        optimizer = objective.optimizer(settings)
        if state.step:
            restore_tensors(output / "last" / state.tensors, objective.network, optimizer)
        forward, fabric_optimizer = fabric.setup(objective, optimizer)
        fabric.barrier()  # no process may find files that another one has just made
        if state is new_run and fabric.is_global_zero:
            with output_errors(output / "last"):
                (output / "last").mkdir(exist_ok=True)
            write_state(output / "last", state)
        dataset = objective.dataset(fabric.global_rank, fabric.world_size)
        batches = load(dataset, range(state.step, settings.steps), workers)
        log = RunLog(output, state.step or -1) if fabric.is_global_zero else None
        monitor = Monitor(objective.alarms)
        recent: deque[dict[str, float]] = deque(maxlen=_RECORD_EVERY)
        first_step, seconds_before, waited = state.step, state.seconds, 0.0
        began = time.monotonic()

        if state.step == 0:
            _validate(objective, state, best, log, fabric)

        while state.step < settings.steps:
            asked = time.monotonic()
            drawn = next(batches)
            waited += time.monotonic() - asked

            rate = learning_rate(settings, state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, figures = forward(fabric.to_device(drawn.content))
            fabric_optimizer.zero_grad()
            fabric.backward(loss)
            norm = nn.utils.clip_grad_norm_(learned, settings.clip or math.inf)
            figures |= {
                "loss": float(loss.detach()),
                "gradient": float(norm),
                "learning_rate": rate,
            }
            for sentence in monitor.step(figures, drawn.problems):
                warn(sentence)
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
                # A loss of normalised descriptors does not notice weights that grow.
                largest = max(float(p.detach().abs().max()) for p in learned)
                if not largest <= torch.finfo(torch.half).max:
                    raise TrainingError(
                        f"the training diverged: a weight has become {largest:.3g}; start again "
                        "with a lower learning_rate or with clip"
                    )
                if log is not None:
                    log.write("train", state.step, means)
            progress(
                f"training: loss {means['loss']:.3f}, {means['waiting']:.0%} of the time waiting "
                "for data",
                state.step,
                settings.steps,
            )
            is_last = state.step == settings.steps
            if state.step % settings.validate_every == 0 or is_last:
                _validate(objective, state, best, log, fabric)
            if state.step % settings.save_every == 0 or is_last:
                if fabric.is_global_zero:
                    save_state(output / "last", state, objective.network, optimizer)
                fabric.barrier()

        if fabric.is_global_zero:
            # The result gets its name when it is complete: a run that has it is finished.
            if state.best is not None and state.best["step"] < state.step:
                finish(best, best.name)
            objective.save(unfinished, state)
            finish(unfinished, weights.name)
            if state.best is not None and state.best["step"] == state.step:
                with replacing(best) as temporary:
                    shutil.copyfile(unfinished, temporary)
            with output_errors(weights):
                unfinished.replace(weights)
        fabric.barrier()
    return TrainingResult(weights, best if best.exists() else None, state)


def learning_rate(settings: RunSettings, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    rate *= min(1.0, (settings.steps - step) / max(1, settings.decay))
    return rate * min(1.0, (step + 1) / max(1, settings.warmup))


def _launch(device: str) -> Fabric:
    """Set up this process and, under torchrun, connect it to the others of the run."""
    with needs_package("training needs Lightning Fabric", "train"):
        from lightning_fabric import Fabric
    accelerator, _, index = device.partition(":")
    arguments: dict[str, Any] = {"devices": [int(index)] if index else 1}
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local, total = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        arguments = {"devices": local, "num_nodes": total // local, "strategy": "ddp"}
    try:
        fabric = Fabric(accelerator=accelerator, **arguments)
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot train on the device {device!r}: {reason}") from error
    return fabric


def _validate(
    objective: Objective, state: TrainingState, best: Path, log: RunLog | None, fabric: Fabric
) -> None:
    """Validate in the main process, and save the weights if they are the best so far."""
    if log is not None and (figures := objective.validate()) is not None:
        entry = {"step": state.step, **figures}
        state.validations.append(entry)
        log.write("validation", state.step, figures)
        if state.best is None or figures["score"] > state.best["score"]:
            state.best = entry
            objective.save(best, state)
    fabric.barrier()


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
