"""Matches of many pairs of photos, from a features file to a matches file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from d2net.cluster import run_shards
from d2net.errors import InputError
from d2net.features import Features
from d2net.geometry.robust import Method, Model
from d2net.io.h5 import FeatureFile, MatchFile, MatchWriter
from d2net.io.shards import Shards
from d2net.matching import match
from d2net.progress import Progress, no_progress

_PHOTOS_KEPT = 8
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""


@dataclass(frozen=True)
class PairOutcome:
    """How many matches one pair has, after verification if it was asked for."""

    first: str
    second: str
    num_matches: int


@dataclass(frozen=True)
class PairSummary:
    """What became of all pairs.

    Attributes:
        matched: outcomes of the pairs matched now.
        skipped: the pairs (first, second) that an earlier run had matched, or on a cluster a
            process that died.
    """

    matched: list[PairOutcome]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True)
class _Job:
    """What is done with every pair."""

    features: Path
    choices: dict[str, Any]
    device: str
    settings: dict[str, Any]
    """Of the output."""


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
    cluster: str | None = None,
    progress: Progress = no_progress,
) -> PairSummary:
    """Match pairs of photos; safe to kill, and to start again.

    Args:
        features: HDF5 file in hloc's layout, ours or another program's.
        pairs: names of photos in it. A pair that occurs twice, in either order, is matched once;
            a photo paired with itself is left out.
        output: HDF5 file of matches in hloc's layout; of verified matches the inliers.
        ratio: see `matching.nearest.mutual_nearest`.
        min_similarity: see `matching.nearest.mutual_nearest`.
        verify: see `matching.match`.
        threshold: see `matching.match`.
        method: see `matching.match`.
        device: where descriptors are compared.
        cluster: the address of a Ray cluster that shares the work; see `extract_folder`.
        progress: called after each pair; on a cluster after many pairs at once.

    Raises:
        MissingPackageError: a cluster is asked for, and Ray is not installed.
        InputError: there are no pairs, one names a photo that has no features, or the device
            cannot be used.
        FormatError: the features file is damaged or none.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
    """
    wanted = _unique(pairs)
    if not wanted:
        raise InputError("there are no pairs of two different photos to match")
    choices: dict[str, Any] = {
        "ratio": ratio,
        "min_similarity": min_similarity,
        "verify": verify,
        "threshold": threshold,
        "method": method,
    }
    with FeatureFile(os.fspath(features)) as file:
        _check_names(wanted, file)
        job = _Job(file.path, choices, device, {"features": file.settings, **choices})
        if cluster is not None:
            outcomes = _match_on_cluster(cluster, job, wanted, Path(output), progress)
        else:
            _check_device(device)
            with MatchWriter(os.fspath(output), job.settings) as writer:
                outcomes = _match(job, wanted, file, writer, progress)
    return PairSummary(
        matched=[outcome for outcome in outcomes if outcome is not None],
        skipped=[pair for pair, outcome in zip(wanted, outcomes, strict=True) if outcome is None],
    )


def _match_on_cluster(
    address: str,
    job: _Job,
    wanted: Sequence[tuple[str, str]],
    output: Path,
    progress: Progress,
) -> list[PairOutcome | None]:
    return run_shards(
        address,
        _match_shard,
        replace(job, features=job.features.absolute()),  # machines differ in working directory
        wanted,
        Shards(output.absolute(), MatchFile, job.settings),
        name=min,  # the pairs of a photo go together, in either order, so that it is read once
        gpu=job.device != "cpu",
        progress=progress,
        stage="matching",
    )


def _match_shard(job: _Job, path: Path, pairs: list[tuple[str, str]]) -> list[PairOutcome | None]:
    """Match the pairs of one shard, in a process of a cluster."""
    _check_device(job.device)
    with FeatureFile(job.features) as file, MatchWriter(path, job.settings) as writer:
        return _match(job, pairs, file, writer, no_progress)


def _match(
    job: _Job,
    wanted: Sequence[tuple[str, str]],
    file: FeatureFile,
    writer: MatchWriter,
    progress: Progress,
) -> list[PairOutcome | None]:
    """The outcome of each pair, None for pairs that the output held before."""

    @lru_cache(maxsize=_PHOTOS_KEPT)
    def load(name: str) -> Features:
        return file[name].to(job.device)

    done = {frozenset(pair) for pair in writer.done()}
    todo = [pair for pair in wanted if frozenset(pair) not in done]
    outcomes: dict[tuple[str, str], PairOutcome] = {}
    progress("matching", 0, len(todo))
    for first, second in todo:
        a, b = load(first), load(second)
        matches = match(a, b, **job.choices)
        writer.add(first, second, matches, len(a))
        outcomes[first, second] = PairOutcome(first, second, matches.num_inliers)
        progress(f"matching: {first}  {second}", len(outcomes), len(todo))
    return [outcomes.get(pair) for pair in wanted]


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


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot use device {device!r}: {reason}") from error
