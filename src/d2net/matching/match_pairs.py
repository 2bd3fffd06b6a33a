"""Matches of many pairs of photos, from a features file to a matches file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from d2net.cluster import run_shards
from d2net.errors import InputError
from d2net.features import Features
from d2net.io.h5 import FeatureFile, MatchFile, MatchWriter
from d2net.io.pairs import Pair
from d2net.io.resume import fingerprint
from d2net.io.shards import Shards
from d2net.matching import MatchOptions, match
from d2net.matching.matchers import matcher_id
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CACHED_PHOTOS = 8
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""


_DEFAULTS: MatchOptions = {
    "matcher": "nearest",
    "ratio": None,
    "min_similarity": None,
    "verify": None,
    "threshold": None,
    "method": "magsac",
}


@dataclass(frozen=True)
class PairSummary:
    """The outcome of `match_pairs`.

    Attributes:
        matched: number of matches of each pair that was matched now; of inliers if verified.
        skipped: pairs that an earlier run had matched.
    """

    matched: dict[Pair, int]
    skipped: list[Pair]


@dataclass(frozen=True)
class _Job:
    """The work on every pair, as it is sent to the processes of a cluster."""

    features: Path
    options: MatchOptions
    device: str
    settings: dict[str, Any]  # stored in the output


def match_pairs(
    features: str | os.PathLike[str],
    pairs: Iterable[Pair],
    output: str | os.PathLike[str],
    *,
    device: str = "cpu",
    cluster: str | None = None,
    progress: Progress = no_progress,
    **options: Unpack[MatchOptions],
) -> PairSummary:
    """Match pairs of photos; safe to kill, and to start again.

    A pair whose features were extracted again since it was matched is matched again.

    Args:
        features: HDF5 file in hloc's layout, by d2net or another program.
        pairs: names of photos in the file. A pair that occurs twice, in either order, is matched
            once; a photo paired with itself is ignored.
        output: HDF5 file of matches in hloc's layout. If matches are verified, it gets the inliers.
        device: device on which descriptors are compared.
        cluster: the address of a Ray cluster that shares the work; see `extract_folder`.
        progress: called after each pair; on a cluster after many pairs at once.
        options: `matcher`, `ratio`, `min_similarity`, `verify`, `threshold`, `method`; see `match`.

    Raises:
        MissingPackageError: a cluster is given, and Ray is not installed.
        InputError: there are no pairs, a pair names a photo without features, an option is out of
            range, or the device cannot be used.
        FormatError: the features file is damaged or of another kind.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
    """
    unique: dict[frozenset[str], Pair] = {}
    for pair in pairs:
        if pair[0] != pair[1]:
            unique.setdefault(frozenset(pair), pair)
    wanted = list(unique.values())
    if not wanted:
        raise InputError("there are no pairs of two different photos to match")
    all_options: MatchOptions = {**_DEFAULTS, **options}
    with FeatureFile(os.fspath(features)) as file:
        missing = sorted({name for pair in wanted for name in pair if name not in file})
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"the pairs name {missing[0]!r}{more}, but {file.path} has no features of it"
            )
        matcher = all_options["matcher"]
        settings = {"features": file.settings, **all_options, "matcher": matcher_id(matcher)}
        if cluster is not None and matcher != "nearest":
            all_options["matcher"] = str(Path(matcher).absolute())  # working directories differ
        job = _Job(file.path, all_options, device, settings)
        if cluster is not None:
            counts = run_shards(
                cluster,
                _match_shard,
                replace(job, features=file.path.absolute()),  # working directories differ
                wanted,
                Shards(Path(output).absolute(), MatchFile, settings),
                name=min,  # keeps the pairs of a photo together, so that it is read once
                gpu=device != "cpu",
                progress=progress,
                stage="matching",
            )
        else:
            _check_device(device)
            with MatchWriter(os.fspath(output), settings) as writer:
                counts = _match(job, wanted, file, writer, progress)
    outcomes = list(zip(wanted, counts, strict=True))
    return PairSummary(
        matched={pair: count for pair, count in outcomes if count is not None},
        skipped=[pair for pair, count in outcomes if count is None],
    )


def _match_shard(job: _Job, path: Path, pairs: list[Pair]) -> list[int | None]:
    """Match the pairs of one shard, in a process of a cluster."""
    _check_device(job.device)
    with FeatureFile(job.features) as file, MatchWriter(path, job.settings) as writer:
        return _match(job, pairs, file, writer, no_progress)


def _match(
    job: _Job,
    pairs: Sequence[Pair],
    file: FeatureFile,
    writer: MatchWriter,
    progress: Progress,
) -> list[int | None]:
    """The number of matches of each pair, None for pairs that the output has already."""

    @lru_cache(maxsize=_CACHED_PHOTOS)
    def load(name: str) -> Features:
        return file[name].to(job.device)

    @cache
    def inputs_of(name: str) -> str:
        return file.inputs(name)

    todo = {}
    for pair in pairs:
        stored = pair[::-1] if pair[::-1] in writer.done() else pair
        both = [inputs_of(name) for name in stored]
        inputs = fingerprint(both) if all(both) else ""
        if not writer.is_done(*stored, inputs):
            todo[pair] = stored, inputs
    counts: dict[Pair, int] = {}
    progress("matching", 0, len(todo))
    for pair, ((first, second), inputs) in todo.items():
        a, b = load(first), load(second)
        matches = match(a, b, **job.options)
        writer.add(first, second, matches, len(a), inputs)
        counts[pair] = matches.num_inliers
        progress(f"matching: {first}  {second}", len(counts), len(todo))
    return [counts.get(pair) for pair in pairs]


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot use device {device!r}: {reason}") from error
