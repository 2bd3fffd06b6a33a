"""Winograd's convolution against torch's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2net.networks import winograd


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_equals_torch(height: int, width: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, inputs, height, width, generator=generator)
    weight = torch.randn(outputs, inputs, 3, 3, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    expected = F.conv2d(x, weight, bias, padding=1)[0].permute(1, 2, 0)
    kernel = winograd.transform_weight(weight)
    found = winograd.convolve(x[0].permute(1, 2, 0), kernel, bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_many_blocks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(50, 33, 8), torch.randn(6, 8, 3, 3), torch.randn(6)
    kernel = winograd.transform_weight(weight)
    whole = winograd.convolve(x, kernel, bias)
    monkeypatch.setattr(winograd, "TILES_PER_BLOCK", 20)
    torch.testing.assert_close(winograd.convolve(x, kernel, bias), whole, rtol=1e-4, atol=1e-4)


def weight_for(outputs: int, inputs: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(outputs, inputs, 3, 3))


def test_threads_may_share_a_new_layer() -> None:
    x, weight, bias = torch.randn(1, 64, 40, 40), weight_for(256, 64), torch.randn(256)
    with torch.no_grad():
        expected = F.conv2d(x, weight, bias, padding=1)
        for _ in range(10):
            layer = winograd.Convolution()
            with ThreadPoolExecutor(4) as pool:
                for found in pool.map(lambda layer: layer(x, weight, bias), [layer] * 8):
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def change_values(weight: torch.nn.Parameter) -> None:
    weight.mul_(2)


def change_data(weight: torch.nn.Parameter) -> None:
    weight.data.mul_(2)


def replace_data(weight: torch.nn.Parameter) -> None:
    weight.data = 2 * weight.data


def set_from_vector(weight: torch.nn.Parameter) -> None:
    torch.nn.utils.vector_to_parameters(2 * weight.detach().flatten(), [weight])


@pytest.mark.parametrize("change", [change_values, change_data, replace_data, set_from_vector])
def test_a_changed_weight_is_used(change: Callable[[torch.nn.Parameter], None]) -> None:
    x, weight, bias = torch.randn(1, 4, 9, 9), weight_for(3, 4), torch.randn(3)
    layer = winograd.Convolution()
    with torch.no_grad():
        layer(x, weight, bias)
        change(weight)
        expected = F.conv2d(x, weight, bias, padding=1)
        torch.testing.assert_close(layer(x, weight, bias), expected, rtol=1e-4, atol=1e-4)


def test_a_layer_made_in_inference_mode_works_inside_and_outside() -> None:
    with torch.inference_mode():
        x, weight, bias = torch.randn(1, 4, 9, 9), weight_for(3, 4), torch.randn(3)
        layer = winograd.Convolution()
        expected = F.conv2d(x, weight, bias, padding=1)
        torch.testing.assert_close(layer(x, weight, bias), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, weight, bias), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_rounding_error(dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest output, at the width of the deepest layers."""
    torch.manual_seed(0)
    x = torch.rand(24, 24, 512)
    weight = torch.randn(64, 512, 3, 3) / (9 * 512) ** 0.5
    bias = torch.zeros(64)
    exact = F.conv2d(x.permute(2, 0, 1)[None].double(), weight.double(), padding=1)[0]
    found = winograd.convolve(x, winograd.transform_weight(weight, dtype), bias)
    error = (found - exact.permute(1, 2, 0)).abs().max() / exact.abs().max()
    assert float(error) < tolerance
