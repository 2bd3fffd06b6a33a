"""Features and matches in the HDF5 layout of hloc, the most common one in the field.

Features: one group per photo, named by its path, with `keypoints` N x 2, `descriptors` D x N,
`scores` N, `image_size` (width, height), and the attribute `uncertainty` of `keypoints`. We add
`scales` N, `uncertainty` N and the attribute `descriptor_id` of `descriptors`. Keypoints are
float32 (hloc's default is float16, with errors of half a pixel beyond 1024; both are read). The
centre of the top-left pixel is (0, 0).

Matches: one group per pair, with `matches0` N0 (for each keypoint of the first photo, the row of
its match in the second photo or -1) and `matching_scores0` N0, which is the confidence if the
attribute `scores` of the group says so, else the similarity. Rows are int32, because hloc's int16
overflows above 32,767 keypoints; hloc reads any integer type, and both are read here.

Source: https://github.com/cvg/Hierarchical-Localization, hloc/extract_features.py,
match_features.py and utils/io.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2net.errors import FormatError, InputError
from d2net.features import Features, Matches
from d2net.geometry.coordinates import Size
from d2net.io.arrays import as_numpy, read_floats
from d2net.io.pair_lists import Pair
from d2net.io.resumable_h5 import (
    INPUTS,
    Attributes,
    EntryWriter,
    H5File,
    NoSuchEntryError,
    Record,
    check_name,
)
from d2net.io.resume import fingerprint


class FeatureFile(H5File, Mapping[str, Features]):
    """The features of many photos by name, read one photo at a time as tensors on the CPU."""

    marker = "keypoints"
    contents = "features"

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.has_entry(name)

    def __getitem__(self, name: str) -> Features:
        """The features of one photo.

        Scores and scales that the file lacks are 1, and so is the uncertainty in pixels. Raises a
        NoSuchEntryError (an InputError and a KeyError) for another photo, and a FormatError for
        arrays of another layout.
        """
        self._check_known(name)
        record, where = self.read_record(name), f"{self.path}, photo {name!r}"
        keypoints = read_floats(record.arrays, "keypoints", ("N", 2), where)
        n = len(keypoints)
        descriptors = read_floats(record.arrays, "descriptors", ("D", n), where)
        uncertainty = record.attributes["keypoints"].get("uncertainty", 1.0)
        is_number = isinstance(uncertainty, float | np.floating | np.integer)
        if not is_number or not np.isfinite(uncertainty):
            raise FormatError(f"{where}: the attribute 'uncertainty' must be a number.")
        descriptor_id = record.attributes["descriptors"].get("descriptor_id")
        if not isinstance(descriptor_id, str | None):
            raise FormatError(f"{where}: the attribute 'descriptor_id' must be text.")
        size = record.arrays.get("image_size", np.zeros(0))
        if size.shape != (2,) or size.dtype.kind not in "iuf" or not (size >= 1).all():
            raise FormatError(f"{where}: 'image_size' must be the photo's width and height.")
        return Features(
            keypoints=torch.from_numpy(keypoints).float(),
            scores=_column(record, "scores", n, where),
            scales=_column(record, "scales", n, where),
            descriptors=torch.from_numpy(descriptors.T).contiguous(),
            image_size=(int(size[0]), int(size[1])),
            uncertainty=_column(record, "uncertainty", n, where, float(uncertainty)),
            descriptor_id=descriptor_id,
        )

    def overview(self, name: str) -> tuple[int, Size, float]:
        """Number of keypoints, (width, height) and typical uncertainty in pixels of one photo."""
        self._check_known(name)
        with self._format_errors(name):
            group = self._file[name]
            width, height = (int(edge) for edge in group["image_size"][()])
            uncertainty = float(group["keypoints"].attrs.get("uncertainty", 1.0))
            return len(group["keypoints"]), (width, height), uncertainty

    @property
    def upright(self) -> bool:
        """Whether the photos were rotated upright."""
        return are_upright(self.settings)

    def inputs(self, name: str) -> str:
        """The photo and mask that features were made from (`record_files`); "" if unknown."""
        return str(self.read_attributes(name).get(INPUTS, ""))

    def state(self, name: str) -> str:
        """The `inputs`; if they are unknown, a checksum of everything that is stored."""
        if inputs := self.inputs(name):
            return inputs
        record = self.read_record(name)
        content = [record.arrays[key].tobytes() for key in sorted(record.arrays)]
        return sha256(b"".join([*content, str(record.attributes).encode()])).hexdigest()[:32]

    def _check_known(self, name: str) -> None:
        if name not in self:
            raise NoSuchEntryError(f"{self.path} contains no features of {name!r}.")


def are_upright(made_by: Mapping[str, Any] | None) -> bool:
    """Whether photos were rotated upright, by what is recorded about their features."""
    extraction = (made_by or {}).get("extraction")  # may be another program's
    return not isinstance(extraction, dict) or bool(extraction.get("upright", True))


class FeatureWriter(EntryWriter):
    """Writes the features of many photos so that interrupted runs resume; see `EntryWriter`."""

    reader = FeatureFile

    def done(self) -> Set[str]:
        """The photos that this run or an earlier one has finished."""
        return self._entries.keys()

    def add(self, name: str, features: Features, inputs: str = "") -> None:
        """Store one photo's features. After this returns, a kill does not lose them.

        `inputs` is the record of the photo and its mask (`record_files`); features of the photo
        with another record are replaced. InputError if the name is not valid, the photo is stored
        already, or its features are NaN.
        """
        arrays = features.numpy()
        arrays["descriptors"] = arrays["descriptors"].T
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise InputError(f"the {key} of {name!r} contain NaN or infinity.")
        arrays["image_size"] = np.array(features.image_size, dtype=np.int64)
        attributes: dict[str, Attributes] = {
            "keypoints": {"uncertainty": typical_uncertainty(features)}
        }
        if features.descriptor_id is not None:
            attributes["descriptors"] = {"descriptor_id": features.descriptor_id}
        self._append(name, Record(arrays, attributes), inputs)


class MatchFile(H5File):
    """The matches of many pairs of photos."""

    marker = "matches0"
    contents = "matches"

    @property
    def pairs(self) -> list[Pair]:
        """The pairs (first, second), sorted; for hloc's files use `pairs_among` or `get`."""
        return sorted(self._stored_pair(entry) for entry in self.entries())

    def pairs_among(self, names: Iterable[str]) -> list[Pair]:
        """The pairs whose photos are both among `names`, sorted; works with hloc's files, too."""
        names = set(names)
        if self.settings is not None:
            return [pair for pair in self.pairs if names.issuperset(pair)]
        by_group = {_group_part(name): name for name in names}
        groups = (entry.partition("/") for entry in self.entries())
        return sorted((by_group[a], by_group[b]) for a, _, b in groups if {a, b} <= by_group.keys())

    def among(
        self, num_keypoints: Mapping[str, int], selected: Collection[frozenset[str]] | None = None
    ) -> Iterator[tuple[str, str, Matches]]:
        """The matches of all (or the `selected`) pairs of photos in `num_keypoints`, once each."""
        seen = set[frozenset[str]]()
        for first, second in self.pairs_among(num_keypoints):
            pair = frozenset((first, second))
            # hloc's files may contain both orders.
            if pair in seen or (selected is not None and pair not in selected):
                continue
            seen.add(pair)
            matches = self.get(first, second)
            bounds = torch.tensor([num_keypoints[first], num_keypoints[second]], device="cpu")
            if (matches.indices >= bounds).any():
                raise FormatError(
                    f"{self.path}: the matches of {first!r} and {second!r} refer to keypoints that "
                    "the features do not have; the two files are not from the same run."
                )
            yield first, second, matches

    def check_features(self, features: FeatureFile) -> None:
        """InputError if pairs were matched with other features of these photos."""
        if self.settings is None:  # nothing is known
            return
        is_other = self.settings.get("features") not in (None, features.settings)
        state_of = cache(features.state)
        for pair in self.pairs_among(features):
            matched = self.read_attributes(group_name(*pair)).get(INPUTS, "")
            present = fingerprint([state_of(name) for name in pair])
            if is_other or (matched and matched != present):
                raise InputError(
                    f"{self.path} was matched with other features of {pair[0]} and {pair[1]} than "
                    f"those in {features.path}: delete {self.path} and match again"
                )

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, tuple) and len(pair) == 2 and self._find(*pair) is not None

    def get(self, first: str, second: str) -> Matches:
        """The matches of a pair of photos, whichever order it is stored in.

        Verified pairs have only their inliers. If the file has confidences or no scores, the
        similarity is 1. Raises the same errors as `FeatureFile`.
        """
        stored = self._find(first, second)
        if stored is None:
            raise NoSuchEntryError(f"{self.path} contains no matches of {first!r} and {second!r}.")
        entry, swapped = stored
        record = self.read_record(entry)
        where = f"{self.path}, pair {entry!r}"
        rows = record.arrays["matches0"]
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise FormatError(
                f"{where}: 'matches0' must be a vector of integers, not {rows.ndim}-dimensional "
                f"{rows.dtype}."
            )
        if rows.size and rows.min() < -1:
            raise FormatError(
                f"{where}: 'matches0' contains the row {rows.min()}, because rows above 32,767 "
                "overflow hloc's 16 bits; match again with d2net."
            )
        matched = torch.from_numpy(np.flatnonzero(rows != -1))
        scores = _column(record, "matching_scores0", len(rows), where)[matched]
        indices = torch.stack([matched, torch.from_numpy(rows.astype(np.int64))[matched]], dim=1)
        if swapped:  # sorted by the first photo, as if they were stored in this order
            order = indices[:, 1].argsort()
            indices, scores = indices[order].flip(1), scores[order]
        if self.read_attributes(entry).get("scores") == "confidence":
            return Matches(indices, torch.ones_like(scores), confidence=scores)
        return Matches(indices, scores)

    def _find(self, first: str, second: str) -> tuple[str, bool] | None:
        """The pair's group, and whether it is stored in the other order."""
        for pair in ((first, second), (second, first)):
            entry = group_name(*pair)
            # 'a/b' and 'a-b' give the same group name; our files store the names as well.
            if self.has_entry(entry) and (
                self.settings is None or self._stored_pair(entry) == pair
            ):
                return entry, pair != (first, second)
        return None

    def _stored_pair(self, entry: str) -> Pair:
        attributes = self.read_attributes(entry)
        pair = attributes.get("name0"), attributes.get("name1")
        if not (isinstance(pair[0], str) and isinstance(pair[1], str)):
            raise FormatError(
                f"{self.path} does not store the names of the two photos of {entry!r} (hloc's "
                "files never do); ask for each pair by name."
            )
        return pair[0], pair[1]


