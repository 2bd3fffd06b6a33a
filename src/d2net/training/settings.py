"""Settings of training runs. They are saved with every checkpoint and suffice to repeat the run."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from d2net.errors import InputError
from d2net.networks.vgg_backbone import LAYERS
from d2net.settings import Settings
from d2net.training.loss import Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

R = TypeVar("R", bound="RunSettings")


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
    """Every n-th pair is not trained but validated on. 0: none."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the table: options of the kind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("kind", "path"):
            if not getattr(self, name):
                raise InputError(f'a source needs {name} = "...", and {self.to_table()} has none')
        if not 0 < self.weight < math.inf:
            raise InputError(f"{self.path}: weight must be above 0, not {self.weight}")
        if self.hold_out < 0 or self.hold_out == 1:
            raise InputError(f"{self.path}: hold_out must be 0 or at least 2, not {self.hold_out}")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> SourceSettings:
        """The source that a table describes.

        Raises:
            InputError: it has no kind or no path, or an impossible value.
        """
        own = {item.name for item in fields(cls)} - {"options"}
        options = {name: value for name, value in table.items() if name not in own}
        return cls(**{name: table[name] for name in own if name in table}, options=options)

    def to_table(self) -> dict[str, Any]:
        """The table that describes the source."""
        table = {item.name: getattr(self, item.name) for item in fields(self)}
        options = table.pop("options")
        return {**table, **options}


@dataclass(frozen=True)
class RunSettings(Settings):
    """Settings of any run: its data, its optimizer and its files."""

    sources: tuple[SourceSettings, ...] = ()
    """Sources of the training pairs."""

    validation: tuple[SourceSettings, ...] = ()
    """Sources of the validation pairs, besides those that `sources` hold out. No scene of `sources`
    may be among them."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Share of the pairs that the sources of each part give together. Empty: only the sources'
    weights count."""

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
    """Precision of the convolutions. Weights, loss and optimizer are always float32. (release:
    float32)"""

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

    licence: str = ""
    """Licence of the weights. Empty: stated to be that of the starting weights and of the training
    data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("crop", "batch", "steps", "validate_every", "validation_pairs", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "decay", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, not {value}")
        if self.crop % 8:
            raise InputError(f"crop must be a multiple of 8 pixels, not {self.crop}")
        for part, share in self.shares.items():
            if not (isinstance(share, int | float) and 0 < share < math.inf):
                raise InputError(f"the share of {part!r} must be a number above 0, not {share!r}")
        for source in self.sources if self.shares else ():
            if source.part not in self.shares:
                raise InputError(
                    f"the source {source.path} belongs to the part {source.part!r}, which has no "
                    f"share; there are {', '.join(self.shares)}"
                )

    def updated(self: R, **changes: Any) -> R:  # noqa: ANN401 (any field's type)
        """A copy with some settings changed. Lists and tables of sources are accepted."""
        for name, value in changes.items():
            if name in ("sources", "validation"):
                changes[name] = tuple(
                    entry if isinstance(entry, SourceSettings) else SourceSettings.from_table(entry)
                    for entry in value
                )
            elif isinstance(value, list):
                changes[name] = tuple(value)
        return super().updated(**changes)

    @classmethod
    def from_file(cls: type[R], path: Path) -> R:
        """Settings from a TOML file; settings that it does not name keep their defaults.

        Raises:
            InputError: no such file, no TOML, or an unknown or impossible setting.
        """
        values = read_toml(path)
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values; `from_dict` gives the same settings again."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("sources", "validation"):
            values[name] = [source.to_table() for source in values[name]]
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**values, "shares": dict(self.shares)}.items()
        }

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
    """The values of a TOML file.

    Raises:
        InputError: no such file, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the configuration {path} is no TOML: {error}") from error


