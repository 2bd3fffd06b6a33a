"""Queries and maps in the layouts of the visual localization benchmarks.

Aachen Day-Night (Sattler et al., CVPR 2018), v1.0 and v1.1, and InLoc (Taira et al., CVPR 2018), as
https://www.visuallocalization.net hands them out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import check_photo_size
from d2net.io.colmap_model import is_model, read_model
from d2net.io.intrinsics import read_intrinsics
from d2net.io.nvm import read_nvm
from d2net.io.pairs import read_pairs

if TYPE_CHECKING:
    import pycolmap

    from d2net.geometry.coordinates import Size

_IPHONE7_FOCAL = 28 / 36
"""Of InLoc's queries, in units of the longer side: 28 mm on a film of 36 mm."""


@dataclass(frozen=True)
class Limit:
    """How near a pose must be to count: by name, `LocalizationData.unit`s and degrees."""

    name: str
    position: float
    rotation: float


AACHEN_LIMITS = (
    Limit("0.25 m, 2°", 0.25, 2),
    Limit("0.5 m, 5°", 0.5, 5),
    Limit("5 m, 10°", 5, 10),
    # those of the D2-Net paper
    Limit("0.5 m, 2°", 0.5, 2),
    Limit("1 m, 5°", 1, 5),
    Limit("10 m, 25°", 10, 25),
)
INLOC_LIMITS = (Limit("0.25 m", 0.25, 10), Limit("0.5 m", 0.5, 10), Limit("1 m", 1, 10))


@dataclass(frozen=True)
class Query:
    """A photo to be placed.

    Attributes:
        name: its path relative to the photos' folder.
        group: "day" or "night", or the floor.
        candidates: names of the map's photos that it is matched with.
        known_camera: COLMAP's camera; None for InLoc's telephone.
    """

    name: str
    group: str
    candidates: tuple[str, ...]
    known_camera: pycolmap.Camera | None = None

    def camera(self, size: Size) -> pycolmap.Camera:
        """The camera of the photo, which has this (width, height).

        Raises:
            InputError: the list of queries says another size.
        """
        import pycolmap

        width, height = size
        if self.known_camera is None:
            focal = _IPHONE7_FOCAL * max(size)
            return pycolmap.Camera(
                model="SIMPLE_PINHOLE",
                width=width,
                height=height,
                params=[focal, width / 2, height / 2],
            )
        check_photo_size(self.name, size, self.known_camera)
        return self.known_camera


@dataclass(frozen=True)
class LocalizationData:
    """What is evaluated.

    Attributes:
        layout: "aachen-v1.0", "aachen-v1.1", "inloc", or "scene" (see `held_out`).
        photos: the folder that names of photos are relative to.
        queries: in the order of their lists.
        model: photos of the map with their poses; None for InLoc, whose map is scans.
        limits: that the benchmark counts by.
        threshold: usual largest reprojection error of an inlier in pixels; None: by the
            uncertainty of a query's keypoints, as `d2net localize` does.
        truth: true poses of the queries, where the dataset has them.
        unit: of positions in figures and limits, in units of the model: a metre, or one percent
            of the spread of a scene's cameras.
        elsewhere: files of the photos that are not below `photos`.
    """

    layout: str
    photos: Path
    queries: Sequence[Query]
    model: pycolmap.Reconstruction | None
    limits: Sequence[Limit]
    threshold: float | None
    truth: Mapping[str, pycolmap.Rigid3d] | None = None
    unit: float = 1.0
    elsewhere: Mapping[str, Path] = field(default_factory=dict)


