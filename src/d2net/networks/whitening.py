"""A linear map of descriptors, learned from what corresponds: few numbers that tell places apart.

Directions in which descriptors of one place differ from photo to photo count for little, those in
which places differ for much (linear discriminant analysis; for local features: Mikolajczyk and
Matas, "Improving descriptors for fast tree matching by optimal linear projection", ICCV 2007). It
has a closed form; `training.whitening` learns it.
"""

from __future__ import annotations

from torch import Tensor, nn

from d2net.networks.vgg import VGG16_STAGES

INPUTS = 2 * VGG16_STAGES[-1][-1] + VGG16_STAGES[-2][-1]
"""Length of what is whitened: deep, shallow, and deep around, see `sampling.describe`."""


class Whitening(nn.Module):
    """The map; it belongs to the weights of a network.

    Args:
        weight: D x `INPUTS` float32.
        bias: D float32.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, descriptors: Tensor) -> Tensor:
        """N x `INPUTS` to N x D, float32; not normalised."""
        return descriptors @ self.weight.T + self.bias
