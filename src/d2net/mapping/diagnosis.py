"""Why there is no map, or why photos are not in it: in words, from COLMAP's database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.mapping.engine import verified_pairs
from d2net.mapping.settings import MappingSettings
from d2net.mapping.summary import NO_MATCHES, TOO_FEW_INLIERS, count, in_another_model

if TYPE_CHECKING:
    import pycolmap


def no_map_because(database: Path, settings: MappingSettings) -> str:
    """What is missing where the mapper found no model."""
    import pycolmap

    kinds = Counter(geometry.config for _, _, geometry in verified_pairs(database))
    if not kinds:
        return (
            f"no two photos have {settings.min_inliers} matches that agree with one camera motion: "
            "they do not show one place from near enough, or pairs were chosen badly"
        )
    agreeing = f"{count(kinds.total(), 'pair')} of photos agree"
    kind = pycolmap.TwoViewGeometryConfiguration
    if set(kinds) <= {int(k) for k in (kind.PLANAR, kind.PANORAMIC, kind.PLANAR_OR_PANORAMIC)}:
        return (
            f"{agreeing}, but only as photos of one plane do, or photos from one spot, or copies: "
            "a map needs a camera that moves sideways"
        )
    return (
        f"{agreeing}, but no model of {settings.min_model_size} photos grew from them: the camera "
        "moved too little, too few photos overlap, or the camera's parameters are wrong"
    )


def unplaced(
    database: Path, models: Sequence[pycolmap.Reconstruction], names: Iterable[str]
) -> dict[str, str]:
    """Why photos are not in the first model, by name."""
    placed: dict[str, int] = {}
    for number, model in reversed(list(enumerate(models))):
        placed |= {model.images[i].name: number for i in model.reg_image_ids()}
    matched = {name for first, second, _ in verified_pairs(database) for name in (first, second)}
    reasons = {}
    for name in names:
        if placed.get(name) == 0:
            continue
        if name in placed:
            reasons[name] = in_another_model(models[placed[name]].num_reg_images())
        else:
            reasons[name] = TOO_FEW_INLIERS if name in matched else NO_MATCHES
    return reasons
