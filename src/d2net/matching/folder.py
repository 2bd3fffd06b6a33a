"""Matches of many pairs of photos, from a features file to a matches file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from d2net.errors import InputError
from d2net.features import Features
from d2net.formats.h5 import FeatureFile, MatchWriter
from d2net.geometry.robust import Method, Model
from d2net.matching import match

_PHOTOS_KEPT = 32
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""


@dataclass(frozen=True)
class PairOutcome:
    """How many matches one pair has, after verification if it was asked for."""

    first: str
    second: str
    num_matches: int


def match_pairs(
    features: str | os.PathLike[str],
    pairs: Iterable[tuple[str, str]],
    output: str | os.PathLike[str],
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
    verify: Model | None = None,
    threshold: float | None = None,
    method: Method = "magsac",
    device: str = "cpu",
    report: Callable[[PairOutcome], None] | None = None,
) -> list[PairOutcome]:
    """Match pairs of photos; safe to kill, and to start again.

    Args:
        features: HDF5 file in hloc's layout, ours or another program's.
        pairs: names of photos in it. A pair that occurs twice, in either order, is matched once.
        output: HDF5 file of matches in hloc's layout; of verified matches the inliers.
        ratio: see `matching.nearest.mutual_nearest`.
        min_similarity: see `matching.nearest.mutual_nearest`.
        verify: see `matching.match`.
        threshold: see `matching.match`.
        method: see `matching.match`.
        device: where descriptors are compared.
        report: called after each pair.

    Returns:
        The pairs matched now; those that `output` held already are not among them.

    Raises:
        InputError: a pair names a photo that has no features.
        FormatError: the features file is damaged or none.
        OutputError: the output cannot be written, is being written, or has other settings.
    """
    outcomes = []
    with FeatureFile(os.fspath(features)) as file:
        wanted = _unique(pairs)
        _check_names(wanted, file)
        settings: dict[str, Any] = {
            "features": file.settings,
            "ratio": ratio,
            "min_similarity": min_similarity,
            "verify": verify,
            "threshold": threshold,
            "method": method if verify else None,
        }

        @lru_cache(maxsize=_PHOTOS_KEPT)
        def load(name: str) -> Features:
            return file[name].to(device)

        with MatchWriter(os.fspath(output), settings) as writer:
            for first, second in wanted:
                if (first, second) in writer.done():
                    continue
                a = load(first)
                found = match(
                    a,
                    load(second),
                    ratio=ratio,
                    min_similarity=min_similarity,
                    verify=verify,
                    threshold=threshold,
                    method=method,
                )
                writer.add(first, second, found, len(a))
                outcomes.append(PairOutcome(first, second, found.num_inliers))
                if report is not None:
                    report(outcomes[-1])
    return outcomes


def _unique(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs in order, without repetitions, reversed ones and photos paired with themselves."""
    seen: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        if pair[0] != pair[1]:
            seen.setdefault(frozenset(pair), pair)
    return list(seen.values())


def _check_names(pairs: Iterable[tuple[str, str]], file: FeatureFile) -> None:
    missing = sorted({name for pair in pairs for name in pair if name not in file})
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"the pairs name {missing[0]!r}{more}, which {Path(file.path)} holds no features of"
        )
