"""Matches of many pairs of photos, from a features file to a matches file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from typing_extensions import Unpack

from d2net.cluster import share
from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.io.h5 import FeatureFile, MatchWriter
from d2net.io.pair_lists import Pair, read_pairs
from d2net.io.resume import fingerprint
from d2net.io.text_lists import as_known
from d2net.matching import MatchOptions, match, matcher_id
from d2net.networks.catalogue import CATALOGUE, expand_user
from d2net.progress import Progress, no_progress

_CACHED_PHOTOS = 64  # in memory; a learned matcher prepares each of them once
_CLUSTER_BATCH = 64  # pairs that a process of a cluster matches at a time

_Job: TypeAlias = tuple[Path, MatchOptions, str]
"""Features file, options and device, sent to each process of a cluster."""


@dataclass(frozen=True)
class PairSummary:
    """The outcome of `match_pairs`."""

    matched: dict[Pair, int]  # number of matches of each new pair; of inliers if verified
    skipped: list[Pair]  # pairs that an earlier run had matched
    num_others: int  # pairs of earlier runs that were not asked for; the file still has them


def match_pairs(
    features: str | os.PathLike[str],
    pairs: Iterable[Pair] | str | os.PathLike[str],
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
        pairs: names of photos in the file, or a text file with two names per line. A pair that
            occurs twice, in either order, is matched once; a photo paired with itself is ignored.
        output: HDF5 file of matches in hloc's layout. If matches are verified, it gets the inliers.
        device: device on which descriptors are compared.
        cluster: the address of a Ray cluster that shares the work; see `extract_folder`.
        progress: called with (stage, done, total) at the start and after each pair.
        options: `matcher`, `ratio`, `verify`, `threshold`; see `match`.

    Raises:
        MissingPackageError: a cluster is given, and Ray is not installed.
        InputError: there are no pairs, a pair names a photo without features, an option is out of
            range, or the device cannot be used.
        FormatError: the features file is damaged or of another kind.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
    """
    all_options = MatchOptions(matcher="nearest", ratio=None, verify=None, threshold=None)
    all_options.update(options)
    with FeatureFile(os.fspath(features)) as file:
        unique: dict[frozenset[str], Pair] = {}
        for given in read_pairs(Path(pairs)) if isinstance(pairs, str | os.PathLike) else pairs:
            if isinstance(given, str) or [isinstance(name, str) for name in given] != [True, True]:
                raise InputError(f"a pair must be the names of two photos, not {given!r}")
            a, b = given
            pair = as_known(a, file), as_known(b, file)
            if pair[0] != pair[1]:
                unique.setdefault(frozenset(pair), pair)
        wanted = list(unique.values())
        if not wanted:
            raise InputError("there are no pairs of two different photos to match")
        missing = sorted({name for pair in wanted for name in pair if name not in file})
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(
                f"the pairs name {missing[0]!r}{more}, but {file.path} has no features of it"
            )
        matcher = all_options["matcher"]
        settings = {"features": file.settings, **all_options, "matcher": matcher_id(matcher)}
        if matcher != "nearest" and matcher not in CATALOGUE:
            # The machines of a cluster have other working directories.
            all_options["matcher"] = str(expand_user(matcher).absolute())
        job = file.path.absolute(), all_options, device
        state_of = cache(file.state)
        todo: dict[Pair, tuple[Pair, str]] = {}  # by pair as stored: as given, inputs
        counts: dict[Pair, int] = {}
        with MatchWriter(os.fspath(output), settings) as writer:
            for pair in wanted:
                stored = pair[::-1] if writer.is_done(*pair[::-1]) else pair
                inputs = fingerprint([state_of(name) for name in stored])
                if not writer.is_done(*stored, inputs):
                    todo[stored] = pair, inputs
            progress("matching", 0, len(todo))
            gpu = device != "cpu"
            results = (
                _match(job, todo, file)
                if cluster is None
                else share(cluster, _match_batch, job, list(todo), batch=_CLUSTER_BATCH, gpu=gpu)
            )
            for stored, matches, num_keypoints in results:
                pair, inputs = todo[stored]
                writer.add(*stored, matches, num_keypoints, inputs)
                counts[pair] = matches.num_inliers
                progress(f"matching: {stored[0]}  {stored[1]}", len(counts), len(todo))
    return PairSummary(
        matched={pair: counts[pair] for pair in wanted if pair in counts},
        skipped=[pair for pair in wanted if pair not in counts],
        num_others=len(writer.done()) - len(wanted),
    )


def _match_batch(job: _Job, pairs: list[Pair]) -> list[tuple[Pair, Matches, int]]:
    """Match some of the pairs, in a process of a cluster."""
    with FeatureFile(job[0]) as file:
        return list(_match(job, pairs, file))


def _match(
    job: _Job, pairs: Iterable[Pair], file: FeatureFile
) -> Iterator[tuple[Pair, Matches, int]]:
    """Each pair with its matches, on the CPU, and the number of keypoints of its first photo."""
    _, options, device = job
    try:
        torch.empty(0, device=device).cpu()  # the device "meta" holds no values
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot use device {device!r}: {reason}") from error

    @lru_cache(maxsize=_CACHED_PHOTOS)
    def load(name: str) -> Features:
        return file[name].to(device)

    for first, second in pairs:
        a, b = load(first), load(second)
        found = match(a, b, **options)
        on_cpu: dict[str, Any] = {k: v.cpu() for k, v in vars(found).items() if torch.is_tensor(v)}
        yield (first, second), replace(found, **on_cpu), len(a)
