"""The run: from settings to weights.

One process or many: under torchrun each process takes its part of every batch, and the gradients
are those of the whole batch. What a run writes lies in one folder:

- `weights.safetensors`: the result, half precision, with all that made it in its header;
- `best.safetensors`: the weights that validated best;
- `last/`: the state to go on from after a kill, see `checkpoint`;
- `log.jsonl`, `tensorboard/`: figures along the way.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from d2net.errors import InputError, OutputError, TrainingError
from d2net.extraction.d2net import D2Net
from d2net.io.atomic import locked, output_errors, replacing
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import load_weights, save_weights
from d2net.settings import ExtractionSettings
from d2net.training import checkpoint, processes
from d2net.training.alarms import Watch
from d2net.training.batches import Batch, Draws, load
from d2net.training.checkpoint import Standing
from d2net.training.loss import Loss
from d2net.training.network import Learner
from d2net.training.objective import objective
from d2net.training.records import Records
from d2net.training.settings import TrainingSettings
from d2net.training.validation import Validate, Validation, fixed_pairs
from d2net.training.whitening import add_whitening

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_RECORD_EVERY = 20  # steps, whose mean is recorded


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: steps done.
        steps: of the whole run.
        loss: mean over the last steps.
        pairs_per_second: in this sitting, validation and checkpoints included.
        waiting: share of the time in which the network waited for data.
        seconds_left: at this rate.
        stage: what is done: training, and after the last step whitening.
    """

    step: int
    steps: int
    loss: float
    pairs_per_second: float
    waiting: float
    seconds_left: float
    stage: str = "training"


@dataclass(frozen=True)
class Summary:
    """What a run came to.

    Attributes:
        weights: the file.
        best: the file of the best weights; None without validation.
        standing: settings, steps, pairs, validations.
    """

    weights: Path
    best: Path | None
    standing: Standing


