"""What every source of training pairs yields, and how sources are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.training.views import Crop


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """Two crops of the same size, and points that show the same thing.

    Attributes:
        image_a: H x W x 3 RGB.
        image_b: H x W x 3 RGB, of the size of `image_a`.
        points_a: K x 2 float32 (x, y) in pixels of `image_a`, pixel centres at integers. Sources
            that know every pixel give centres of cells, 8c + 3.5; those that know tracks of points
            give these, wherever they lie.
        points_b: K x 2 float32, the partner of each in pixels of `image_b`.
        source: name of the source.
        photos: paths of the two photos; the same one twice where the source makes views itself.
    """

    image_a: Crop
    image_b: Crop
    points_a: NDArray[np.float32]
    points_b: NDArray[np.float32]
    source: str
    photos: tuple[str, str]


class Source(Protocol):
    """Where training pairs come from.

    A pair is a pure function of its index and the generator's state, so that a resumed run sees
    what an undisturbed one would have seen.
    """

    name: str

    def __len__(self) -> int:
        """How many distinct pairs there are."""
        ...

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Make a pair.

        Args:
            index: 0 to `len` - 1.
            rng: decides where crops lie, how photos are changed and all else that varies.

        Returns:
            The pair, or None if this time it has no usable correspondences.

        Raises:
            D2NetError: a file of the pair is missing or broken.
        """
        ...


class Mixture:
    """Several sources, drawn from by weight.

    Pairs of one source are equally likely.
    """

    name = "mixture"

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None) -> None:
        """Mix sources.

        Args:
            sources: at least one.
            weights: how often each is drawn from, of any sum; by default equally often.

        Raises:
            InputError: no sources, or weights that are not one positive number a source.
        """
        if not sources:
            raise InputError("a mixture needs at least one source of training pairs")
        shares = np.ones(len(sources)) if weights is None else np.array(weights, np.float64)
        if shares.shape != (len(sources),) or not (np.isfinite(shares) & (shares > 0)).all():
            raise InputError(
                f"a mixture of {len(sources)} sources needs as many positive weights, not {weights}"
            )
        self.sources = tuple(sources)
        self.shares: NDArray[np.float64] = shares / shares.sum()

    def __len__(self) -> int:
        """Pairs of all sources together."""
        return sum(len(source) for source in self.sources)

    def draw(self, rng: np.random.Generator) -> tuple[Source, int]:
        """Choose a source and a pair of it."""
        source = self.sources[int(rng.choice(len(self.sources), p=self.shares))]
        return source, int(rng.integers(len(source)))

    def sample(self, rng: np.random.Generator, attempts: int = 100) -> tuple[TrainingPair, int]:
        """Draw until a pair has usable correspondences.

        Returns:
            The pair, and how many drawn before it had none.

        Raises:
            InputError: none of `attempts` had any.
        """
        for failures in range(attempts):
            source, index = self.draw(rng)
            pair = source.pair(index, rng)
            if pair is not None:
                return pair, failures
        names = ", ".join(source.name for source in self.sources)
        raise InputError(
            f"none of {attempts} pairs drawn from {names} has usable correspondences: look at them "
            "with `d2net data check`"
        )


def generator(seed: int, step: int, place: int = 0) -> np.random.Generator:
    """The generator of one pair of a run: nothing but the seed and its place decide it.

    Args:
        seed: of the run, not negative.
        step: number of the training step, not negative.
        place: which pair of the step's batch.
    """
    return np.random.default_rng((seed, step, place))
