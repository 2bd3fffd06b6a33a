import pytest

from d2net.errors import InputError
from d2net.geometry.ransac import RansacOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0},
        {"threshold": float("nan")},
        {"threshold": 3, "confidence": 1.0},
        {"threshold": 3, "max_iterations": 0},
        {"threshold": 3, "seed": -1},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        RansacOptions(**wrong)
