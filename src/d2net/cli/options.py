"""Options that several commands share, and the way in which functions become commands."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

import typer
import typer.core

from d2net.cli import console
from d2net.errors import InputError
from d2net.settings import DescriptorType, DetectorName, ExtractionSettings, Precision

if TYPE_CHECKING:
    from d2net.extraction.d2net import D2Net
    from d2net.matching import MatchOptions
    from d2net.matching.pair_selection import PairChoice, PairMethod

_DEFAULT = ExtractionSettings()

_photos = functools.partial(typer.Option, rich_help_panel="Photos")
_network = functools.partial(typer.Option, rich_help_panel="Network")
_keypoints = functools.partial(typer.Option, rich_help_panel="Keypoints")
_matching = functools.partial(typer.Option, rich_help_panel="Matching")
_pairing = functools.partial(typer.Option, rich_help_panel="Pairs")

Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Share the work among the machines of this Ray cluster.",
        show_default="no cluster",
    ),
]
Device: TypeAlias = Annotated[
    str,
    _network(
        metavar="DEVICE",
        help="cpu, cuda, cuda:1 or mps; auto takes the first of cuda, mps and cpu that there is.",
    ),
]
Weights: TypeAlias = Annotated[
    str, _network(metavar="NAME|FILE", help="A name that `d2net weights` lists, or a file.")
]
Seed: TypeAlias = Annotated[int, typer.Option(metavar="N", help="Seed of all random samples.")]
Masks: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Masks NAME.png; keypoints where a mask is 0 are discarded."),
]
Matcher: TypeAlias = Annotated[
    str,
    _matching(
        metavar="nearest|FILE",
        help="Mutual nearest neighbours, or the weights file of a learned matcher.",
    ),
]
Mapper: TypeAlias = Annotated[
    Literal["incremental", "global"],
    typer.Option(help="COLMAP's incremental mapper, or its global one (GLOMAP)."),
]
CameraMode: TypeAlias = Annotated[
    Literal["auto", "single", "per-folder", "per-image"],
    typer.Option(
        metavar="MODE",
        help="Photos that share a camera: auto (by size and EXIF), single (all), per-folder, "
        "per-image (none).",
    ),
]


@dataclass(frozen=True)
class Printing:
    """Options of every command: what it prints."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False

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


@dataclass(frozen=True)
class Extraction:
    """Options of the commands that extract features."""

    max_keypoints: Annotated[
        int | None,
        _keypoints(
            metavar="N",
            min=0,
            help="Keep the N keypoints with the highest scores; 0 keeps all.",
            show_default=f"{_DEFAULT.max_keypoints}; with --original all",
        ),
    ] = None
    score_threshold: Annotated[
        float, _keypoints(metavar="S", help="Keep keypoints with at least this score.")
    ] = _DEFAULT.score_threshold
    multiscale: Annotated[
        bool, _keypoints("--multiscale", help="Detect at 0.5, 1 and 2 times the photo's size.")
    ] = _DEFAULT.multiscale
    turns: Annotated[
        int,
        _keypoints(
            metavar="N",
            help="Extract N copies of the photo, each turned by another 360/N degrees; finds "
            "matches between photos that are turned against each other.",
        ),
    ] = _DEFAULT.turns
    detector: Annotated[
        DetectorName | None,
        _keypoints(
            help="deep: maxima of the deep map, as in the paper. corner: corners of the grey "
            "photo, which are more precise. both: half of each.",
            show_default="both; with --original deep",
        ),
    ] = None
    descriptor: Annotated[
        DescriptorType | None,
        _keypoints(
            metavar="TYPE",
            help="plain: the deep map, as in the paper. root: its square root. fused: the deep "
            "and a shallow map. whitened: fused and reduced to 384 numbers.",
            show_default="whitened if the weights have learned it, else fused",
        ),
    ] = None
    original: Annotated[
        bool, _keypoints("--original", help="Reproduce the 2019 release, faults included.")
    ] = _DEFAULT.original
    max_edge: Annotated[
        int | None, _photos(metavar="PIXELS", help="Reduce photos with a longer edge.")
    ] = _DEFAULT.max_edge
    max_sum_edges: Annotated[
        int | None, _photos(metavar="PIXELS", help="Reduce photos whose width + height is larger.")
    ] = _DEFAULT.max_sum_edges
    full_resolution: Annotated[
        bool, _photos("--full-resolution", help="Reduce no photo; large ones are cut into tiles.")
    ] = False
    stored_orientation: Annotated[
        bool, _photos("--stored-orientation", help="Ignore the orientation in the EXIF data.")
    ] = not _DEFAULT.upright
    stretch: Annotated[
        bool,
        _photos("--stretch", help="Stretch the contrast of dim photos (12 bits in 16, thermal)."),
    ] = _DEFAULT.stretch
    weights: Weights = "default"
    device: Device = "auto"
    precision: Annotated[
        Precision, _network(metavar="TYPE", help="float32, bfloat16, or float16 (GPU only).")
    ] = _DEFAULT.precision

    @property
    def settings(self) -> ExtractionSettings:
        """The settings of the model."""
        settings = ExtractionSettings(
            original=self.original,
            detector=self.detector,
            descriptor=self.descriptor,
            multiscale=self.multiscale,
            turns=self.turns,
            max_edge=None if self.full_resolution else self.max_edge,
            max_sum_edges=None if self.full_resolution else self.max_sum_edges,
            score_threshold=self.score_threshold,
            upright=not self.stored_orientation,
            stretch=self.stretch,
            precision=self.precision,
        )
        if self.max_keypoints is None:
            return settings
        return settings.updated(max_keypoints=self.max_keypoints or None)

    def model(self, printing: Printing) -> D2Net:
        """The model. Its weights are downloaded if they are not on this machine."""
        settings = self.settings.to_dict()  # reports wrong settings before the slow imports

        from d2net.extraction.d2net import D2Net

        download(self.weights, printing)
        device = find_device(self.device, printing)
        return D2Net.from_pretrained(self.weights, device=device, **settings)


