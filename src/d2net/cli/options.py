"""Options that several commands share, and how functions become commands.

A command is a function. Its positional parameters are the arguments and its keywords the options;
parameters that are dataclasses stand for the options in their fields. The help comes from
docstrings: a section is a panel of options, and an entry `name METAVAR: Sentence.` in it is one.
"""

from __future__ import annotations

import functools
import inspect
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

import typer
import typer.core

from d2net.cli import console
from d2net.errors import InputError
from d2net.settings import DescriptorType, ExtractionSettings, Precision

if TYPE_CHECKING:
    from d2net.extraction.d2net import D2Net
    from d2net.matching import MatchOptions
    from d2net.matching.pair_selection import PairChoice, PairMethod

_DEFAULT = ExtractionSettings()

_SHARED = """
Options:
    cluster auto|ADDRESS: Share the work among the machines of this Ray cluster.
    masks DIR: Folder of masks NAME.png. Keypoints are dropped where the mask is 0.
    mapper: COLMAP's incremental mapper, or its global mapper (GLOMAP) for new models.
    camera_mode: Which photos share a camera. auto: photos with the same size and EXIF data. single:
        all photos. per-folder: the photos of a folder. per-image: no photos.
    seed N: Seed of all random samples.

Matching:
    matcher nearest|learned|FILE: nearest: mutual nearest neighbours. learned: the packaged matcher
            for the default and for light. FILE: weights of another learned matcher.

Network:
    weights NAME|FILE: A name that `d2net weights` lists, or a file. Two joined by +, such as
        light+seasons: the first detects, and both describe.
    device DEVICE: cpu, cuda, cuda:1 or mps. auto: cuda if available, else mps, else cpu.
"""


@dataclass(frozen=True, kw_only=True)
class Printing:
    """Options of every command: what it prints.

    Options:
        quiet: Print errors only.
        json: Print one JSON document.
    """

    quiet: bool = False
    json: bool = False

    @property
    def progress(self) -> bool:
        """Whether to print progress and notes for people."""
        return not self.quiet and not self.json

    def result(self, values: object, *lines: str) -> None:
        """Print the result: values for programs or lines for people."""
        if self.json:
            console.print_json(values)
        elif not self.quiet:
            for line in lines:
                console.say(line)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Options of the commands that extract features.

    Keypoints:
        max_keypoints N: Keep the N keypoints with the highest scores; 0 keeps all. Default: 4096;
            with --original, all.
        score_threshold S: Keep keypoints with at least this score.
        multiscale: Detect at 0.5, 1 and 2 times the photo's size.
        turns N: Extract N copies of the photo, rotated in steps of 360/N degrees, to match
            photos that are rotated relative to each other.
        descriptor TYPE: plain: the deep map, as in the paper. root: its square root. fused: the
            deep and a shallow map. whitened: fused, reduced to 384 dimensions. light: from light.
            combined: from light and a VGG. Default: the best type that the weights have.
        original: Reproduce the 2019 release, faults included.

    Photos:
        max_edge PIXELS: Reduce photos whose longer edge exceeds this; by default also photos whose
            edges add up to more than 2800.
        full_resolution: Keep the size of all photos; large ones are processed in tiles.
        stored_orientation: Use photos as stored, without the orientation in the EXIF data.
        stretch: Stretch the contrast, for low-contrast photos such as thermal or 12-bit ones.

    Network:
        precision TYPE: float32, bfloat16, or float16 (GPU only).
    """

    max_keypoints: int | None = None
    score_threshold: float = _DEFAULT.score_threshold
    multiscale: bool = False
    turns: int = _DEFAULT.turns
    descriptor: DescriptorType | None = None
    original: bool = False
    max_edge: int | None = _DEFAULT.max_edge
    full_resolution: bool = False
    stored_orientation: bool = False
    stretch: bool = False
    weights: str = "default"
    device: str = "auto"
    precision: Precision = _DEFAULT.precision

    def model(self, printing: Printing) -> D2Net:
        """The model. Its weights are downloaded if they are not on this machine."""
        names = {field.name for field in fields(ExtractionSettings)}
        values = {name: value for name, value in vars(self).items() if name in names}
        values["upright"] = not self.stored_orientation
        if self.max_keypoints is None:
            del values["max_keypoints"]  # the default depends on --original
        elif self.max_keypoints == 0:
            values["max_keypoints"] = None
        if self.full_resolution:
            if self.max_edge != _DEFAULT.max_edge:
                raise InputError("give --max-edge or --full-resolution, not both")
            values["max_edge"] = None
        # With an edge of up to 1400 the sum is within its limit.
        if self.full_resolution or 1400 < (self.max_edge or 0) != _DEFAULT.max_edge:
            values["max_sum_edges"] = None
        settings = ExtractionSettings(**values).to_dict()  # checked before the slow imports

        from d2net.extraction.d2net import D2Net

        download(self.weights, printing)
        device = find_device(self.device, printing)
        return D2Net.from_pretrained(self.weights, device=device, **settings)


def download(weights: str, printing: Printing) -> None:
    """Download named weights that are not on this machine yet."""
    from d2net.cli import progress
    from d2net.networks.catalogue import CATALOGUE
    from d2net.networks.weights import download_weights, file_names

    for name in file_names(weights):
        if name in CATALOGUE:
            with progress.shown(printing) as advance:
                download_weights(name, advance)


def find_device(device: str, printing: Printing) -> str:
    """The device to compute on. The choice of "auto" is printed on standard error."""
    if device != "auto":
        return device

    import torch

    name = ""
    if torch.cuda.is_available():
        device, name = "cuda", f" ({torch.cuda.get_device_name()})"
    else:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
    if printing.progress:
        console.err.print(f"device: {device}{name}")
    return device


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Options of the commands that match.

    Matching:
        verify MODEL: Find the inliers of a fundamental matrix (fundamental) or of a homography
            (homography), or keep all matches (none).
        threshold PIXELS: Largest error of an inlier. Default: from the keypoints' uncertainty.
        ratio R: Largest ratio in the ratio test, 0 to 1. D2-Net matches best without the test.
    """

    verify: Literal["fundamental", "homography", "none"] = "fundamental"
    threshold: float | None = None
    matcher: str = "nearest"
    ratio: float | None = None

    def arguments(self) -> MatchOptions:
        """The arguments of `match` and `match_pairs`."""
        return {
            "verify": None if self.verify == "none" else self.verify,
            "threshold": self.threshold,
            "matcher": self.matcher,
            "ratio": self.ratio,
        }


