"""Settings: from a file and back, and impossible ones refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2net.errors import InputError
from d2net.networks.light import LightSettings
from d2net.networks.matcher import MatcherSettings
from d2net.training.recipes import read_recipe
from d2net.training.settings import (
    DistillationSettings,
    MatcherTrainingSettings,
    SourceSettings,
    TrainingSettings,
)
from d2net.training.sources import KINDS
from d2net.training.sources.distillation import find_teacher_photos

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_defaults_are_the_papers() -> None:
    paper = TrainingSettings()
    assert paper.layers == ("conv4_3",)
    assert (paper.batch, paper.crop, paper.learning_rate) == (1, 256, 1e-3)
    assert paper.steps == 10 * 100 * 117
    assert (paper.schedule, paper.sampling, paper.precision) == ("constant", "cells", "float32")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_recipes_are_read_and_saved_unchanged(path: Path) -> None:
    distilled = path.stem == "light"
    settings = DistillationSettings.from_file(path) if distilled else read_recipe(path)
    assert type(settings).from_dict(settings.to_dict()) == settings
    for source in settings.sources + settings.validation:
        assert source.kind in KINDS
    assert settings.training_sources
    assert sum(settings.source_weights()) > 0


def test_a_recipe_keeps_its_proportions_without_a_group() -> None:
    (path,) = (path for path in CONFIGS if path.stem == "default")
    settings = TrainingSettings.from_file(path).updated(groups=["permissive", "unstated"])
    chosen = settings.training_sources
    assert chosen
    assert {source.group for source in chosen} == {"permissive", "unstated"}
    total = dict.fromkeys(settings.shares, 0.0)
    for source, weight in zip(chosen, settings.source_weights(), strict=True):
        total[source.part] += weight
    assert total == pytest.approx(dict(settings.shares))


def test_options_of_a_source_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'steps = 5\n[[sources]]\nkind = "photos"\npath = "mine"\nweight = 2\nphotometric = 0.5\n'
    )
    (source,) = TrainingSettings.from_file(path).sources
    assert source.weight == 2
    assert (source.kind, source.path) == ("photos", "mine")
    assert source.options == {"photometric": 0.5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "unknown setting 'learning_rat'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": "many"}, "steps must be a whole number, not 'many'"),
        ({"steps": True}, "steps must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"crop": 100}, "multiple of 8"),
        ({"schedule": "linear"}, "schedule must be constant or cosine"),
        ({"layers": ["conv4_2"]}, "layers must be the last ones"),
        ({"layers": []}, "layers must be the last ones"),
        ({"clip": 0}, "clip must be above 0"),
        ({"sources": [{"kind": "photos"}]}, 'a source needs path = "..."'),
        ({"sources": [{"kind": "photos", "path": ".", "weight": 0}]}, "weight must be"),
        ({"sources": [{"kind": "photos", "path": ".", "hold_out": 1}]}, "hold_out must be"),
        ({"shares": {"x": 1}, "sources": [{"kind": "photos", "path": "."}]}, "has no share"),
        ({"shares": {"x": 0}}, "share of 'x'"),
        ({"shares": {"x": True}}, "each value of shares must be a number"),
        ({"shares": 3}, "shares must be a table"),
        ({"groups": "cc-by-nc"}, "groups must be a list"),  # it contains "cc-by"
        ({"layers": [3]}, "each value of layers must be text"),
        ({"sources": "ph"}, "[[sources]]"),
        ({"sources": ["ph"]}, "[[sources]]"),
        ({"validation": {"kind": "photos", "path": "."}}, "[[validation]], not [validation]"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainingSettings.from_dict(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("option", ["taught", "left_out"])
def test_patterns_of_photos_are_a_list(option: str, tmp_path: Path) -> None:
    """Text would be read letter by letter: "1*" would match every photo, and a name none."""
    table = {"kind": "photos", "path": ".", option: "1*"}
    with pytest.raises(InputError, match=f"{option} must be a list, not '1"):
        find_teacher_photos(SourceSettings.from_dict(table), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"teachers": "light"},
        {"teachers": {"name": "light", "keypoints": 5}},
        {"teachers": [{"keypoints": 5}]},
        {"student": 3},
        {"points": 0},
        {"photo_edge": 8},
        {"photo_edge": -5},
    ],
)
def test_impossible_distillations_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        DistillationSettings.from_dict({"teachers": [{"name": "light", "keypoints": 5}], **changes})


def test_impossible_widths_are_refused() -> None:
    for student in ({"x": 1}, {"channels": 3}, {"channels": [3]}):
        with pytest.raises(InputError):
            LightSettings.from_dict(student)
    with pytest.raises(InputError):
        MatcherSettings.from_dict({"width": 7, "heads": 2})
    with pytest.raises(InputError, match="widths must be a table"):
        MatcherTrainingSettings.from_dict({"widths": 3})


def test_a_file_is_named_in_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("steps = -1")
    with pytest.raises(InputError, match=r"recipe\.toml: steps must be"):
        TrainingSettings.from_file(path)
    path.write_text("steps = ")
    with pytest.raises(InputError, match=r"recipe\.toml is not TOML"):
        TrainingSettings.from_file(path)
    with pytest.raises(InputError, match="cannot be read"):
        TrainingSettings.from_file(tmp_path / "missing.toml")
    path.write_text('objective = "matching"')
    with pytest.raises(InputError, match="objective must be light or matcher, not 'matching'"):
        read_recipe(path)
