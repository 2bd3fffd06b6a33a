"""Options that several commands share, defined once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast, get_type_hints

import typer

from d2net.cli import console
from d2net.errors import InputError
from d2net.settings import (
    DescriptorType,
    DetectorName,
    ExtractionOptions,
    ExtractionSettings,
    Precision,
)

if TYPE_CHECKING:
    from d2net.extraction.d2net import D2Net
    from d2net.matching.pair_selection import PairChoice

_DEFAULT = ExtractionSettings()


def _option(panel: str, *flags: str, **keywords: Any) -> Any:  # noqa: ANN401 (as typer.Option)
    return typer.Option(*flags, rich_help_panel=panel, **keywords)


_photos = functools.partial(_option, "Photos")
_network = functools.partial(_option, "Network")
_keypoints = functools.partial(_option, "Keypoints")
_matching = functools.partial(_option, "Matching")
_pairing = functools.partial(_option, "Pairs")


Cluster: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="auto|ADDRESS",
        help="Share the work among the machines of this Ray cluster.",
        show_default="this process alone",
    ),
]
"""The option of the commands that can work on many machines."""


@dataclass(frozen=True)
class Printing:
    """Options of every command: how it tells what it did."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False

    @property
    def progress(self) -> bool:
        """Whether to show progress bars."""
        return not self.quiet and not self.json

    def result(self, values: object, *lines: str) -> None:
        """Print what came out: values for machines or lines for people."""
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
            help="Keep the N best by score; 0 for all.",
            show_default=f"{_DEFAULT.max_keypoints}; with --original all",
        ),
    ] = None
    score_threshold: Annotated[
        float, _keypoints(metavar="S", help="Keep those with at least this score.")
    ] = _DEFAULT.score_threshold
    multiscale: Annotated[
        bool, _keypoints("--multiscale", help="Detect at 0.5, 1 and 2 times the photo's size.")
    ] = _DEFAULT.multiscale
    turns: Annotated[
        int,
        _keypoints(
            metavar="N",
            help="Also extract the photo turned, in N turns of 360/N degrees; N times as many.",
        ),
    ] = _DEFAULT.turns
    detector: Annotated[
        DetectorName | None,
        _keypoints(
            help="Detect maxima of the deep map as in the paper (deep), corners of the grey photo, "
            "which are more precise (corner), or both.",
            show_default="both; with --original deep",
        ),
    ] = None
    descriptor: Annotated[
        DescriptorType | None,
        _keypoints(
            metavar="FORM",
            help="Deep map as in the paper (plain), its root, that fused with a shallow map, or "
            "whitened: in 384 numbers, learned with the weights.",
            show_default="whitened if the weights can",
        ),
    ] = None
    original: Annotated[
        bool, _keypoints("--original", help="Reproduce the 2019 release, faults included.")
    ] = _DEFAULT.original
    max_edge: Annotated[
        int | None, _photos(metavar="PIXELS", help="Reduce photos with a longer edge.")
    ] = _DEFAULT.max_edge
    max_sum_edges: Annotated[
        int | None,
        _photos(metavar="PIXELS", help="Reduce photos whose width + height is larger."),
    ] = _DEFAULT.max_sum_edges
    full_resolution: Annotated[
        bool, _photos("--full-resolution", help="Reduce nothing; large photos go in tiles.")
    ] = False
    stored_orientation: Annotated[
        bool,
        _photos("--stored-orientation", help="Do not turn photos as their EXIF data say."),
    ] = not _DEFAULT.upright
    weights: Annotated[
        str, _network(metavar="NAME|FILE", help="A name that `d2net weights` lists, or a file.")
    ] = "default"
    device: Annotated[
        str, _network(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps.")
    ] = "cpu"
    precision: Annotated[
        Precision,
        _network(metavar="TYPE", help="float32, bfloat16, or float16 (GPU only)."),
    ] = "float32"

    @property
    def settings(self) -> ExtractionSettings:
        """What they mean to the model."""
        options: ExtractionOptions = {
            "original": self.original,
            "multiscale": self.multiscale,
            "turns": self.turns,
            "max_edge": None if self.full_resolution else self.max_edge,
            "max_sum_edges": None if self.full_resolution else self.max_sum_edges,
            "score_threshold": self.score_threshold,
            "upright": not self.stored_orientation,
            "precision": self.precision,
        }
        if self.detector is not None:
            options["detector"] = self.detector
        if self.descriptor is not None:
            options["descriptor"] = self.descriptor
        if self.max_keypoints is not None:
            options["max_keypoints"] = self.max_keypoints or None
        return ExtractionSettings().updated(**options)

    def model(self, printing: Printing) -> D2Net:
        """The model they ask for; its weights are downloaded if they must be."""
        settings = self.settings.to_dict()  # wrong ones are told before the slow imports

        from d2net.cli import progress
        from d2net.extraction.d2net import D2Net
        from d2net.networks.catalogue import CATALOGUE
        from d2net.networks.weights import download_weights

        if self.weights in CATALOGUE:
            with progress.shown(printing, download=True) as advance:
                download_weights(self.weights, advance)
        return D2Net.from_pretrained(self.weights, device=self.device, **settings)


@dataclass(frozen=True)
class Matching:
    """Options of the commands that match."""

    verify: Annotated[
        Literal["fundamental", "homography", "none"],
        _matching(metavar="MODEL", help="Mark inliers of fundamental, homography, or none."),
    ] = "fundamental"
    threshold: Annotated[
        float | None,
        _matching(
            metavar="PIXELS", help="Largest error of an inlier.", show_default="by uncertainty"
        ),
    ] = None
    ratio: Annotated[
        float | None,
        _matching(metavar="R", help="Ratio test, 0 to 1.", show_default="none, best for D2-Net"),
    ] = None
    min_similarity: Annotated[
        float | None,
        _matching(metavar="S", help="Least cosine of a match, -1 to 1.", show_default="none"),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """What they mean to `match` and `match_pairs`."""
        return {
            "verify": None if self.verify == "none" else self.verify,
            "threshold": self.threshold,
            "ratio": self.ratio,
            "min_similarity": self.min_similarity,
        }


_OF_METHODS = {
    "overlap": ("sequential",),
    "num_matched": ("auto", "retrieval", "gps", "covisibility"),
    "max_distance": ("gps",),
    "model": ("covisibility",),
}
"""The methods of choosing pairs that an option is for."""


@dataclass(frozen=True)
class Pairing:
    """Options of the commands that choose pairs of photos."""

    num_matched: Annotated[
        int | None,
        _pairing(
            metavar="N",
            help="retrieval, gps, covisibility: others for each photo.",
            show_default="20",
        ),
    ] = None
    overlap: Annotated[
        int | None,
        _pairing(metavar="N", help="sequential: next photos for each photo.", show_default="10"),
    ] = None
    max_distance: Annotated[
        float | None,
        _pairing(metavar="METRES", help="gps: at most so far apart.", show_default="100"),
    ] = None
    model: Annotated[
        Path | None,
        _pairing("--model", metavar="DIR", help="covisibility: COLMAP model.", show_default=False),
    ] = None

    def of(self, method: str, file: Path | None = None) -> PairChoice:
        """What they mean to `choose_pairs`."""
        chosen: dict[str, Any] = {
            name: getattr(self, name) for name in _OF_METHODS if getattr(self, name) is not None
        }
        for name in chosen:
            if method not in _OF_METHODS[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} is for {', '.join(_OF_METHODS[name])}, not "
                    f"{method}"
                )
        if method == "covisibility" and self.model is None:
            raise InputError("covisibility needs a COLMAP model: --model DIR")

        from d2net.matching.pair_selection import PairChoice

        return PairChoice(method=cast(Any, method), file=file, **chosen)


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its dataclass parameters as options of their own.

    Typer knows no dataclasses.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {n: hint for n, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            group = groups[parameter.name]
            types = get_type_hints(group, include_extras=True)
            options = [(field.name, field.default, types[field.name]) for field in fields(group)]
        else:
            options = [(parameter.name, parameter.default, hints[parameter.name])]
        for name, default, hint in options:
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
                )
            )

    @functools.wraps(command)
    def spread_out(**values: object) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread_out
