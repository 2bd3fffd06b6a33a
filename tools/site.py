"""Hooks of mkdocs: pages from Markdown files outside docs/ and from the commands; links; layers.

Every text has one source, which also reads well in the repository. There, links lead from file to
file; here they are turned to lead from page to page.
"""

from __future__ import annotations

import html
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from d2net.cli import app

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    ".github/SECURITY.md": "security.md",
    "src/d2net/networks/pretrained/MODEL_CARD.md": "model-card.md",
}
SOURCES = {page: source for source, page in PAGES.items()}

GIVES = (
    "settings, features",
    "photos, files",
    "dense maps",
    "Features",
    "Matches",
    "maps, poses, weights",
    "figures",
    "commands",
)
"""What each level gives those above it."""

LINK = re.compile(r"(?P<bang>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FIGURES = re.compile(r"<!-- from (?P<file>\S+): (?P<name>\S+?)(?:, (?P<rows>\S+))? -->")
LEVELS = re.compile(r"```\n(level 0.*?)```\n", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    os.environ.setdefault("PYTHONPATH", str(ROOT / "src"))  # for the kernels of the tutorials
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def _commands() -> str:
    """All commands with their options, from the command line itself."""
    group = typer.main.get_command(app)
    context: Any = typer.Context(group)
    text = get_docs_for_click(obj=group, ctx=context, name="d2net", title="Commands")
    # Every command has --help. The lists of commands repeat the first words of the sections.
    return re.sub(r"\* `--help`.*\n|\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:  # noqa: ANN401 (of mkdocs)
    """Turn a page's links, and draw the layers."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")
    markdown = FIGURES.sub(_figures, markdown)
    markdown = LINK.sub(lambda link: _turned(link, source, here), markdown)
    return LEVELS.sub(lambda table: _picture(table[1]), markdown)


def _turned(link: re.Match[str], source: str, here: str) -> str:
    """A link from file to file as one from page to page; of a file that is no page, its text."""
    target, hash_, part = link["target"].partition("#")
    if "://" in target or target.startswith("mailto:") or not target:
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in PAGES:
        path = PAGES[path]
    elif path.startswith("docs/"):
        path = path.removeprefix("docs/")
    else:
        return link["text"]
    relative = posixpath.relpath(path, posixpath.dirname(here) or ".")
    return f"{link['bang']}[{link['text']}]({relative}{hash_}{part})"


def _figures(place: re.Match[str]) -> str:
    """A table of another page, or only those of its rows that start with a method's name."""
    text = (ROOT / place["file"]).read_text()
    _, _, rest = text.partition(f"<!-- {place['name']} -->\n")
    figures, end, _ = rest.partition(f"<!-- end of {place['name']} -->")
    if not end:
        raise PluginError(f"{place['file']} has no figures called {place['name']}")
    if place["rows"] is None:
        return figures
    head, line, *rows = figures.splitlines(keepends=True)
    return "".join([head, line, *(row for row in rows if row.startswith(f"| `{place['rows']}"))])


def _picture(table: str) -> str:
    """The levels one above the other, each with its modules."""
    levels: list[list[str]] = []
    for line in table.splitlines():
        if line.startswith("level"):
            levels.append([])
        levels[-1] += line.removeprefix(f"level {len(levels) - 1}").split()
    top, parts = 4.0, []
    for number in reversed(range(len(levels))):
        chips, height = _chips(levels[number], top + 12)
        parts.append(
            f'<rect class="level" x="2" y="{top}" width="556" height="{height}" rx="8"/>'
            f'<text class="number" x="18" y="{top + height / 2 + 8}">{number}</text>{chips}'
            f'<text class="gives" x="408" y="{top + height / 2 + 5}">{GIVES[number]}</text>'
        )
        top += height + 8
    body = "".join(parts)
    return (
        f'<figure><svg class="layers" viewBox="0 0 560 {top}" role="img" '
        f'aria-label="The levels of the package, and what each gives">{body}</svg>'
        "<figcaption>A module imports from its own level or lower ones.</figcaption></figure>\n"
    )


def _chips(names: list[str], top: float) -> tuple[str, float]:
    """Boxes with names in rows, and the height of their level."""
    x, y, parts = 46.0, top, []
    for name in names:
        width = 14 + 7.4 * len(name)
        if x + width > 400:
            x, y = 46.0, y + 32
        parts.append(
            f'<rect class="chip" x="{x}" y="{y}" width="{width}" height="25" rx="5"/>'
            f'<text class="name" x="{x + 7}" y="{y + 17}">{html.escape(name)}</text>'
        )
        x += width + 8
    return "".join(parts), y - top + 49
