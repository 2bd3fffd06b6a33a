"""Why there is no map, or why photos are not registered, from COLMAP's database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.settings import MappingSettings
from d2net.mapping.summary import NO_MATCHES, TOO_FEW_INLIERS, in_another_model
from d2net.text import count

if TYPE_CHECKING:
    import pycolmap


def why_no_map(database: Path, settings: MappingSettings) -> str:
    """The reason why the mapper found no model."""
    configurations = Counter(geometry.config for _, _, geometry in verified_pairs(database))
    if not configurations:
        return (
            f"no two photos have {settings.min_inliers} matches that agree with one camera motion "
            "better than by accident: they do not show the same scene from similar viewpoints, or "
            "the wrong pairs were matched"
        )
    agreeing = f"{count(configurations.total(), 'pair')} of photos agree"
    if flat_configurations().issuperset(configurations):
        return (
            f"{agreeing}, but they show a plane, were taken from one spot, or are copies: a map "
            "needs a camera that moves sideways"
        )
    return (
        f"{agreeing}, but no model of {settings.min_model_size} photos grew from them: the camera "
        "moved too little, too few photos overlap, or the camera's parameters are wrong"
    )


def why_unregistered(
    database: Path, models: Sequence[pycolmap.Reconstruction], names: Iterable[str]
) -> dict[str, str]:
    """Reasons of the photos that are not in the first model, by name."""
    registered = {
        model.images[i].name: number
        for number, model in reversed(list(enumerate(models)))
        for i in model.reg_image_ids()
    }
    matched = {name for first, second, _ in verified_pairs(database) for name in (first, second)}
    reasons = {}
    for name in names:
        number = registered.get(name)
        if number is None:
            reasons[name] = TOO_FEW_INLIERS if name in matched else NO_MATCHES
        elif number > 0:
            reasons[name] = in_another_model(models[number].num_reg_images())
    return reasons
