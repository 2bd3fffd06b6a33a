"""Every change of grid: borders, centres, inverses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d2net.geometry import coordinates
from d2net.geometry.coordinates import AxisMap, GridMap

sides = st.integers(1, 5000)
sizes = st.tuples(sides, sides)
scales = st.floats(0.01, 100)
shifts = st.floats(-1000, 1000)
axes = st.builds(AxisMap, scales, shifts)


@given(sizes, sizes)
def test_resize_maps_borders_to_borders(source: tuple[int, int], target: tuple[int, int]) -> None:
    resize = coordinates.resize(source, target)
    for axis, a, b in ((resize.x, source[0], target[0]), (resize.y, source[1], target[1])):
        assert axis.of(-0.5) == pytest.approx(-0.5)
        assert axis.of(a - 0.5) == pytest.approx(b - 0.5)


@given(sizes, sizes)
def test_resize_with_aligned_corners_maps_corner_centres(
    source: tuple[int, int], target: tuple[int, int]
) -> None:
    resize = coordinates.resize_corners(source, target)
    assert resize.x.of(0) == 0
    if min(source[0], target[0]) > 1:
        assert resize.x.of(source[0] - 1) == pytest.approx(target[0] - 1)


@given(axes, axes, st.floats(-1e4, 1e4))
def test_inverse_and_composition(first: AxisMap, second: AxisMap, value: float) -> None:
    there = first.of(value)
    assert first.inverse().of(there) == pytest.approx(value, abs=1e-6)
    assert second.after(first).of(value) == pytest.approx(second.of(there), abs=1e-6)


@given(axes, axes)
def test_points_are_mapped_axis_by_axis(x: AxisMap, y: AxisMap) -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, -7.0]], dtype=torch.float64)
    mapped = GridMap(x, y)(points)
    assert mapped[1].tolist() == pytest.approx([x.of(3), y.of(-7)])


def test_cells_lie_where_the_pools_centre_them() -> None:
    """Two 2x2 max pools, then an average of two neighbours; or three 2x2 max pools."""
    pixels = torch.arange(64.0)
    twice = pixels.view(-1, 4).mean(dim=1)
    extraction = (twice[:-1] + twice[1:]) / 2
    for cell, centre in enumerate(extraction.tolist()):
        assert coordinates.EXTRACTION_CELLS.x.of(cell) == centre
        assert coordinates.ORIGINAL_EXTRACTION_CELLS.x.of(cell) == centre - 2
    for cell, centre in enumerate(pixels.view(-1, 8).mean(dim=1).tolist()):
        assert coordinates.TRAINING_CELLS.y.of(cell) == centre


def test_colmap_and_crop() -> None:
    origin = torch.zeros(1, 2)
    assert coordinates.COLMAP_FROM_PIXELS(origin).tolist() == [[0.5, 0.5]]
    assert coordinates.crop(10, 20)(torch.tensor([[10.0, 20.0]])).tolist() == [[0.0, 0.0]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_a_quarter_turn_takes_pixels_to_pixels(width: int, height: int, quarters: int) -> None:
    size, turned_from_photo = coordinates.turn((width, height), 90 * quarters)
    numbers = torch.arange(width * height).view(height, width)
    turned = numbers.rot90(quarters)
    assert size == (turned.shape[1], turned.shape[0])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = turned_from_photo(torch.stack([x, y], dim=-1).float())
    cols, rows = places.round().long().unbind(-1)
    assert torch.equal(turned[rows, cols], numbers)
    assert float((places - places.round()).abs().max()) < 1e-5
    assert torch.allclose(turned_from_photo.inverse()(places).round()[..., 0], x.float())


@given(sizes, st.floats(0, 360))
def test_a_turned_photo_is_whole(size: tuple[int, int], degrees: float) -> None:
    (width, height), turned_from_photo = coordinates.turn(size, degrees)
    corners = torch.tensor([[0, 0], [size[0], 0], [0, size[1]], list(size)]).double() - 0.5
    places = turned_from_photo(corners)
    assert float(places.min()) > -0.5 - 1e-3
    assert (places < torch.tensor([width, height]) - 0.5 + 1e-3).all()
