"""Lists what d2net needs and under which licence, from the metadata of what is installed.

usage: python tools/licences.py [--write]

With `--write` the list goes into docs/third-party.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LIST = ROOT / "docs" / "third-party.md"
FOR_DEVELOPERS = ("dev", "docs")

HEAD = """\
# Third-party packages

The code of d2net is licensed under Apache-2.0. The
[model card](../src/d2net/networks/pretrained/MODEL_CARD.md) states the licence of the packaged
weights. d2net contains none of the packages below: pip installs them separately, each under its own
licence. `python tools/licences.py --write` makes this list from the metadata of the installed
packages, with the CPU build of torch. A GPU build also installs NVIDIA's libraries under NVIDIA's
licence.

"""


def main() -> None:
    """Print the list, or write it."""
    text = HEAD + "\n".join(_lines()) + "\n"
    if "--write" in sys.argv:
        LIST.write_text(text)
    else:
        print(text, end="")


def _lines() -> Iterator[str]:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = {"Always": project["dependencies"]}
    for extra, requirements in project["optional-dependencies"].items():
        if extra not in FOR_DEVELOPERS:
            parts[f"Extra `{extra}`"] = requirements
    seen: set[str] = set()
    for title, requirements in parts.items():
        found = {name: of for name, of in needed(requirements).items() if name not in seen}
        seen |= found.keys()
        yield from (f"## {title}", "", "| package | licence | home |", "|---|---|---|")
        for name in sorted(found):
            yield f"| {name} | {licence(found[name])} | {_home(found[name])} |"
        yield ""


def needed(requirements: Sequence[str]) -> dict[str, Distribution]:
    """The packages of some requirements, and what these need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(text, "") for text in requirements]
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed: run `make test` first")
        extras = ("", *requirement.extras)
        waiting += [(text, of) for text in found[name].requires or () for of in extras]
    return found


def licence(package: Distribution) -> str:
    """Its SPDX expression, else its classifiers, else the first line of what it says."""
    if expression := _stated(package, "License-Expression"):
        return expression
    classifiers = package.metadata.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    if named:
        return ", ".join(named)
    lines = _stated(package, "License").strip().splitlines()
    return lines[0].strip() if lines else "see its home"


def _home(package: Distribution) -> str:
    links = dict(
        re.split(r",\s*", link, maxsplit=1)
        for link in package.metadata.get_all("Project-URL") or []
    )
    wanted = ("homepage", "home", "source", "source code", "repository", "github")
    by_name = {name.lower(): url for name, url in links.items()}
    urls = [by_name[name] for name in wanted if name in by_name]
    return _stated(package, "Home-page") or (urls or [*links.values(), ""])[0]


def _stated(package: Distribution, name: str) -> str:
    return str((package.metadata.get_all(name) or [""])[0])


if __name__ == "__main__":
    main()