def download(weights: str, printing: Printing) -> None:
    """Download named weights that are not on this machine yet."""
    from d2net.cli import progress
    from d2net.networks.catalogue import CATALOGUE
    from d2net.networks.weights import download_weights

    if weights in CATALOGUE:
        with progress.shown(printing, download=True) as advance:
            download_weights(weights, advance)


def find_device(device: str, printing: Printing) -> str:
    """The device to compute on. The choice of "auto" is printed on standard error."""
    if device != "auto":
        return device

    import torch

    name = ""
    if torch.cuda.is_available():
        device, name = "cuda", f" ({torch.cuda.get_device_name()})"
    elif torch.backends.mps.is_available():
        device = "mps"
    else:
        device = "cpu"
    if printing.progress:
        console.err.print(f"device: {device}{name}")
    return device


@dataclass(frozen=True)
class Matching:
    """Options of the commands that match."""

    verify: Annotated[
        Literal["fundamental", "homography", "none"],
        _matching(
            metavar="MODEL",
            help="Find the inliers of a fundamental matrix (fundamental) or a homography "
            "(homography), or keep all matches (none).",
        ),
    ] = "fundamental"
    threshold: Annotated[
        float | None,
        _matching(
            metavar="PIXELS",
            help="Largest error of an inlier.",
            show_default="by the keypoints' uncertainty",
        ),
    ] = None
    matcher: Matcher = "nearest"
    ratio: Annotated[
        float | None,
        _matching(metavar="R", help="Ratio test, 0 to 1. D2-Net matches best without one."),
    ] = None
    min_similarity: Annotated[
        float | None, _matching(metavar="S", help="Smallest cosine similarity of a match, -1 to 1.")
    ] = None

    def arguments(self) -> MatchOptions:
        """The arguments of `match` and `match_pairs`."""
        return {
            "verify": None if self.verify == "none" else self.verify,
            "threshold": self.threshold,
            "matcher": self.matcher,
            "ratio": self.ratio,
            "min_similarity": self.min_similarity,
        }


_METHODS_WITH = {
    "overlap": ("sequential",),
    "num_matched": ("auto", "retrieval", "gps", "covisibility"),
    "max_distance": ("gps",),
    "model": ("covisibility",),
}
"""The methods of pair selection that take an option."""


@dataclass(frozen=True)
class Pairing:
    """Options of the commands that select pairs of photos."""

    num_matched: Annotated[
        int | None,
        _pairing(
            metavar="N",
            help="retrieval, gps, covisibility: number of partners of each photo.",
            show_default="20",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        _pairing(
            metavar="N", help="sequential: pair each photo with the next N.", show_default="10"
        ),
    ] = None
    max_distance: Annotated[
        float | None,
        _pairing(metavar="METRES", help="gps: largest distance of a pair.", show_default="100"),
    ] = None
    model: Annotated[
        Path | None, _pairing("--model", metavar="DIR", help="covisibility: COLMAP model.")
    ] = None

    def choose(self, method: PairMethod, file: Path | None = None) -> PairChoice:
        """The argument of `choose_pairs`; `file` is the list of pairs of the method "list"."""
        given: dict[str, Any] = {
            name: getattr(self, name) for name in _METHODS_WITH if getattr(self, name) is not None
        }
        for name in given:
            if method not in _METHODS_WITH[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} is for {', '.join(_METHODS_WITH[name])}, not for "
                    f"{method}"
                )
        if method == "covisibility" and self.model is None:
            raise InputError("covisibility needs a COLMAP model: give --model DIR")

        from d2net.matching.pair_selection import PairChoice

        return PairChoice(method=method, file=file, **given)


def numbers(option: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The numbers of an option such as `--seeds 0,1,2`."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} takes numbers separated by commas, not {text!r}") from None


def app(**settings: Any) -> typer.Typer:  # noqa: ANN401 (those of typer.Typer)
    """An empty command line, or an empty group of commands."""
    return typer.Typer(
        cls=_Group,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def add_command(group: typer.Typer, function: Callable[..., None]) -> None:
    """Add a function as a command; its parameters become the arguments and options.

    A parameter that is a dataclass becomes one option for each of its fields, because Typer does
    not know dataclasses.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    options: dict[str, tuple[Any, Any]] = {}  # name -> default and type
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in groups:
            types = get_type_hints(groups[parameter.name], include_extras=True)
            for field in fields(groups[parameter.name]):
                options[field.name] = field.default, types[field.name]
        else:
            options[parameter.name] = parameter.default, hints[parameter.name]

    @functools.wraps(function)
    def command(**values: object) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        function(**values)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
            )
            for name, (default, hint) in options.items()
        ]
    )
    command.__annotations__ = {name: hint for name, (_, hint) in options.items()}
    group.command(cls=_Command)(command)


class _Command(typer.core.TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401 (click's, which typer may copy)
        return _without_types(super().get_params(ctx))


class _Group(typer.core.TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:  # noqa: ANN401
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    """Hide the types <bool> of flags and <list[Path]> of arguments from Typer's help."""
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None
        elif getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