class MatchWriter(EntryWriter):
    """Writes the matches of many pairs so that interrupted runs resume; see `EntryWriter`."""

    reader = MatchFile

    def done(self) -> Set[Pair]:
        """The pairs (first, second) that this run or an earlier one has finished."""
        return {(str(entry["name0"]), str(entry["name1"])) for entry in self._entries.values()}

    def is_done(self, first: str, second: str, inputs: str = "") -> bool:
        """Whether a pair is finished, and if `inputs` are given, whether from these inputs."""
        entry = self._entries.get(group_name(first, second), {})
        is_same = (entry.get("name0"), entry.get("name1")) == (first, second)
        return is_same and inputs in ("", entry.get(INPUTS))

    def add(
        self, first: str, second: str, matches: Matches, num_keypoints: int, inputs: str = ""
    ) -> None:
        """Store one pair's matches. After this returns, a kill does not lose them.

        Of verified matches, only the inliers are stored. `num_keypoints` belongs to the first
        photo, whose rows occur at most once. `inputs` is the fingerprint of both photos' features;
        matches of the pair with another fingerprint are replaced. InputError if the pair is stored
        already, in either order, or if the matches do not fit.
        """
        pair = (check_name(first), check_name(second))
        if first == second or self.is_done(second, first):
            raise InputError(f"{first!r} and {second!r} are the same photo, or matched already.")
        stored = self._entries.get(group_name(*pair))
        if stored is not None and (stored["name0"], stored["name1"]) != pair:
            raise InputError(
                f"{first!r} with {second!r} and {stored['name0']!r} with {stored['name1']!r} have "
                "the same name in hloc's layout, which writes / as -; rename a photo or folder."
            )
        kept = matches.verified()
        if (kept.indices < 0).any() or not kept.scores.isfinite().all():
            raise InputError(f"the matches of {first!r} and {second!r} have negative rows or NaN.")
        rows, columns = as_numpy(kept.indices).T
        occurrences = np.bincount(rows, minlength=num_keypoints)
        if len(occurrences) > num_keypoints or (occurrences > 1).any():
            raise InputError(
                f"the matches of {first!r} and {second!r} must contain each of the first photo's "
                f"{num_keypoints} keypoints at most once."
            )
        matches0 = np.full(num_keypoints, -1, dtype=np.int32)
        matches0[rows] = columns
        scores = np.zeros(num_keypoints, dtype=np.float32)
        scores[rows] = as_numpy(kept.scores)
        arrays = {"matches0": matches0, "matching_scores0": scores}
        attributes: Attributes = {"name0": first, "name1": second}
        if kept.confidence is not None:
            attributes["scores"] = "confidence"
        self._append(group_name(*pair), Record(arrays, {"": attributes}), inputs)


def typical_uncertainty(features: Features) -> float:
    """The uncertainty in pixels that hloc stores per photo: the median, or 1 without keypoints."""
    return float(np.median(as_numpy(features.uncertainty))) if len(features) else 1.0


def group_name(first: str, second: str) -> str:
    """The name of a pair's group in hloc's layout."""
    return f"{_group_part(first)}/{_group_part(second)}"


def _group_part(name: str) -> str:
    return name.replace("/", "-")


def _column(record: Record, key: str, n: int, where: str, missing: float = 1.0) -> Tensor:
    """The N numbers of an array as float32; all are `missing` if the file lacks the array."""
    if key not in record.arrays:
        return torch.full((n,), missing, dtype=torch.float32, device="cpu")
    return torch.from_numpy(read_floats(record.arrays, key, (n,), where)).float()
