"""Makes a matcher of the descriptors of light start one for the descriptors of the default.

usage: python tools/widen_matcher.py FILE OUTPUT

FILE is a matcher for `light`; OUTPUT matches the descriptors of `light+seasons`, for a recipe with
`start = "light+seasons"` and `matcher = "OUTPUT"`. The states of its keypoints begin as those of
FILE: the weights of the descriptors of `seasons` are 0 until they are trained.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

import torch

from d2net import D2Net
from d2net.networks.matcher import MatchingTransformer
from d2net.networks.weights import load_matcher, save_weights


def widened(matcher: MatchingTransformer, descriptor_length: int) -> MatchingTransformer:
    """A copy for descriptors that begin with the matcher's, divided by the square root of 2."""
    wide = MatchingTransformer(replace(matcher.settings, descriptor_length=descriptor_length))
    own = matcher.settings.descriptor_length
    weight = torch.zeros_like(wide.project.weight)
    # The network multiplies descriptors by the square root of their length.
    weight[:, :own] = matcher.project.weight * math.sqrt(2 * own / descriptor_length)
    wide.load_state_dict({**matcher.state_dict(), "project.weight": weight})
    return wide


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    network, loaded = load_matcher(arguments.file)
    model = D2Net.from_pretrained("light+seasons")
    (length,) = model.network.descriptor_lengths.values()
    about = {**loaded.metadata, "descriptor_id": model.descriptor_id()}
    save_weights(arguments.output, widened(network, length), about)


if __name__ == "__main__":
    main()
