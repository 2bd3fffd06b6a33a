"""`d2net train` and `d2net distill`: weights from photos."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2net.cli import console, options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.training.recipes import AnySettings


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of both commands; those of the panel Recipe replace values of the recipe.

    Recipe:
        from_ NAME|FILE: Weights to start from.
        steps N: Number of training steps.
        batch N: Pairs per step.

    Options:
        workers N: Processes that prepare training pairs; 0 uses this process.
    """

    from_: str | None = None
    steps: int | None = None
    batch: int | None = None
    device: str = "auto"
    workers: int = 1

    @property
    def changes(self) -> dict[str, Any]:
        """The values of the recipe that are replaced."""
        values = {"start": self.from_, "steps": self.steps, "batch": self.batch}
        return {name: value for name, value in values.items() if value is not None}

    def run(
        self, settings: AnySettings, output: Path, data: Path, printing: options.Printing
    ) -> None:
        """Train, and print the result."""
        from d2net.cli import progress
        from d2net.training.recipes import train

        if self.workers < 0:
            raise InputError(f"--workers must be 0 or more, not {self.workers}")
        if os.environ.get("RANK", "0") != "0":  # only the first of torchrun's processes prints
            printing = options.Printing(quiet=True)
        device = options.find_device(self.device, printing)
        with progress.shown(printing) as report:
            result = train(
                settings, output, data=data, device=device, workers=self.workers, progress=report
            )
        state = result.state
        values = {
            "weights": str(result.weights),
            "best": None if result.best is None else str(result.best),
            "steps": state.step,
            "pairs": state.pairs,
            "seconds": state.seconds,
            "validations": state.validations,
        }
        line = (
            f"{state.pairs:,} pairs in {state.step:,} steps and {state.seconds / 60:.1f} minutes: "
            f"{result.weights}"
        )
        printing.result(values, line, *_validation_lines(state.validations))


def train(
    data: Path | None = None,
    *,
    output: Path,
    config: Path | None = None,
    training: Training,
    printing: options.Printing,
) -> None:
    """Train weights or a matcher, or adapt weights to your photos.

    A recipe says what is trained and how; the options under Recipe replace its values. Without
    --config, the weights seasons are adapted, or those that --from names, such as light. Give the
    result, RUN/weights.safetensors, to the other commands as --weights, or a matcher as --matcher.
    If you trained a VGG, --weights light+RUN/weights.safetensors lets light detect the keypoints.
    Run the same command again to resume an interrupted run.

    Options:
        data DATA: Folder with a COLMAP model and its photos, with aligned photos, or with any
            photos; with --config the folder of its sources.
        output RUN: Folder of the run.
        config FILE: A recipe (toml), see configs.
    """
    if data is None and config is None:
        raise InputError(
            "give a folder of photos, or --config FILE: d2net train PHOTOS --output RUN"
        )
    from d2net.training.recipes import read_recipe, settings_for_photos

    settings: AnySettings
    if config is None:
        settings = settings_for_photos(data or Path(), **training.changes)
    else:
        settings = read_recipe(config).updated(**training.changes)
    training.run(settings, output, data or Path(config or "").parent, printing)


def distill(
    data: Path, *, output: Path, config: Path, training: Training, printing: options.Printing
) -> None:
    """Train the small network light to imitate larger ones.

    The teachers run on every photo first; their outputs go to RUN/teachers. The result is
    RUN/weights.safetensors. Run the same command again to resume an interrupted run.

    Options:
        data DATA: Folder of the recipe's sources and teachers.
        output RUN: Folder of the run.
        config FILE: A recipe (toml), such as configs/light.toml.
    """
    from d2net.training.settings import DistillationSettings

    settings = DistillationSettings.from_file(config).updated(**training.changes)
    training.run(settings, output, data, printing)


def _validation_lines(validations: list[dict[str, float]]) -> list[str]:
    if not validations:
        return []
    names = [name for name in validations[0] if name not in ("step", "score") and "/" not in name]
    marked = [("before", validations[0]), ("after", validations[-1])]
    rows = [(label, *(f"{row[name]:.3f}" for name in names)) for label, row in marked]
    return ["", "On pairs that were not trained on:", *console.columns([("", *names), *rows])]
