"""Settings for one's own photos, and for a given time."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2net.training import recipes
from d2net.training.recipes import settings_for_minutes, settings_for_photos

DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("minutes", [1, 3, 30, 300])
def test_a_run_keeps_within_its_time(minutes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the whitening is learned for the best weights and for the last ones."""
    monkeypatch.setattr(recipes, "_seconds_per_pair", lambda *_: 0.5)
    base = settings_for_photos(DATA)
    settings = settings_for_minutes(minutes, base, data=DATA, device="cpu", workers=0)
    steps = 0.5 * settings.batch * settings.steps
    whitening = 2 * 0.65 * settings.whitening
    validation = 2 * 0.8 * settings.validation_pairs
    assert 0.9 * 60 * minutes < steps + whitening + validation < 60 * minutes + 2
    assert settings.whitening <= base.whitening
    assert (settings.whitening > 0) == (minutes > 3)