def find_dataset(
    folder: Path,
    *,
    pairs: Sequence[Path] = (),
    queries: Sequence[Path] = (),
    model: Path | None = None,
) -> LocalizationData:
    """Read a dataset.

    Aachen: photos in `images/images_upright` (or `images_upright`, or `images`); the model in
    `3D-models`, COLMAP's in it or in a folder of it, or a .nvm file with `database_intrinsics.txt`
    beside it; queries in `queries/*_time_queries_with_intrinsics.txt`. InLoc: `database/cutouts`,
    `database/alignments` and `query`. Both: lists of pairs `pairs-query-*.txt`.

    Args:
        folder: see above.
        pairs: lists of a query and a photo of the map a line, if they are elsewhere.
        queries: lists of queries with intrinsics, likewise (Aachen).
        model: folder of a COLMAP model or .nvm file, likewise (Aachen).

    Raises:
        InputError: no such folder, or neither layout.
        FormatError: files are broken, or do not belong together.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    inloc = (folder / "database" / "cutouts").is_dir()
    lists = list(queries) or sorted((folder / "queries").glob("*_time_queries_with_intrinsics.txt"))
    if not inloc and not lists:
        raise InputError(
            f"{folder} is neither in Aachen Day-Night's layout (queries/"
            "*_time_queries_with_intrinsics.txt, 3D-models, images_upright) nor in InLoc's "
            "(database/cutouts, query), nor a scene with a COLMAP model of its photos"
        )
    if inloc and (queries or model is not None):
        raise InputError(
            f"{folder} is in InLoc's layout, which has no list of queries and no model"
        )
    candidates = _candidates(folder, list(pairs))
    return _inloc(folder, candidates) if inloc else _aachen(folder, candidates, lists, model)


def _candidates(folder: Path, lists: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Photos of the map by query, in the order of the lists."""
    lists = lists or sorted(folder.glob("pairs-query-*.txt"))
    if not lists:
        raise InputError(
            f"{folder} holds no list of pairs (pairs-query-*.txt, lines of a query and a photo of "
            "the map); give one"
        )
    found: dict[str, dict[str, None]] = {}
    for path in lists:
        for query, photo in read_pairs(path):
            found.setdefault(query, {})[photo] = None
    return {query: tuple(photos) for query, photos in found.items()}


def _aachen(
    folder: Path, candidates: dict[str, tuple[str, ...]], lists: Sequence[Path], model: Path | None
) -> LocalizationData:
    places = [folder / "images" / "images_upright", folder / "images_upright", folder / "images"]
    photos = next((place for place in places if place.is_dir()), None)
    if photos is None:
        raise FormatError(f"{folder} has no photos: a folder images_upright is expected")
    path = model or _find_model(folder / "3D-models")
    read = (
        read_nvm(path, path.parent / "database_intrinsics.txt")
        if _is_nvm(path)
        else read_model(path)
    )
    named = {image.name for image in read.images.values() if image.has_pose}
    found = [
        Query(name, _group(path), candidates.get(name, ()), camera)
        for path in lists
        for name, camera in read_intrinsics(path).items()
    ]
    for query in found:
        if not query.candidates:
            raise FormatError(
                f"the lists of pairs name no photo of the map for the query {query.name}"
            )
        unknown = [name for name in query.candidates if name not in named]
        if unknown:
            raise FormatError(
                f"the query {query.name} is paired with {unknown[0]}, of which the model {path} "
                "has no pose"
            )
    _check_photos(photos, [*sorted(named), *(query.name for query in found)])
    return LocalizationData(
        layout="aachen-v1.0" if _is_nvm(path) else "aachen-v1.1",
        photos=photos,
        queries=found,
        model=read,
        limits=AACHEN_LIMITS,
        threshold=12.0,  # hloc's and COLMAP's
    )


def _find_model(folder: Path) -> Path:
    """COLMAP's before VisualSFM's: v1.1 is handed out together with v1.0."""
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder} with the model of the map; give the model")
    places = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    models = [place for place in places if is_model(place)]
    found = models or sorted(folder.glob("*.nvm"))
    if len(found) != 1:
        raise FormatError(
            f"{folder} holds {len(found) or 'no'} models (COLMAP's or .nvm) where one is expected; "
            "give the model"
        )
    return found[0]


def _is_nvm(path: Path) -> bool:
    return path.suffix.lower() == ".nvm"


def _group(path: Path) -> str:
    """Of day_time_queries_with_intrinsics.txt it is "day"."""
    return path.stem.partition("_time_queries")[0]


def _inloc(folder: Path, candidates: dict[str, tuple[str, ...]]) -> LocalizationData:
    queries = []
    for name, cutouts in candidates.items():
        floors = [Path(cutout).parts[-3] if cutout.count("/") > 1 else "" for cutout in cutouts]
        # The benchmark counts by floor, and says of no query where it was taken.
        queries.append(Query(name, max(floors, key=floors.count), cutouts))
    _check_photos(folder, [name for query in queries for name in (query.name, *query.candidates)])
    return LocalizationData(
        layout="inloc",
        photos=folder,
        queries=queries,
        model=None,
        limits=INLOC_LIMITS,
        threshold=48.0,  # hloc's, for photos of 4032 px
    )


def _check_photos(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{folder} lacks the photo {missing[0]}{more}")
