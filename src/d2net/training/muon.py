"""The optimizer Muon."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon for kernels, AdamW for all other parameters.

    Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) sees a
    kernel as a matrix of outputs x inputs and makes its momentum orthogonal before the step. The
    step has the size of AdamW's (Liu et al., "Muon is scalable for LLM training", 2025), so one
    learning rate serves both. Kernels have two or more dimensions; others no weight decay.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        kernels = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": kernels},
            {"params": others, "weight_decay": 0.0},
        ]
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step; the kernels' gradients are None afterwards."""
        group = self.param_groups[0]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:  # AdamW expects "step" in every state that it restores
                state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(p)}
            momentum = state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
            ahead = p.grad.lerp(momentum, _MOMENTUM)  # Nesterov's
            matrix = orthogonal(ahead.contiguous().flatten(1))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            size = 0.2 * max(matrix.shape) ** 0.5
            p.add_(matrix.reshape(p.shape), alpha=-group["lr"] * size)
            p.grad = None  # so that AdamW leaves it alone
        super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to `matrix`: five Newton-Schulz steps in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)
