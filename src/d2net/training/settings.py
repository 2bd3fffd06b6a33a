"""What a training run does, complete enough to do it again; saved with every checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from d2net.errors import InputError
from d2net.networks.checkpoint import SHAPES
from d2net.settings import Settings
from d2net.training.loss import Sampling

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAYERS = tuple(name.removesuffix(".weight") for name in SHAPES if name.endswith(".weight"))
"""conv1_1 to conv4_3."""

Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class SourceSettings:
    """Where some of the pairs come from: a [[sources]] table of a configuration."""

    kind: str
    """What it is, as `d2net data` lists: colmap, photos, aligned, ..."""

    path: str
    """Folder or file, relative to the folder of the data."""

    part: str = ""
    """To which entry of `shares` it belongs."""

    weight: float = 1.0
    """How often it is drawn from, relative to the others of its part."""

    group: str = ""
    """Under which licence its data are, to be chosen by `groups`."""

    hold_out: int = 0
    """Every so many-th pair is not trained but validated on, as 5 for a fifth; 0: none."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the table says: options of its kind."""

    def __post_init__(self) -> None:
        if not (isinstance(self.weight, int | float) and 0 < self.weight < math.inf):
            raise InputError(f"{self.path}: weight must be a number above 0, not {self.weight!r}")
        if not isinstance(self.hold_out, int) or self.hold_out < 0 or self.hold_out == 1:
            raise InputError(
                f"{self.path}: hold_out must be 0, or 2 or more for every second pair or fewer, "
                f"not {self.hold_out!r}"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> SourceSettings:
        """The source that a table describes.

        Raises:
            InputError: it has no kind or no path.
        """
        for name in ("kind", "path"):
            if not isinstance(table.get(name), str):
                raise InputError(f'a source needs {name} = "...", and {dict(table)} has none')
        own = {f.name for f in fields(cls)} - {"options"}
        options = {name: value for name, value in table.items() if name not in own}
        return cls(**{name: table[name] for name in own if name in table}, options=options)

    def to_table(self) -> dict[str, Any]:
        """The table that describes it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        return {**own, **self.options}

    @property
    def specification(self) -> dict[str, Any]:
        """What `open_source` takes, the path still relative."""
        return {"kind": self.kind, "path": self.path, **self.options}


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How weights are trained. The defaults are the paper's (section 4.1) and its release's."""

    sources: tuple[SourceSettings, ...] = ()
    """Where training pairs come from."""

    validation: tuple[SourceSettings, ...] = ()
    """Where fixed pairs come from on which weights are judged, besides what `sources` hold out;
    no place of `sources`."""

    shares: Mapping[str, float] = field(default_factory=dict)
    """Part -> share of the pairs that its sources give together. Empty: weights alone count."""

    groups: tuple[str, ...] = ()
    """Groups of sources that take part, of those in training and validation; empty: all."""

    start: str = "ots"
    """Weights to start from: a name that `d2net weights` lists, or a file."""

    layers: tuple[str, ...] = ("conv4_3",)
    """Layers that are trained, the last ones without a gap. (release: conv4_3)"""

    crop: int = 256
    """Edge of the square crops in pixels, a multiple of 8. (release: 256)"""

    batch: int = 1
    """Pairs per step, of all processes together. (release: 1)"""

    steps: int = 117_000
    """Steps of the optimizer. (release: 10 epochs of 100 pairs in each of 117 scenes)"""

    learning_rate: float = 1e-3
    """Of Adam, with its usual moments (0.9, 0.999). (release: 1e-3)"""

    schedule: Schedule = "constant"
    """Of the learning rate: constant, or falling to 0 like half a cosine. (release: constant)"""

    warmup: int = 0
    """Steps in which the learning rate rises linearly from 0. (release: none)"""

    clip: float | None = None
    """Largest norm of the gradient; None for no limit. (release: none)"""

    stride: int = 8
    """Of the maps that the loss sees: 8, or 4 as at extraction. (release: 8)"""

    sampling: Sampling = "cells"
    """Scores and descriptors at the nearest cell, or bilinear at the point. (release: cells)"""

    contrast: float = 0.0
    """Weight of `contrast.contrastive_loss`, which compares descriptors at corners, beside the
    paper's loss. 0: off. (release: none)"""

    retention: float = 0.0
    """Weight of the mean of 1 - cosine between a cell's descriptor and the one that the starting
    weights give it, so that nothing is forgotten. 0: off. (release: none)"""

    whitening: int = 0
    """Pairs from which, after the last step, the whitening of descriptors is learned; see
    `whitening.learn_whitening`. 0: it stays the starting weights', if they have one. (release:
    none)"""

    precision: Precision = "float32"
    """Of the convolutions; weights, loss and optimizer are always float32. (release: float32)"""

    seed: int = 1
    """Decides every pair that is drawn. (release: 1)"""

    validate_every: int = 1000
    """Steps between two validations; there is one before the first and after the last step."""

    validation_pairs: int = 16
    """Fixed pairs drawn once from each source that is validated on."""

    save_every: int = 200
    """Steps between two checkpoints."""

    name: str = ""
    """What the weights are called; empty: as the output folder."""

    licence: str = ""
    """Under which the weights may be used; empty: said to be as the starting weights' and the
    training data's."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("crop", "batch", "steps", "validate_every", "validation_pairs", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "contrast", "retention", "whitening", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be above 0, not {value}")
        if self.crop % 8:
            raise InputError(f"crop must be a multiple of 8 pixels, not {self.crop}")
        if self.stride not in (4, 8):
            raise InputError(f"stride must be 4 or 8, not {self.stride}")
        if not self.layers or self.layers != LAYERS[-len(self.layers) :]:
            raise InputError(
                f"layers must be the last ones of {LAYERS[0]} to {LAYERS[-1]} in order, as "
                f'["conv4_2", "conv4_3"], not {list(self.layers)}'
            )
        _check_parts(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Settings from names and plain values, as in a file; an unknown name is an InputError."""
        return cls().updated(**values)

    def updated(self, **changes: Any) -> TrainingSettings:  # noqa: ANN401 (any field's type)
        """The same settings with some changed; tables of sources and lists are understood too."""
        for name in ("sources", "validation"):
            if name in changes:
                changes[name] = tuple(
                    entry if isinstance(entry, SourceSettings) else SourceSettings.from_table(entry)
                    for entry in changes[name]
                )
        for name in ("layers", "groups"):
            if isinstance(changes.get(name), list):
                changes[name] = tuple(changes[name])
        return super().updated(**changes)

    @classmethod
    def from_file(cls, path: Path) -> TrainingSettings:
        """Settings from a TOML file; what it does not name keeps its default.

        Raises:
            InputError: no such file, no TOML, or an unknown or impossible setting.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the configuration {path} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"the configuration {path} is no TOML: {error}") from error
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Names and plain values; `from_dict` gives the same settings again."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("sources", "validation"):
            values[name] = [source.to_table() for source in values[name]]
        values.update(layers=list(self.layers), groups=list(self.groups), shares=dict(self.shares))
        return values

    @property
    def trained_on(self) -> tuple[SourceSettings, ...]:
        """The sources whose group takes part."""
        return self._chosen(self.sources)

    @property
    def validated_on(self) -> tuple[SourceSettings, ...]:
        """Those of `validation` likewise, and the sources that hold pairs out."""
        held_out = tuple(source for source in self.trained_on if source.hold_out)
        return self._chosen(self.validation) + held_out

    def _chosen(self, sources: tuple[SourceSettings, ...]) -> tuple[SourceSettings, ...]:
        return tuple(s for s in sources if not self.groups or s.group in self.groups)

    def weights(self, sources: tuple[SourceSettings, ...]) -> list[float]:
        """How often each of `sources` is drawn from: its part's share, by its weight in the part.

        A part of which no source takes part leaves its share to the others.
        """
        if not self.shares:
            return [source.weight for source in sources]
        total = {
            part: sum(source.weight for source in sources if source.part == part)
            for part in self.shares
        }
        return [self.shares[s.part] * s.weight / total[s.part] for s in sources]


def _check_types(settings: TrainingSettings) -> None:
    """Refuse values that a file may hold but a field cannot, as text for a number."""
    hints = get_type_hints(TrainingSettings)
    for item in fields(settings):
        value, hint = getattr(settings, item.name), hints[item.name]
        choices = get_args(hint) if item.name in ("schedule", "sampling", "precision") else ()
        if choices and value not in choices:
            raise InputError(f"{item.name} must be {' or '.join(choices)}, not {value!r}")
        expected: Any = {
            int: int,
            float: int | float,
            str: str,
            float | None: int | float | None,
        }.get(hint, object)
        if not isinstance(value, expected) or isinstance(value, bool):
            kind = getattr(hint, "__name__", str(hint))
            raise InputError(f"{item.name} must be {kind}, not {value!r}")


def _check_parts(settings: TrainingSettings) -> None:
    if not settings.shares:
        return
    for part, share in settings.shares.items():
        if not (isinstance(share, int | float) and 0 < share < math.inf):
            raise InputError(f"the share of {part!r} must be a number above 0, not {share!r}")
    for source in settings.sources:
        if source.part not in settings.shares:
            raise InputError(
                f"the source {source.path} belongs to the part {source.part!r}, which has no "
                f"share; there are {', '.join(settings.shares)}"
            )
