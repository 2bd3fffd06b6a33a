"""Find photos: in files and folders, or from a list of names in a text file."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from d2net.errors import FormatError, InputError
from d2net.io.atomic import check_regular
from d2net.io.drawn_pictures import is_own_picture
from d2net.io.text_lists import CAMERA_LINE, read_lines, unicode_forms
from d2net.wording import count

_log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
    | {".heic", ".heif", ".hif", ".avif", ".mpo", ".ppm", ".pgm", ".pbm", ".pnm"}
)
"""In folders, files with these extensions (upper or lower case) are photos."""

_UNREAD = frozenset(
    {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}  # raw photos
    | {".nrw", ".gpr", ".crw", ".rwl", ".3fr", ".iiq", ".x3f", ".mrw", ".sr2", ".erf", ".kdc"}
    | {".jxl", ".jp2", ".j2k", ".tga", ".exr", ".hdr", ".psd", ".insp"}
)


@dataclass(frozen=True)
class FoundImage:
    """The file of a photo."""

    path: Path
    name: str
    """Its POSIX path relative to the root, which identifies the photo in every output."""


def find_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] | None = None,
) -> list[FoundImage]:
    """Find the photos in files and folders.

    Folders are searched with all their subfolders, and links to folders are followed. Hidden files
    and folders, thumbnails by Synology (`@eaDir`) and pictures that the package made are skipped. A
    given file counts as a photo whatever its extension. Each file is listed once, in the order of
    `paths`, and the files of a folder by name. Names are relative to `root`, by default to the
    given folder or to the folder of a given file.

    Raises:
        InputError: a path does not exist, cannot be listed or is not below `root`, or two
            different files would have the same name.
    """
    found: dict[str, Path] = {}
    seen_folders: set[Path] = set()
    seen_files: set[Path] = set()
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        check_regular(path)
        if path.is_dir():
            here = Path(root or path)
            files = sorted(_walk(path, seen_folders), key=lambda pair: pair[0].as_posix())
        elif path.exists() or path.is_symlink():
            here = Path(root or path.parent)
            files = [(path, path.parent.resolve() / path.name)]
            if is_own_picture(path):
                _log.warning("%s is a picture that d2net made, not a photo", path)
        else:
            raise InputError(f"there is no file or folder {str(path)!r}")
        for file, location in files:
            if location in seen_files:
                continue
            seen_files.add(location)
            name = _name_below(here, file)
            if name in found:
                raise InputError(
                    f"{str(found[name])!r} and {str(file)!r} would both have the name {name!r}; "
                    "give a folder that contains both as root, so that their names differ"
                )
            found[name] = file
    return [FoundImage(path, name) for name, path in found.items()]


def photos_folder(folder: Path) -> Path:
    """The folder of a scene's photos: its subfolder `images` if there is one, else itself."""
    images = folder / "images"
    return images if images.is_dir() else folder


def find_photo(folders: Iterable[Path], name: str) -> Path | None:
    """The file of a photo in the first folder that has it, in any Unicode form; else None."""
    for path in (folder / form for folder in folders for form in unicode_forms(name)):
        try:
            if path.is_file():
                return path
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # such as .png behind a name of 255 bytes
                raise
    return None


def named_photo(folders: Sequence[Path], name: str, source: object, remedy: str = "") -> Path:
    """As `find_photo`; FormatError if the photo that the `source` names is missing."""
    path = find_photo(folders, name)
    if path is None:
        where = " or ".join(map(str, folders)) or "any known folder"
        raise FormatError(f"{source} names the photo {name}, which is not in {where}{remedy}")
    return path


def read_image_list(file: str | os.PathLike[str], root: str | os.PathLike[str]) -> list[FoundImage]:
    """The photos below `root` that a text file names, whether or not they exist.

    Each line has one name, which may contain spaces. Names that occurred before are skipped, and so
    are cameras after the name (`name CAMERA_MODEL width height parameters...`, as in hloc).

    Raises:
        InputError: the list cannot be read, or a name leads out of `root`.
    """
    found: dict[str, Path] = {}
    for _, line in read_lines(file, "names of photos", errors="surrogateescape"):
        with_camera = CAMERA_LINE.fullmatch(line)
        text = with_camera["name"] if with_camera else line
        if os.sep == "\\" or find_photo([Path(root)], text) is None:  # a list made on Windows
            text = text.replace("\\", "/")
        text = next((form for form in unicode_forms(text) if Path(root, form).exists()), text)
        name = PurePosixPath(text)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(
                f"the image list {os.fspath(file)!r} names {str(name)!r}, but names must be "
                f"relative to the root folder {os.fspath(root)!r} and stay below it"
            )
        found[str(name)] = Path(root, name)
    return [FoundImage(path, name) for name, path in found.items()]


def _walk(folder: Path, seen: set[Path]) -> Iterator[tuple[Path, Path]]:
    """The photos below `folder`: each path as found, and the same path without links."""

    def fail(error: OSError) -> None:
        raise InputError(f"cannot list the folder {str(error.filename)!r}: {error.strerror}")

    own_pictures, unread = [], []
    for here, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        parent = Path(here)
        real = parent.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(
            (name for name in folders if not name.startswith((".", "@eaDir"))),
            key=lambda name: ((parent / name).is_symlink(), name),  # real folders give the names
        )
        if parent != folder and {"transforms.json", "points.ply"}.issubset(files):
            own_pictures.append(parent)  # a scene by `d2net export`
            folders.clear()
            continue
        is_map = "map.json" in files
        for name in files:
            file, suffix = parent / name, Path(name).suffix.lower()
            if name.startswith(".") or (file.exists() and not file.is_file()):
                continue  # a pipe would block
            if suffix in _UNREAD:
                unread.append(file)
            elif suffix in EXTENSIONS and not is_own_picture(file):
                yield file, real / name
            elif suffix in EXTENSIONS and not is_map:
                own_pictures.append(file)
    if own_pictures:
        _log.warning(
            "pictures that d2net made are not photos and are skipped: %s",
            ", ".join(map(str, own_pictures)),
        )
    if unread:
        _log.warning(
            "%s in an unsupported format, such as %s; convert to JPEG or TIFF",
            *(count(len(unread), "photo"), unread[0]),
        )


def _name_below(root: Path, file: Path) -> str:
    """The POSIX path of `file` relative to `root`: as given if possible, else without links."""
    for base, path in (
        (root.absolute(), file.absolute()),
        (root.resolve(), file.parent.resolve() / file.name),
    ):
        if path.is_relative_to(base):
            relative = path.relative_to(base)
            if ".." not in relative.parts:
                return relative.as_posix()
    raise InputError(f"the photo {str(file)!r} is not below the root folder {str(root)!r}")
