import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2net.errors import InputError
from d2net.matching import nearest
from d2net.matching.nearest import mutual_nearest


def unit(rows, dimensions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dimensions, generator=generator), dim=1)


def brute_force(a, b, ratio=None):
    """The definition, row by row in double precision; ties go to the lowest index."""
    similarity = a.double().numpy() @ b.double().numpy().T
    distance = np.sqrt(np.maximum(2 - 2 * similarity, 0))
    pairs = []
    for i in range(len(a)):
        j = int(similarity[i].argmax()) if len(b) else -1
        if j < 0 or similarity[:, j].argmax() != i:
            continue
        others = np.concatenate([np.delete(distance[i], j), np.delete(distance[:, j], i)])
        if ratio is not None and len(others) and distance[i, j] >= ratio * others.min():
            continue
        pairs.append((i, j))
    return pairs


def as_pairs(matches):
    return [tuple(pair) for pair in matches.indices.tolist()]


def sign_vectors(dimensions):
    """Unit vectors of +-1/sqrt(dimensions), dimensions a power of four: their cosines are exact in
    any order of summation, and few rows are enough for ties and duplicates."""
    shapes = st.tuples(st.integers(0, 12), st.just(dimensions))
    return hnp.arrays(np.float32, shapes, elements=st.sampled_from([-1.0, 1.0])).map(
        lambda signs: torch.from_numpy(signs / np.float32(dimensions**0.5))
    )


@given(
    sign_vectors(4),
    sign_vectors(4),
    st.sampled_from([(1, 1), (2, 2), (3, 1), (6, 2), (8, 4), (4096, 64)]),
    st.sampled_from([None, 0.8, 1.0]),
)
@settings(max_examples=150, deadline=None)
def test_equals_definition_with_ties_and_duplicates_for_any_block(a, b, sizes, ratio):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_BLOCK", sizes[0])
        patch.setattr(nearest, "_GROUP", sizes[1])
        matches = mutual_nearest(a, b, ratio=ratio)
    assert as_pairs(matches) == brute_force(a, b, ratio)


@pytest.mark.parametrize(("rows_a", "rows_b"), [(1, 1500), (1500, 1), (1024, 1024), (1300, 2500)])
@pytest.mark.parametrize("ratio", [None, 0.95])
def test_equals_definition_over_several_blocks(rows_a, rows_b, ratio, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 512)
    a, b = unit(rows_a, 32), unit(rows_b, 32, seed=1)
    common = (min(rows_a, rows_b) + 1) // 2
    a[:common] = torch.nn.functional.normalize(b[:common] + 0.1 * a[:common], dim=1)
    matches = mutual_nearest(a, b, ratio=ratio)
    assert as_pairs(matches) == brute_force(a, b, ratio)
    assert len(matches) >= common
    expected = (a[matches.indices[:, 0]] * b[matches.indices[:, 1]]).sum(1)
    torch.testing.assert_close(matches.similarity, expected, atol=1e-6, rtol=0)


def test_finds_every_row_of_a_shuffled_copy():
    b = unit(3000, 128)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(2))
    matches = mutual_nearest(b[order], b)
    assert torch.equal(matches.indices, torch.stack([torch.arange(3000), order], dim=1))
    torch.testing.assert_close(matches.similarity, torch.ones(3000), atol=1e-5, rtol=0)


def test_ratio_rejects_what_is_ambiguous_in_either_direction():
    a = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    twice = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert as_pairs(mutual_nearest(a, twice)) == [(0, 0), (1, 2), (2, 3)]
    assert as_pairs(mutual_nearest(a, twice, ratio=0.9)) == [(1, 2), (2, 3)]
    assert as_pairs(mutual_nearest(twice, a, ratio=0.9)) == [(2, 1), (3, 2)]


def test_ratio_keeps_the_only_candidate():
    only = torch.tensor([[1.0, 0.0]])
    assert as_pairs(mutual_nearest(only, -only, ratio=0.1)) == [(0, 0)]


def test_half_precision_is_compared_in_single():
    a, b = unit(500, 512), unit(700, 512, seed=1)
    half = mutual_nearest(a.half(), b.half(), ratio=0.99)
    assert half.similarity.dtype == torch.float32
    converted = mutual_nearest(a.half().float(), b.half().float(), ratio=0.99)
    assert torch.equal(half.indices, converted.indices)
    assert torch.equal(half.similarity, converted.similarity)


def test_double_precision_finds_the_same():
    a, b = unit(50, 128), unit(70, 128, seed=1)
    expected, found = mutual_nearest(a, b), mutual_nearest(a.double(), b.double())
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.similarity, expected.similarity)


@pytest.mark.parametrize("shapes", [(0, 5), (5, 0), (0, 0)])
def test_no_keypoints_give_no_matches(shapes):
    matches = mutual_nearest(*(unit(rows, 8) for rows in shapes), ratio=0.9)
    assert len(matches) == 0
    assert matches.indices.shape == (0, 2)


def test_gradients_do_not_flow_into_matches():
    a = unit(5, 8).requires_grad_()
    assert not mutual_nearest(a, a).similarity.requires_grad


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 0.5, 100.0])
@pytest.mark.parametrize("which", ["descriptors_a", "descriptors_b"])
def test_descriptors_not_of_unit_length_are_refused(spoil, which):
    descriptors = {"descriptors_a": unit(4, 8), "descriptors_b": unit(4, 8)}
    descriptors[which][2, 3] = spoil
    with pytest.raises(InputError, match=f"{which} must have unit length, but row 2"):
        mutual_nearest(**descriptors)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (unit(4, 8), unit(4, 16), r"\(4, 8\) on cpu and \(4, 16\) on cpu cannot be compared"),
        (unit(4, 8), unit(4, 8).to("meta"), r"on cpu and \(4, 8\) on meta"),
        (unit(4, 8)[0], unit(4, 8), r"\(8,\) on cpu"),
    ],
)
def test_descriptors_that_do_not_fit_together_are_refused(a, b, message):
    with pytest.raises(InputError, match=message):
        mutual_nearest(a, b)


@pytest.mark.parametrize(
    "arguments",
    [{"ratio": 0}, {"ratio": 1.1}, {"ratio": float("nan")}],
)
def test_limits_out_of_range_are_refused(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        mutual_nearest(unit(4, 8), unit(4, 8), **arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_finds_the_same():
    a, b = unit(9000, 512), unit(5000, 512, seed=1)
    on_gpu = mutual_nearest(a.cuda(), b.cuda(), ratio=0.99)
    assert on_gpu.indices.device.type == "cuda"
    on_cpu = mutual_nearest(a, b, ratio=0.99)
    same = set(as_pairs(on_gpu)) & set(as_pairs(on_cpu))
    assert len(same) >= 0.999 * max(len(on_gpu), len(on_cpu))  # rounding decides a few


MEMORY_OF_30000 = """
import torch
from d2net.matching.nearest import mutual_nearest
torch.manual_seed(0)
a, b = (torch.nn.functional.normalize(torch.randn(30_000, 512), dim=1).half() for _ in range(2))
mutual_nearest(a, b, ratio=0.99)
with open("/proc/self/status") as status:  # ru_maxrss would count the process that started this one
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_for_30000_keypoints():
    """The whole process, torch and descriptors included, stays under 1 GB."""
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_OF_30000], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 1_000_000


def test_arrays_are_refused_in_one_sentence():
    array = np.eye(4, dtype=np.float32)
    with pytest.raises(InputError, match=r"must be tensors, not .*ndarray"):
        mutual_nearest(array, array)
