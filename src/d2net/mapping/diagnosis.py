"""Why there is no map, or why photos are not registered, from COLMAP's database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from pathlib import Path

from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.settings import MappingSettings
from d2net.mapping.summary import NO_MATCHES, TOO_FEW_INLIERS
from d2net.text import count


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
    database: Path, registered: Container[str], names: Iterable[str]
) -> dict[str, str]:
    """Reasons of the photos that are in no map, by name."""
    matched = {name for first, second, _ in verified_pairs(database) for name in (first, second)}
    return {
        name: TOO_FEW_INLIERS if name in matched else NO_MATCHES
        for name in names
        if name not in registered
    }
