"""Settings of training runs. They are saved with every checkpoint and suffice to repeat the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from d2net.errors import InputError
from d2net.io.atomic import check_regular
from d2net.networks.vgg_backbone import LAYERS
from d2net.settings import Settings
from d2net.training.loss import Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

R = TypeVar("R", bound="RunSettings")

MIN_PHOTO_EDGE = 32  # in pixels; teachers see no smaller photos, whose maps would be empty


@dataclass(frozen=True)
class SourceSettings(Settings):
    """A source of training pairs: a [[sources]] or [[validation]] table of a configuration."""

    kind: str = ""
    """Kind of the source: colmap, photos, aligned, ..."""

    path: str = ""
    """Folder or file, relative to the folder of the data."""

    part: str = ""
    """Entry of `shares` that the source belongs to."""

    weight: float = 1.0
    """How often the source is drawn from, relative to the others of its part."""

    group: str = ""
    """Group of the source's licence, for selection by `groups`."""

    hold_out: int = 0
    """Every n-th pair is used for validation instead of training. 0: none."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the table: options of the kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kind", "path"):
            if not getattr(self, name):
                raise InputError(f'a source needs {name} = "...", and {self.to_dict()} has none')
        if not 0 < self.weight < math.inf:
            raise InputError(f"{self.path}: weight must be above 0, not {self.weight}")
        if self.hold_out < 0 or self.hold_out == 1:
            raise InputError(f"{self.path}: hold_out must be 0 or at least 2, not {self.hold_out}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SourceSettings:
        """The source that a table describes."""
        own = {item.name for item in fields(cls)} - {"options"}
        options = {name: value for name, value in values.items() if name not in own}
        return cls(**{name: values[name] for name in own if name in values}, options=options)

    def to_dict(self) -> dict[str, Any]:
        """The table that describes the source."""
        table = super().to_dict()
        return {**table.pop("options"), **table}


@dataclass(frozen=True)
class TeacherSettings(Settings):
    """A teacher: a [[teachers]] table of a configuration."""

    name: str = ""
    """A name that `d2net weights` lists, a weights file, or aliked-n16:FILE or aliked-n16rot:FILE
    with ALIKED's weights. Files are relative to the folder of the data."""

    weight: float = 1.0
    """Weight of its descriptors in the concatenation of all teachers' descriptors."""

    keypoints: int = 0
    """Number of its keypoints per photo that the student learns. 0: descriptors only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < math.inf or self.keypoints < 0:
            raise InputError(
                f"the teacher {self.name!r} needs a weight above 0 and 0 or more keypoints, not "
                f"{self.weight} and {self.keypoints}"
            )


_TABLES: dict[str, type[Settings]] = {
    "sources": SourceSettings,
    "validation": SourceSettings,
    "teachers": TeacherSettings,
}


@dataclass(frozen=True)
class RunSettings(Settings):
    """Settings of any run: its data, its optimizer and its files."""

    sources: tuple[SourceSettings, ...] = ()
    """Sources of the training pairs."""

    validation: tuple[SourceSettings, ...] = ()
    """Sources of the validation pairs, besides those that `sources` hold out. They should show
    other scenes than `sources`."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the pairs that the sources of each part give together. Empty: only weights count."""

    groups: tuple[str, ...] = ()
    """Only sources of these groups are used, for training and validation. Empty: all."""

    start: str = "ots"
    """Starting weights: a name that `d2net weights` lists, or a file."""

    crop: int = 256
    """Edge of the square crops in pixels, a multiple of 8. (release: 256)"""

    batch: int = 1
    """Pairs per step, of all processes together. (release: 1)"""

    steps: int = 117_000
    """Steps of the optimizer. (release: 10 epochs of 100 pairs in each of 117 scenes)"""

    learning_rate: float = 1e-3
    """Learning rate of Adam, with its usual moments (0.9, 0.999). (release: 1e-3)"""

    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate: constant, or cosine decay to 0. (release: constant)"""

    warmup: int = 0
    """Steps in which the learning rate rises linearly from 0. (release: none)"""

    decay: int = 0
    """Last steps in which the learning rate falls linearly to 0. (release: none)"""

    clip: float | None = None
    """Maximum norm of the gradient; None for no limit. (release: none)"""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the convolutions. All else is always float32. (release: float32)"""

    seed: int = 1
    """Decides which pairs are drawn. (release: 1)"""

    validate_every: int = 1000
    """Steps between two validations. There is one before the first and one after the last step."""

    validation_pairs: int = 16
    """Number of fixed pairs that are drawn once from each validation source."""

    save_every: int = 200
    """Steps between two checkpoints."""

    name: str = ""
    """Name of the weights. Empty: the name of the output folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, "crop", "batch", "steps")
        self.check_least(1, "validate_every", "validation_pairs", "save_every")
        self.check_least(0, "warmup", "decay", "seed")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, not {value}")
        if self.crop % 8:
            raise InputError(f"crop must be a multiple of 8 pixels, not {self.crop}")
        for part, share in self.shares.items():
            if not 0 < share < math.inf:
                raise InputError(f"the share of {part!r} must be a number above 0, not {share!r}")
        for source in self.sources if self.shares else ():
            if source.part not in self.shares:
                raise InputError(
                    f"the source {source.path} belongs to the part {source.part!r}, which has no "
                    f"share; there are {', '.join(self.shares)}"
                )

    @classmethod
    def from_dict(cls: type[R], values: Mapping[str, Any]) -> R:
        """Settings from names and values, with lists and tables as in a TOML file."""
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise InputError(f"unknown setting {name!r}; known are {', '.join(sorted(known))}")

        def read(name: str, value: Any) -> Any:  # noqa: ANN401 (any field's type)
            if name not in _TABLES:
                return tuple(value) if isinstance(value, list) else value
            if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
                found = f"[{name}]" if isinstance(value, dict) else repr(value)
                raise InputError(f"{name} must be tables, each headed [[{name}]], not {found}")
            return tuple(_TABLES[name].from_dict(table) for table in value)

        return cls(**{name: read(name, value) for name, value in values.items()})

    def updated(self: R, **changes: Any) -> R:  # noqa: ANN401 (any field's type)
        """A copy with some settings changed, given as in `from_dict`."""
        return self.from_dict({**self.to_dict(), **changes})

    @classmethod
    def from_file(cls: type[R], path: Path) -> R:
        """Settings from a TOML file; settings that it does not name keep their defaults."""
        values = read_toml(path)
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values; `from_dict` gives the same settings again."""
        values = super().to_dict()
        for name, value in values.items():
            if name in _TABLES:
                values[name] = [table.to_dict() for table in getattr(self, name)]
            elif isinstance(value, tuple):
                values[name] = list(value)
        return values

    @property
    def training_sources(self) -> tuple[SourceSettings, ...]:
        """The sources of `sources` whose group is selected."""
        return self._of_groups(self.sources)

    @property
    def validation_sources(self) -> tuple[SourceSettings, ...]:
        """The sources of `validation` whose group is selected, and those that hold pairs out."""
        held_out = tuple(source for source in self.training_sources if source.hold_out)
        return self._of_groups(self.validation) + held_out

    def _of_groups(self, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        return tuple(s for s in sources if not self.groups or s.group in self.groups)

    def source_weights(self) -> list[float]:
        """How often each training source is drawn from: its share within the share of its part.

        If no source of a part is selected, its share goes to the other parts.
        """
        sources = self.training_sources
        if not self.shares:
            return [source.weight for source in sources]
        total = {
            part: sum(source.weight for source in sources if source.part == part)
            for part in self.shares
        }
        return [self.shares[s.part] * s.weight / total[s.part] for s in sources]


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    try:
        check_regular(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the configuration {path} is not TOML: {error}") from error


@dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """Settings of a supervised run. Defaults are the paper's (section 4.1) and its release's."""

    layers: tuple[str, ...] = ("conv4_3",)
    """Layers that are trained: the last ones, without a gap. (release: conv4_3)"""

    sampling: Sampling = "cells"
    """Where scores and descriptors are sampled: nearest cell, or bilinear. (release: cells)"""

    contrast: float = 0.0
    """Weight of `contrastive_loss`, of descriptors at corners. 0: off. (release: none)"""

    whitening: int = 0
    """Number of pairs from which the whitening of descriptors is learned after the last step; see
    `learn_whitening`. 0: keep that of the starting weights, if any. (release: none)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(0, "contrast", "whitening")
        if not self.layers or self.layers != LAYERS[-len(self.layers) :]:
            raise InputError(
                f"layers must be the last ones of {LAYERS[0]} to {LAYERS[-1]} in order, such as "
                f'["conv4_2", "conv4_3"], not {list(self.layers)}'
            )


@dataclass(frozen=True)
class FineTuningSettings(RunSettings):
    """Settings of a run that fine-tunes the network light."""

    objective: Literal["light"] = "light"
    """Marks a recipe for the network light."""

    start: str = "light"
    crop: int = 320
    batch: int = 4
    steps: int = 1000
    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: int = 50
    clip: float | None = 5.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    points: int = 160
    """Maximum number of correspondences of a pair."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(2, "points")


@dataclass(frozen=True)
class DistillationSettings(RunSettings):
    """Settings of a run that trains the network light to imitate teachers."""

    start: str = "none"
    """Starting weights of the network light: a name, a file, or none for random ones."""

    batch: int = 4
    learning_rate: float = 2e-3
    warmup: int = 200
    clip: float | None = 5.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    teachers: tuple[TeacherSettings, ...] = ()
    """The teachers; at least one teaches keypoints."""

    student: Mapping[str, Any] = field(default_factory=dict)
    """Widths of the network, see `LightSettings`. Empty: the widths of the packaged weights."""

    photo_edge: int = 512
    """Longest edge in pixels; larger photos are reduced for teachers and student."""

    points: int = 256
    """Maximum number of points of a pair whose descriptors are compared."""

    other_photo: float = 0.65
    """Probability that a crop is cut from another photo of the same view, if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(teacher.keypoints for teacher in self.teachers):
            raise InputError("distillation needs [[teachers]], one of them with keypoints above 0")
        if self.crop % 32:
            raise InputError(f"crop must be a multiple of 32 pixels, not {self.crop}")
        if not all(teacher.name for teacher in self.teachers):
            raise InputError('each of [[teachers]] needs name = "...": weights by name or file')
        self.check_least(1, "points")
        self.check_least(MIN_PHOTO_EDGE, "photo_edge")
        if any(source.hold_out for source in self.sources):
            raise InputError("hold_out is not for distillation: name sources in validation")


@dataclass(frozen=True)
class MatcherTrainingSettings(RunSettings):
    """Settings of a run that trains a matcher. `start` is the network that makes the features."""

    objective: Literal["matcher"] = "matcher"
    """Marks a recipe for a matcher."""

    matcher: str = ""
    """Name or file of the matcher to start from. Empty: a new one."""

    widths: Mapping[str, Any] = field(default_factory=dict)
    """Width, heads and layers of a new matcher, see `MatcherSettings`."""

    pairs: int = 4000
    """Number of training pairs whose features are extracted once and stored."""

    keypoints: int = 900
    """Maximum number of keypoints of a stored crop."""

    step_keypoints: int = 448
    """Maximum number of keypoints of a part of a crop, as a step sees it."""

    different: float = 0.2
    """Share of pairs of different places, which have no matches. They are made of two pairs whose
    photos lie in the folders of different sources."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, "pairs", "keypoints", "step_keypoints")
        if not 0 <= self.different < 1:
            raise InputError(f"different must be at least 0 and below 1, not {self.different}")