@dataclass(frozen=True)
class TrainingSettings(RunSettings):
    """Settings of a supervised run. Defaults are the paper's (section 4.1) and its release's."""

    layers: tuple[str, ...] = ("conv4_3",)
    """Layers that are trained: the last ones, without a gap. (release: conv4_3)"""

    stride: int = 8
    """Stride of the maps that the loss is computed on: 8, or 4 as in extraction. (release: 8)"""

    sampling: Sampling = "cells"
    """Where scores and descriptors are sampled: at the nearest cell, or bilinear at the point.
    (release: cells)"""

    contrast: float = 0.0
    """Weight of `contrastive_loss`, which compares descriptors at corners. 0: off. (release:
    none)"""

    retention: float = 0.0
    """Weight of a term that keeps descriptors near those of the starting weights: the mean of
    1 - cosine over all cells. 0: off. (release: none)"""

    whitening: int = 0
    """Number of pairs from which the whitening of descriptors is learned after the last step; see
    `learn_whitening`. 0: the whitening of the starting weights is kept, if they have one.
    (release: none)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contrast", "retention", "whitening"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.stride not in (4, 8):
            raise InputError(f"stride must be 4 or 8, not {self.stride}")
        if not self.layers or self.layers != LAYERS[-len(self.layers) :]:
            raise InputError(
                f"layers must be the last ones of {LAYERS[0]} to {LAYERS[-1]} in order, such as "
                f'["conv4_2", "conv4_3"], not {list(self.layers)}'
            )


@dataclass(frozen=True)
class TeacherSettings(Settings):
    """A teacher: a [[teachers]] table of a configuration."""

    name: str = ""
    """A name that `d2net weights` lists, a weights file, or aliked-n16:FILE or aliked-n16rot:FILE
    with ALIKED's weights. Files are relative to the folder of the data."""

    weight: float = 1.0
    """Weight of its descriptors in the concatenation of all teachers' descriptors."""

    keypoints: int = 0
    """Number of its keypoints per photo that are taught. 0: it teaches descriptors only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < math.inf or self.keypoints < 0:
            raise InputError(
                f"the teacher {self.name!r} needs a weight above 0 and 0 or more keypoints, not "
                f"{self.weight} and {self.keypoints}"
            )


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
    """Widths of the network, see `LightSettings`. Empty: those of the packaged weights."""

    weight_decay: float = 1e-4
    """Weight decay of the kernels."""

    averaging: float = 0.999
    """Factor of the moving average of the weights, which is what is saved."""

    cosine: float = 1.0
    """Weight of the term that compares each descriptor with its teacher's by their cosine."""

    score: float = 3.0
    """Weight of the score's cross-entropy."""

    floor: float = 0.2
    """Share of the teachers' score that a keypoint keeps as its target when it is not matched
    right between the two crops."""

    min_distance: float = 3.0
    """Points of a photo nearer than this are no negatives of each other, pixels."""

    photo_edge: int = 512
    """Photos with a longer edge are reduced for teachers and student, pixels."""

    random_points: int = 100
    """Number of random points per photo that are described besides the keypoints."""

    points: int = 256
    """Maximum number of points of a pair whose descriptors are compared."""

    min_share: float = 0.36
    """Smallest edge of a crop, as a share of the photo's shorter edge."""

    max_share: float = 1.1
    """Largest edge of a crop, as a share of the photo's shorter edge."""

    turns: tuple[float, ...] = (20.0, 60.0, 180.0)
    """Maximum rotations of a crop, degrees."""

    turn_shares: tuple[float, ...] = (0.6, 0.3, 0.1)
    """How often each of `turns` is the maximum; the sum is 1."""

    perspective: float = 0.2
    """Maximum shift of a crop's corner as a share of half its edge."""

    other_photo: float = 0.65
    """How often a crop is cut from another photo of the same view, where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(teacher.keypoints for teacher in self.teachers):
            raise InputError("distillation needs [[teachers]], one of them with keypoints above 0")
        if self.crop % 32:
            raise InputError(f"crop must be a multiple of 32 pixels, not {self.crop}")
        if len(self.turns) != len(self.turn_shares) or abs(sum(self.turn_shares) - 1) > 1e-6:
            raise InputError("turn_shares must have one number for each of turns, of the sum 1")
        if not 0 < self.min_share <= self.max_share < 2:
            raise InputError(
                "min_share must be above 0 and at most max_share, which must be below 2, not "
                f"{self.min_share} and {self.max_share}"
            )
        if any(source.hold_out for source in self.sources):
            raise InputError("hold_out is not for distillation: name sources in validation")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DistillationSettings:
        """Settings from names and values. Lists and tables of sources and teachers are accepted."""
        tables = values.get("teachers", ())
        teachers = tuple(TeacherSettings.from_dict(table) for table in tables)
        return cls(teachers=teachers).updated(**{**values, "teachers": teachers})

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values; `from_dict` gives the same settings again."""
        teachers = [teacher.to_dict() for teacher in self.teachers]
        return {**super().to_dict(), "teachers": teachers, "student": dict(self.student)}