_METHODS_WITH = {
    "overlap": ("sequential",),
    "num_matched": ("auto", "retrieval", "gps", "covisibility"),
    "max_distance": ("gps",),
    "model": ("covisibility",),
}
"""The methods of pair selection that take an option."""


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Options of the commands that select pairs of photos.

    Pairs:
        num_matched N: retrieval, gps, covisibility: pair each photo with N others. Default: 20.
        overlap N: sequential: pair each photo with the next N photos. Default: 10.
        max_distance METRES: gps: pair photos up to this distance. Default: 100.
        model DIR: covisibility: folder of the COLMAP model.
    """

    num_matched: int | None = None
    overlap: int | None = None
    max_distance: float | None = None
    model: Path | None = None

    def choose(self, method: PairMethod, file: Path | None = None) -> PairChoice:
        """The argument of `choose_pairs`; `file` is the list of pairs of the method "list"."""
        given: dict[str, Any] = {k: value for k, value in vars(self).items() if value is not None}
        for name in given:
            if method not in _METHODS_WITH[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} is for {', '.join(_METHODS_WITH[name])}, not for "
                    f"{method}"
                )

        from d2net.matching.pair_selection import PairChoice

        return PairChoice(method=method, file=file, **given)


def app(help: str) -> typer.Typer:
    """An empty command line, or an empty group of commands."""
    return typer.Typer(
        cls=_Group,
        help=help,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def add_command(group: typer.Typer, function: Callable[..., None]) -> None:
    """Add a function as a command, see this module's docstring."""
    text, entries = _explained(function)
    entries = _entries(_SHARED) | entries
    hints = get_type_hints(function)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            kind = groups[parameter.name]
            hints |= get_type_hints(kind)
            entries |= _explained(kind)[1]
            parameters += inspect.signature(kind).parameters.values()
        else:
            parameters.append(parameter)

    @functools.wraps(function)
    def command(**values: object) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{n: values.pop(n) for n in inspect.signature(kind).parameters})
        import_module("pycolmap")  # its handler of SIGTERM prints a stack trace
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        function(**values)

    signature = inspect.Signature([_declared(p, hints[p.name], entries) for p in parameters])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    group.command(cls=_Command, help=text)(command)


_Entries: TypeAlias = dict[str, tuple[str | None, str, str | None]]  # metavar, sentences, panel


def _explained(function: Callable[..., object]) -> tuple[str, _Entries]:
    """The text of a docstring, and its entries."""
    docstring = inspect.cleandoc(function.__doc__ or "")
    return re.split(r"\n\n[A-Z]\w+:\n", docstring)[0], _entries(docstring)


def _entries(text: str) -> _Entries:
    return {
        name: (metavar or None, " ".join(sentences.split()), panel)
        for panel, body in re.findall(r"^([A-Z]\w+):\n((?: {4}.*\n?)+)", text, re.MULTILINE)
        for name, metavar, sentences in re.findall(
            r"^ {4}(\w+)(?: ([^:]+))?: (.*(?:\n {8}.*)*)", body, re.MULTILINE
        )
    }


def _declared(parameter: inspect.Parameter, hint: Any, entries: _Entries) -> inspect.Parameter:  # noqa: ANN401 (a type)
    """A parameter with Typer's declaration of it."""
    name = parameter.name
    metavar, sentences, panel = entries.get(name, (None, "", None))
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        info = typer.Argument(help=sentences, metavar=metavar)
    else:
        names = [f"--{name.strip('_').replace('_', '-')}"]
        names += [f"-{name[0]}"] if name in ("output", "quiet") else []
        info = typer.Option(*names, help=sentences, metavar=metavar, rich_help_panel=panel)
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[hint, info])


class _Help:
    """Help without the types <bool> of flags and <list[Path]> of arguments."""

    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (click's, which typer may copy)
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = lambda ctx: None
            elif getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Command(_Help, typer.core.TyperCommand):
    pass


class _Group(_Help, typer.core.TyperGroup):
    pass
