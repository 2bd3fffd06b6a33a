"""MegaDepth: prepared once, then a source of training pairs as in the 2019 release.

Preparing replaces the release's three scripts: it checks photos and depth maps, undistorts cameras,
measures overlaps, and writes a file a reconstruction (`stored.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from d2net.errors import FormatError, InputError
from d2net.io.atomic import output_errors
from d2net.training.sources.megadepth_layouts import (
    Part,
    find_parts,
    read_part,
    read_scene_info,
)
from d2net.training.sources.scenes import DENSE_MINIMUM, PosedPairs, SceneOptions, overlaps
from d2net.training.sources.stored import (
    LEAST_OVERLAP,
    StoredScene,
    read_header,
    write_scene,
)

SCENE_LISTS = ("default", "paper", "paper-validation")
"""Lists that come with the package; `all` stands for whatever is there."""


@dataclass(frozen=True)
class MegadepthOptions(SceneOptions):
    """Options of prepared MegaDepth; the defaults are the release's.

    Attributes:
        pairs_per_scene: every scene counts as so many random pairs; 0 takes each pair once.
        root: where MegaDepth lies; by default where it lay when it was prepared.
    """

    min_correspondences: int = DENSE_MINIMUM
    pairs_per_scene: int = 100
    root: str = ""


def open_megadepth(folder: Path, options: MegadepthOptions, crop: int) -> PosedPairs:
    """Open what `prepare_megadepth` wrote.

    Raises:
        InputError: no such folder, nothing prepared in it, or no pairs within the limits.
        FormatError: a prepared scene is damaged.
    """
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise InputError(
            f"{folder} holds no prepared scenes: run `d2net data prepare megadepth ROOT "
            f"--output {folder}` first"
        )
    root = Path(options.root) if options.root else None
    scenes = [StoredScene(path, root, options) for path in files]
    usable = [scene for scene in scenes if len(scene.pairs)]
    if not usable:
        raise InputError(
            f"none of the {len(scenes)} scenes in {folder} has pairs within the limits of overlap "
            f"({options.min_overlap} to {options.max_overlap}) and scale ratio"
        )
    remarks = []
    if len(usable) < len(scenes):
        remarks.append(f"{len(scenes) - len(usable)} scenes have no pairs within the limits")
    if options.min_overlap < LEAST_OVERLAP:
        remarks.append(f"pairs of an overlap below {LEAST_OVERLAP} are not prepared")
    return PosedPairs(
        options.name or "megadepth", usable, options, crop, remarks, options.pairs_per_scene or None
    )


@dataclass(frozen=True)
class PreparedScene:
    """What became of a reconstruction.

    Attributes:
        name: SCENE/NUMBER.
        photos: how many photos it has that can be used.
        pairs: how many ordered pairs share at least 0.1 of the first one's points.
        left_out: reason -> how many photos were left out for it.
        error: why there is nothing of it, or "".
    """

    name: str
    photos: int = 0
    pairs: int = 0
    left_out: tuple[tuple[str, int], ...] = ()
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in the prepared file."""
        return {
            "name": self.name,
            "photos": self.photos,
            "pairs": self.pairs,
            "left_out": dict(self.left_out),
        }


def prepare_megadepth(
    root: Path,
    output: Path,
    scenes: str = "default",
    scene_info: Path | None = None,
    jobs: int = 1,
    report: Callable[[str, int], None] | None = None,
) -> list[PreparedScene]:
    """Check MegaDepth and write what training reads of it; a run that was stopped goes on.

    Args:
        root: the folder of `phoenix` and `MegaDepth_v1_SfM`, or of `phoenix` and
            `Undistorted_SfM`.
        output: folder for a file per reconstruction; made if need be. Those that are there stay.
        scenes: `default`, `paper`, `paper-validation`, `all`, or a file of scenes, one a line.
        scene_info: folder of the 2019 release's SCENE.npz; read instead of models.
        jobs: processes.
        report: called after each reconstruction with its name and how many are left.

    Returns:
        What became of each, in order.

    Raises:
        InputError: no MegaDepth at `root`, none of the scenes there, or no such list.
        OutputError: the output cannot be written.
    """
    if jobs < 1:
        raise InputError(f"at least 1 process must work, not {jobs}")
    if scene_info is None:
        parts = _chosen(find_parts(root), scenes, root)
    else:
        found = [Part(path.stem, "0") for path in sorted(scene_info.glob("*.npz"))]
        parts = _chosen(found, scenes, scene_info)
    with output_errors(output / "scene"):
        output.mkdir(parents=True, exist_ok=True)
    prepare = partial(_prepare, root, output, scene_info)
    done = []
    for result in _mapped(prepare, parts, jobs):
        done.append(result)
        if report is not None:
            report(result.name, len(parts) - len(done))
    return done


def _mapped(
    prepare: Callable[[Part], PreparedScene], parts: Sequence[Part], jobs: int
) -> Iterator[PreparedScene]:
    if jobs == 1:
        yield from map(prepare, parts)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(prepare, parts)


def _prepare(root: Path, output: Path, scene_info: Path | None, part: Part) -> PreparedScene:
    path = output / f"{part.scene}-{part.number}.h5"
    if path.exists():
        try:
            kept = read_header(path)["prepared"]
            return PreparedScene(**{**kept, "left_out": tuple(kept["left_out"].items())})
        except (FormatError, KeyError, TypeError):
            path.unlink()  # of another version, or damaged
    try:
        if scene_info is None:
            photos, left_out = read_part(root, part)
        else:
            photos, left_out = read_scene_info(scene_info / f"{part.scene}.npz", root)
    except FormatError as error:
        return PreparedScene(part.name, error=str(error))
    found = overlaps(photos, LEAST_OVERLAP)
    result = PreparedScene(
        part.name, len(photos), len(found.pairs), tuple(sorted(left_out.items()))
    )
    write_scene(path, root, photos, found, {"prepared": result.to_dict()})
    return result


def scene_list(name: str) -> list[str] | None:
    """Scenes of a list, as SCENE or SCENE/NUMBER; None for all.

    Args:
        name: `default`, `paper`, `paper-validation`, `all`, or a file.

    Raises:
        InputError: neither a list nor a file.
    """
    if name == "all":
        return None
    if name in SCENE_LISTS:
        file = resources.files(__package__) / "scene_lists" / f"{name}.txt"
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"there is no list of scenes {name!r}: give {', '.join(SCENE_LISTS)}, all, or a "
                "text file with a scene a line"
            ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _chosen(parts: Sequence[Part], scenes: str, where: Path) -> list[Part]:
    wanted = scene_list(scenes)
    chosen = [p for p in parts if wanted is None or p.scene in wanted or p.name in wanted]
    if not chosen:
        raise InputError(f"none of the scenes of the list {scenes!r} is in {where}")
    return chosen
