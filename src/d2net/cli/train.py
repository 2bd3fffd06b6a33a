"""`d2net train` and `d2net distill`: weights from photos."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from d2net.cli import console, options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.training.loop import TrainingResult
    from d2net.training.matcher import MatcherTrainingSettings
    from d2net.training.settings import TrainingSettings

_recipe = partial(typer.Option, rich_help_panel="Recipe")

_Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.")
]
_Start: TypeAlias = Annotated[
    str | None, _recipe("--from", metavar="NAME|FILE", help="Weights to start from.")
]
_Steps: TypeAlias = Annotated[int | None, _recipe(metavar="N", help="Number of training steps.")]
_Batch: TypeAlias = Annotated[int | None, _recipe(metavar="N", help="Pairs per step.")]
_LearningRate: TypeAlias = Annotated[
    float | None, _recipe(metavar="R", help="The optimizer's learning rate.")
]
_Seed: TypeAlias = Annotated[int | None, _recipe(metavar="N", help="Seed of all random samples.")]
_Workers: TypeAlias = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Processes that prepare training pairs; 0 uses this process."
    ),
]


def train(
    *,
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="Folder with a COLMAP model and its photos, with aligned photos, or with any "
            "photos; with --config the folder of its sources.",
        ),
    ] = None,
    output: _Output,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A recipe (toml).", show_default="the recipe for own photos"
        ),
    ] = None,
    start: _Start = None,
    steps: _Steps = None,
    minutes: Annotated[
        float | None,
        _recipe(metavar="M", help="Train for about M minutes, instead of a number of steps."),
    ] = None,
    batch: _Batch = None,
    learning_rate: _LearningRate = None,
    layers: Annotated[
        str | None, _recipe(metavar="NAMES", help="Layers to train, such as conv4_2,conv4_3.")
    ] = None,
    seed: _Seed = None,
    device: options.Device = "auto",
    workers: _Workers = 1,
    printing: options.Printing,
) -> None:
    """Train weights, or adapt them to your own photos; with a recipe for it, train a matcher.

    Options of the panel Recipe replace values of the recipe. The result is
    RUN/weights.safetensors, for `--weights` of the other commands. A run that was stopped continues
    when the same command is started again.
    """
    if data is None and config is None:
        raise InputError(
            "give a folder of photos, or --config FILE: d2net train PHOTOS --output RUN"
        )
    if steps is not None and minutes is not None:
        raise InputError("give --steps or --minutes, not both")

    from d2net.cli import progress
    from d2net.training.matcher import MatcherTrainingSettings, train_matcher
    from d2net.training.supervised import train as train_network

    printing = _printing_of_one_process(printing)
    device = options.find_device(device, printing)
    changes = {
        "start": start,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "layers": None if layers is None else [name.strip() for name in layers.split(",")],
        "seed": seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    settings = _recipe_of(config, data).updated(**given)
    folder = data if data is not None else Path(config or "").parent
    with progress.shown(printing) as report:
        if isinstance(settings, MatcherTrainingSettings):
            if minutes is not None:
                raise InputError("--minutes is not for matchers: give --steps")
            result = train_matcher(
                settings, output, data=folder, device=device, workers=workers, progress=report
            )
        else:
            if minutes is not None:
                settings = _settings_for_minutes(minutes, settings, folder, output, device, workers)
            result = train_network(
                settings, output, data=folder, device=device, workers=workers, progress=report
            )
    printing.result(_values(result), *_lines(result))


def distill(
    *,
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of the recipe's sources and teachers.")
    ],
    output: _Output,
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="A recipe (toml), such as configs/light.toml.")
    ],
    start: _Start = None,
    steps: _Steps = None,
    batch: _Batch = None,
    learning_rate: _LearningRate = None,
    seed: _Seed = None,
    device: options.Device = "auto",
    workers: _Workers = 1,
    printing: options.Printing,
) -> None:
    """Train the small network light to imitate larger ones.

    The teachers look at every photo first; their outputs are stored in RUN/teachers. Then it is as
    with `d2net train`: the result is RUN/weights.safetensors, and a run that was stopped continues
    when the same command is started again.
    """
    from d2net.cli import progress
    from d2net.training.distillation import distill as run
    from d2net.training.settings import DistillationSettings

    printing = _printing_of_one_process(printing)
    device = options.find_device(device, printing)
    changes = {
        "start": start,
        "steps": steps,
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    settings = DistillationSettings.from_file(config).updated(**given)
    with progress.shown(printing) as report:
        result = run(settings, output, data=data, device=device, workers=workers, progress=report)
    printing.result(_values(result), *_lines(result))


def _printing_of_one_process(printing: options.Printing) -> options.Printing:
    """Only the first of torchrun's processes prints."""
    return printing if os.environ.get("RANK", "0") == "0" else options.Printing(quiet=True)


def _recipe_of(
    config: Path | None, data: Path | None
) -> TrainingSettings | MatcherTrainingSettings:
    from d2net.training.recipes import read_recipe, settings_for_photos

    return settings_for_photos(data or Path()) if config is None else read_recipe(config)


def _settings_for_minutes(
    minutes: float, settings: TrainingSettings, data: Path, output: Path, device: str, workers: int
) -> TrainingSettings:
    """The settings for the minutes; a run that is resumed keeps those that it began with."""
    from d2net.training.recipes import settings_for_minutes
    from d2net.training.state import load_state

    state = load_state(output / "last")
    if state is not None:
        kept = {name: state.settings[name] for name in ("steps", "whitening")}
        return settings.updated(**kept)
    return settings_for_minutes(minutes, settings, data=data, device=device, workers=workers)


def _values(result: TrainingResult) -> dict[str, Any]:
    state = result.state
    return {
        "weights": str(result.weights),
        "best": None if result.best is None else str(result.best),
        "steps": state.step,
        "pairs": state.pairs,
        "seconds": state.seconds,
        "validations": state.validations,
    }


def _lines(result: TrainingResult) -> list[str]:
    state = result.state
    lines = [
        f"{state.pairs:,} pairs in {state.step:,} steps and {state.seconds / 60:.1f} "
        f"minutes: {result.weights}"
    ]
    if state.validations:
        names = [n for n in state.validations[0] if n not in ("step", "score") and "/" not in n]
        rows = [("", *names)]
        marked = [("before", state.validations[0]), ("after", state.validations[-1])]
        best = state.best
        if best is not None and best["step"] not in (0, state.step):
            marked.insert(1, (f"best, step {best['step']}", best))
        rows += [(label, *(f"{row[name]:.3f}" for name in names)) for label, row in marked]
        lines += ["", "On pairs that were not trained on:", *console.columns(rows)]
    return lines
