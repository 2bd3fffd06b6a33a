"""The code of the README and of the package's docstring runs, and its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import d2net

from .rendered import write_room

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_python_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = blocks(README, "python")
    names: dict[str, object] = {}
    exec(code, names)
    matches = names["matches"]
    assert isinstance(matches, d2net.Matches)
    assert matches.num_inliers > 400


def test_python_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for photo, name in (("graf1", "a"), ("graf3", "b")):
        with Image.open(ROOT / "tests" / "data" / f"{photo}.png") as image:
            image.resize((240, 192)).convert("RGB").save(f"{name}.jpg")
    assert d2net.__doc__ is not None
    (code,) = blocks(d2net.__doc__, "python")
    exec(code, {})
    assert Path("matches.png").exists()


COMMANDS = [
    line.partition("#")[0].strip()
    for block in blocks(README, "bash")
    for line in block.splitlines()
    if line.startswith("d2net ")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "PHOTOS").mkdir()
    views = {
        f"{name}.jpg": (x, 4 * x) for name, x in zip("ABCDE", (-1, -0.5, 0, 0.5, 1), strict=True)
    }
    write_room(folder / "PHOTOS", views)
    write_room(folder, {**views, "PHOTO.jpg": (0, 0), "QUERY.jpg": (0.3, 3)})
    (folder / "pairs.txt").write_text("A.jpg B.jpg\n")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme(folder: Path, command: str) -> None:
    """In their order: later ones use what earlier ones wrote."""
    words = shlex.split(command)[1:]
    run = subprocess.run(
        [sys.executable, "-m", "d2net", *words],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
