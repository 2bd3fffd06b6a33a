"""The layer table of docs/architecture.md, checked from the syntax trees."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "d2net"
ROW = re.compile(r"^level (\d)\s+(.*)$")


def table() -> dict[str, int]:
    """Module or package -> level, from the table in the documentation."""
    levels: dict[str, int] = {}
    level = None
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        row = ROW.match(line)
        if row:
            level = int(row[1])
        elif not line.startswith("  ") or level is None:
            level = None
            continue
        text = row[2] if row else line.strip()
        for name in re.findall(r"`([a-z0-9_./]+)`", text) or text.split():
            levels[name.strip("/").replace("/", ".")] = level
    return levels


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix(".__init__") if name != "__init__" else ""


def level_of(module: str, levels: dict[str, int]) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name in levels:
            return levels[name]
    pytest.fail(f"{module} has no level in docs/architecture.md")


def imports(path: Path) -> set[str]:
    """Modules of d2net that a module imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("d2net.") for name in found if name.startswith("d2net.")}
    modules = {module_name(p) for p in SOURCE.rglob("*.py")}
    return {
        name if name in modules else name.rpartition(".")[0]
        for name in names
        if name in modules or name.rpartition(".")[0] in modules
    } - {""}


def test_modules_import_only_their_own_level_or_lower() -> None:
    levels = table()
    wrong = [
        f"{module_name(path)} imports {other}"
        for path in SOURCE.rglob("*.py")
        if path != SOURCE / "__init__.py"
        for other in imports(path)
        if level_of(other, levels) > level_of(module_name(path), levels)
    ]
    assert wrong == []


def test_the_table_names_only_what_exists() -> None:
    for name in table():
        path = SOURCE.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), name


@pytest.mark.parametrize("module", ["d2net", "d2net.cli"])
def test_import_is_light(module: str) -> None:
    code = (
        f"import sys, {module}; heavy = {{'torch', 'cv2', 'pycolmap', 'h5py', 'scipy', "
        "'poselib', 'PIL', 'starlette', 'uvicorn'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, f"importing {module} also imports {run.stderr}"


def test_optional_packages_and_compilers_stay_out_of_extraction() -> None:
    code = (
        "import sys, d2net; d2net.D2Net; d2net.extract_folder; d2net.match; d2net.match_pairs; "
        "heavy = {'poselib', 'kapture', 'kornia', "
        "'torch._dynamo', 'torch._inductor', 'pycolmap', 'ray'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0, f"also imported: {run.stderr}"
