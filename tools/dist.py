"""Builds the sdist and the wheel, checks what is in them, and matches two photos with the wheel.

usage: python tools/dist.py

The match runs in a new environment, in a folder that is not this one. What cannot be released ends
the program with a sentence that says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Collection
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
LARGEST = 32e6  # bytes, of which the weights are 29.0e6

PACKAGE = ROOT / "src" / "d2net"
IN_SDIST = ("LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
IN_METADATA = ("LICENSE", "MODEL_CARD.md")

MATCH = """
import sys
import d2net
model = d2net.D2Net.from_pretrained(max_keypoints=1000)
a, b = model.extract(sys.argv[1]), model.extract(sys.argv[2])
print(d2net.__version__, d2net.match(a, b, verify="homography").num_inliers)
"""


def main() -> None:
    """Build, look inside, try."""
    shutil.rmtree(DIST, ignore_errors=True)
    _run(sys.executable, "-m", "build", "--outdir", str(DIST), str(ROOT))
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    _demand(names, {*IN_SDIST, *_sources("src/d2net/")}, sdist)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        stated = Parser().parsestr(archive.read(metadata).decode())
    _demand(names, _sources("d2net/"), wheel)
    info = metadata.rpartition("/")[0]
    strangers = {n for n in names if not n.startswith(("d2net/", info))}
    _demand(strangers, (), wheel, exactly=True)
    licences = {name.rpartition("/")[2] for name in names if "/licenses/" in name}
    _demand(licences, IN_METADATA, wheel)
    for path in (sdist, wheel):
        size = path.stat().st_size
        if size > LARGEST:
            sys.exit(f"{path.name} has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} MB")
        print(f"{path.name}: {size / 1e6:.1f} MB")
    _try(wheel, stated["Version"])


def _sources(prefix: str) -> set[str]:
    """All files of the package that git knows, under another prefix."""
    listed = _run("git", "-C", str(PACKAGE), "ls-files")
    return {prefix + name for name in listed.splitlines()}


def _demand(
    found: Collection[str], wanted: Collection[str], path: Path, *, exactly: bool = False
) -> None:
    missing = sorted(set(wanted) - set(found))
    if missing:
        sys.exit(f"{path.name} lacks {', '.join(missing)}")
    strangers = sorted(set(found) - set(wanted)) if exactly else []
    if strangers:
        sys.exit(f"{path.name} should not hold {', '.join(strangers)}")


def _try(wheel: Path, version: str) -> None:
    """Match OpenCV's sample pair with the wheel alone."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _run("bash", str(ROOT / "tools" / "setup"), str(place / "venv"), str(wheel))
        photos = [str(ROOT / "tests" / "data" / f"{name}.jpg") for name in _PAIR]
        python = place / "venv" / "bin" / "python"
        found = _run(str(python), "-I", "-c", MATCH, *photos, cwd=place).split()
        if found[0] != version or int(found[1]) < _FEWEST:
            sys.exit(f"{wheel.name}, installed, gives version {found[0]} and {found[1]} inliers")
        print(f"{wheel.name}, installed in an empty environment: {found[1]} inliers")


_PAIR = ("graf1", "graf3")
_FEWEST = 100


def _run(*command: str, cwd: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    run = subprocess.run(
        command, cwd=cwd, env=environment, check=False, capture_output=True, text=True
    )
    if run.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{run.stdout}{run.stderr}")
    return run.stdout


if __name__ == "__main__":
    main()