def train(
    settings: TrainingSettings,
    output: str | Path,
    *,
    data: str | Path = ".",
    device: str = "cpu",
    workers: int = 1,
    validate: Validate | None = None,
    report: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Train weights, or go on where an interrupted run with the same output stopped.

    On a CPU and with the same number of threads, a run that was killed and resumed ends with the
    same bits as one that was not. Under torchrun every process calls this.

    Args:
        settings: what to do; an interrupted run goes on with the same settings only.
        output: folder of all that the run writes.
        data: folder that the paths of the sources are relative to.
        device: where to compute: cpu, cuda, cuda:1. Under torchrun, cpu or cuda.
        workers: processes that make training pairs ahead of time; 0 makes them in between.
        validate: judges weights; by default `Validation` on what the settings validate on.
        report: called after every step.
        warn: called with a sentence when something looks wrong.

    Raises:
        InputError: settings that cannot be followed, or no usable training pairs.
        WeightsError: the starting weights cannot be loaded.
        OutputError: the output was made with other settings or cannot be written.
        TrainingError: the training diverged or collapsed, or learns from nothing.
        MissingPackageError: without Lightning Fabric.
    """
    output, data = Path(output), Path(data)
    fabric = processes.launch(device)
    if settings.batch % fabric.world_size:
        raise InputError(
            f"{fabric.world_size} processes cannot share batches of {settings.batch} pairs: make "
            "batch a multiple"
        )
    with ExitStack() as stack:
        stack.enter_context(_reproducible())
        if fabric.is_global_zero:
            with output_errors(output):
                output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(output / "run"))
        fabric.barrier()
        run = _Run(fabric, settings, output, data, warn)
        if validate is None and settings.validated_on and fabric.is_global_zero:
            validate = Validation(fixed_pairs(settings, data), settings)
        run.go(validate, workers, report)
        return run.finish(report)


@contextmanager
def _reproducible() -> Iterator[None]:
    """On a CPU, sums in a fixed order; on a GPU, where torch has no such order, as it comes."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    memory.fill_uninitialized_memory = False  # costs time and decides nothing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = fill


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The learning rate of a step, counted from 0."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return rate * min(1.0, (step + 1) / max(1, settings.warmup))


class _Run:
    """The parts of a run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        settings: TrainingSettings,
        output: Path,
        data: Path,
        warn: Callable[[str], None],
    ) -> None:
        self.fabric, self.settings, self.output, self.data = fabric, settings, output, data
        self.warn = warn
        found = checkpoint.find(output / "last")
        _check_same(found, settings, output)
        loaded = load_weights(settings.start)
        start = {"name": loaded.name, "sha256": loaded.sha256}
        if found is None:
            found = Standing(settings.to_dict(), start, loaded.normalisation.name)
        elif found.start != start:
            raise OutputError(
                f"{output} holds a run that started from other weights ({found.start['name']}, "
                f"sha256 {found.start['sha256'][:8]}...): choose another output"
            )
        self.standing, self.normalisation = found, loaded.normalisation
        self.whitening = loaded.whitening
        backbone = VGGBackbone()
        backbone.load_state_dict(loaded.state)
        self.learner = Learner(backbone, self.normalisation, settings)
        self._learning = [p for p in self.learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self._learning, lr=settings.learning_rate)
        if found.step:
            checkpoint.restore(output / "last", backbone, self.optimizer)
        self.network, self._step_optimizer = fabric.setup(self.learner, self.optimizer)
        self.watch = Watch()
        self.progress: Progress | None = None
        self._said: set[str] = set()
        self.records = Records(output, found.step) if fabric.is_global_zero else None

    def go(
        self,
        validate: Validate | None,
        workers: int,
        report: Callable[[Progress], None],
    ) -> None:
        """All steps that are left."""
        s, standing = self.settings, self.standing
        draws = Draws(s, self.data, self.fabric.global_rank, self.fabric.world_size)
        before, begun, first, waited = standing.seconds, time.monotonic(), standing.step, 0.0
        if standing.step == 0:
            self._validate(validate)
        recent: list[dict[str, float]] = []
        batches = load(draws, range(standing.step, s.steps), workers)
        while standing.step < s.steps:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            figures = self._step(batch)
            recent = [*recent, figures][-_RECORD_EVERY:]

            now = time.monotonic() - begun
            standing.seconds = before + now
            rate = (standing.step - first) / now
            progress = Progress(
                step=standing.step,
                steps=s.steps,
                loss=_means(recent)["loss"],
                pairs_per_second=rate * s.batch,
                waiting=waited / now,
                seconds_left=(s.steps - standing.step) / rate,
            )
            if standing.step % _RECORD_EVERY == 0:
                self._check_weights()
                speed = {"pairs_per_second": progress.pairs_per_second, "waiting": progress.waiting}
                self._record("train", {**_means(recent), **speed})
            report(progress)
            self.progress = progress
            last = standing.step == s.steps
            if standing.step % s.validate_every == 0 or last:
                self._validate(validate)
            if standing.step % s.save_every == 0 or last:
                self._save()

    def _step(self, batch: Batch) -> dict[str, float]:
        """Learn from one batch; what came out of it."""
        s, standing = self.settings, self.standing
        for problem in batch.problems:
            self._alarm(f"a training pair was left out: {problem}")
        batch = batch.to(self.fabric.device)
        rate = learning_rate(s, standing.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        maps, moved = self.network(batch.images)
        found = objective(maps, batch, s, self._mean)
        figures = {**_figures(found.matching), "moved": float(moved.detach())}
        if found.contrast is not None:
            figures["contrast"] = float(found.contrast.detach())
        self._step_optimizer.zero_grad()
        self.fabric.backward(found.total + s.retention * moved)
        norm = nn.utils.clip_grad_norm_(self._learning, s.clip or math.inf)
        figures |= {
            "gradient": float(norm),
            "learning_rate": rate,
            "empty": float(batch.empty),
        }
        for sentence in self.watch.step(figures):
            self._alarm(sentence)
        self._step_optimizer.step()
        standing.step += 1
        standing.pairs += s.batch
        return figures

    def _mean(self, per_pair: Tensor, usable: Tensor) -> Tensor:
        """Mean over the usable pairs of all processes, as far as this one adds to it.

        Processes average their gradients: each must count for as many pairs as it has usable.
        """
        count: Any = self.fabric.all_reduce(usable.sum(), reduce_op="sum")
        mean: Tensor = per_pair.sum() * (self.fabric.world_size / count.clamp_min(1))
        return mean

    def _check_weights(self) -> None:
        """The loss looks at directions only: it does not see how large the weights become."""
        largest = max(float(p.detach().abs().max()) for p in self._learning)
        if not largest <= torch.finfo(torch.half).max:
            raise TrainingError(
                f"the training diverged: a weight has become {largest:.3g}; start again with a "
                "lower learning_rate or with clip"
            )

    def _validate(self, validate: Validate | None) -> None:
        """Judge the weights as they are; keep them if none were better."""
        if validate is not None and self.fabric.is_global_zero:
            precise = ExtractionSettings(precision=self.settings.precision)
            model = D2Net(VGG(self.learner.backbone, self.normalisation), precise)
            figures = dict(validate(model))
            entry = {"step": self.standing.step, **figures}
            self.standing.validations.append(entry)
            self._record("validation", figures)
            if isinstance(validate, Validation) and self.records and self.records.pictures:
                for name, picture in validate.pictures(model).items():
                    self.records.picture(name, self.standing.step, picture)
            best = self.standing.best
            if best is None or figures["score"] > best["score"]:
                self.standing.best = entry
                self._write(self.output / "best.safetensors")
        self.fabric.barrier()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            checkpoint.save(
                self.output / "last", self.standing, self.learner.backbone, self.optimizer
            )
        self.fabric.barrier()

    def _record(self, kind: str, values: Mapping[str, Any]) -> None:
        if self.records is not None:
            self.records.write(kind, self.standing.step, values)

    def _alarm(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self._record("alarm", {"alarm": sentence})
            self.warn(sentence)

    def finish(self, report: Callable[[Progress], None]) -> Summary:
        """Write the result."""
        weights, best = self.output / "weights.safetensors", self.output / "best.safetensors"
        if self.fabric.is_global_zero:
            self._write(weights)
            if self.settings.whitening:
                if self.progress is not None:
                    report(replace(self.progress, stage="whitening"))
                self._whiten(weights)
                self._whiten_best(best, weights)
        self.fabric.barrier()
        return Summary(weights, best if best.exists() else None, self.standing)

    def _whiten_best(self, best: Path, last: Path) -> None:
        """The best weights, too; where they are the last ones, by a copy of these."""
        if self.standing.best is None or not best.exists():
            return
        if self.standing.best["step"] != self.standing.step:
            self._whiten(best)
            return
        with replacing(best) as temporary:
            shutil.copyfile(last, temporary)

    def _whiten(self, path: Path) -> None:
        try:
            add_whitening(path, self.settings, self.data, str(self.fabric.device))
        except TrainingError as error:  # what was learned so far is worth keeping
            stays = "no whitening" if self.whitening is None else "the whitening of the start"
            self._alarm(f"{path.name} has {stays}: {error}")

    def _write(self, path: Path) -> None:
        s, standing = self.settings, self.standing
        sources = ", ".join(source.path for source in s.trained_on)
        save_weights(
            path,
            self.learner.backbone.state_dict(),
            name=s.name or self.output.resolve().name,
            normalisation=self.normalisation,
            licence=s.licence or f"as of {standing.start['name']} and of the training data",
            training_data=f"{', '.join(s.layers)} of {standing.start['name']} on {sources}",
            whitening=self.whitening,
            notes={
                "start": json.dumps(standing.start),
                "settings": json.dumps(s.to_dict()),
                "steps": str(standing.step),
                "pairs": str(standing.pairs),
            },
        )


def _figures(loss: Loss) -> dict[str, float]:
    """A batch's loss and failure modes as plain numbers."""
    used = loss.usable
    return {
        "loss": float(loss.mean().detach()),
        "usable": float(used.float().mean()),
        "correspondences": float(loss.correspondences.float().mean()),
        "positive": float(loss.positive[used].nanmean()) if used.any() else 0.0,
        "negative": float(loss.negative[used].nanmean()) if used.any() else 0.0,
        "inactive": float(loss.inactive.mean()),
        "peak": float(loss.peak.max()),
        "similarity": float(loss.similarity.mean()),
    }


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _check_same(found: Standing | None, settings: TrainingSettings, output: Path) -> None:
    if found is None:
        return
    before, now = found.settings, settings.to_dict()
    other = [name for name in now if now[name] != before.get(name)]
    if other:
        name = other[0]
        raise OutputError(
            f"{output} holds a run with other settings ({name} was {before.get(name)!r} and is now "
            f"{now[name]!r}): give the same settings to go on, or another output"
        )
