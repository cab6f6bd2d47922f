"""kernels/fused_mlp/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from redline.errors import GraphError
from redline.kernels.check import on_host
from redline.kernels.fused_mlp import cuda
from redline.kernels.fused_mlp.cuda import CASES, TOLERANCE
from redline.kernels.fused_mlp.operator import Activation, Layer, reference
from redline.kernels.fused_mlp.shapes import DLRM_TOP, chain
from redline.kernels.fused_mlp.shapes import ROWS as SHARED_ROWS
from redline.kernels.host.run import ORDERS, Counts, Order
from redline.kernels.launch import launch

ROWS = cuda.ROWS + 3  # a tile and a tail
every_chain = pytest.mark.parametrize(("widths", "last"), CASES, ids=str)


def rows_of(count: int, k: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, k)).astype(np.float32)


def fused_mlp_on_host(
    x: NDArray[np.float32], layers: Sequence[Layer], order: Order, *, checked: bool = True
) -> tuple[NDArray[np.float32], Counts]:
    return on_host(*cuda.arguments(x, cuda.pack(layers)), order, checked=checked)


@pytest.mark.parametrize("order", ORDERS)
@every_chain
def test_answers_are_the_reference(widths: tuple[int, ...], last: Activation, order: Order) -> None:
    """In checked mode: no bug of any kind, either. Every step but the sigmoid is rounded as NumPy rounds it."""
    layers, x = chain(widths, last), rows_of(ROWS, widths[0])
    y, _ = fused_mlp_on_host(x, layers, order)
    np.testing.assert_allclose(y, reference(x, layers), rtol=0, atol=TOLERANCE[last])


@pytest.mark.parametrize("rows", [*SHARED_ROWS, 500])
def test_any_number_of_rows(rows: int) -> None:
    layers, x = chain((13, 256, 128, 32)), rows_of(rows, 13)
    y, _ = fused_mlp_on_host(x, layers, "random", checked=False)
    np.testing.assert_array_equal(y, reference(x, layers))


def test_a_sigmoid_between_layers() -> None:
    """Its last place may move what is quantized next by one step: the answer by a step times a weight."""
    layers = [replace(layer, activation="sigmoid") for layer in chain((31, 33, 17))]
    x = rows_of(ROWS, 31)
    y, _ = fused_mlp_on_host(x, layers, "forward")
    np.testing.assert_allclose(y, reference(x, layers), rtol=0, atol=2e-3)


@pytest.mark.parametrize("k", [1, 15, 16, 17, 1024])
def test_accumulators_are_exact(k: int) -> None:
    """Extremes of int8, every scale 1: what comes out is the accumulator itself, exact in float32 below 2^24."""
    rng = np.random.default_rng(k)
    weight = rng.choice(np.array([-128, 127], np.int8), (5, k))
    ones, zeros = np.ones(5, np.float32), np.zeros(5, np.float32)
    layer = Layer(weight=weight, weight_scale=ones, bias=zeros, input_scale=1.0, activation="none")
    x = rng.choice(np.array([-128, 127], np.int8), (3, k))
    y, _ = fused_mlp_on_host(x.astype(np.float32), [layer], "forward")
    np.testing.assert_array_equal(y.astype(np.int64), x.astype(np.int64) @ weight.astype(np.int64).T)


def test_what_enters_saturates_and_rounds_to_even() -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, 1e30, -1e30, np.inf, -np.inf, np.nan, 127.5]], np.float32).T
    layer = Layer(
        weight=np.ones((1, 1), np.int8),
        weight_scale=np.ones(1, np.float32),
        bias=np.zeros(1, np.float32),
        input_scale=1.0,
        activation="none",
    )
    y, _ = fused_mlp_on_host(x, [layer], "forward")
    np.testing.assert_array_equal(y.ravel(), [0, 2, 2, 0, 127, -128, 127, -128, -128, 127])
    np.testing.assert_array_equal(y, reference(x, [layer]))


def test_a_row_does_not_depend_on_its_neighbors() -> None:
    layers, x = chain((13, 256, 128, 32)), rows_of(ROWS, 13)
    alone, _ = fused_mlp_on_host(x[7:8].copy(), layers, "forward")
    x[8:] *= 100
    among, _ = fused_mlp_on_host(x, layers, "forward")
    np.testing.assert_array_equal(among[7:8], alone)


def test_bytes_read_are_those_of_the_roofline() -> None:
    """x once and y once; weights once a block and group of rows (the groups of a block hit L1)."""
    _, counts = fused_mlp_on_host(rows_of(ROWS, DLRM_TOP[0]), chain(DLRM_TOP), "forward")
    blocks, groups = -(-ROWS // 16), 16 // 4
    weights = sum(-(-k // 16) * 16 * n for k, n in pairwise(DLRM_TOP))
    assert counts.read_bytes[:2] == (ROWS * DLRM_TOP[0] * 4, weights * blocks * groups)
    assert counts.written_bytes == (0, 0, 0, 0, 0, 0, ROWS * DLRM_TOP[-1] * 4)


def test_a_chain_too_wide_for_shared_memory_is_refused() -> None:
    with pytest.raises(GraphError, match="together 4096 wide, this chain's are 16 and 4096"):
        cuda.pack(chain((16, 4096, 16)))
    assert cuda.pack(chain((16, 4080, 16))).shared_bytes == cuda.SHARED_LIMIT_BYTES


def test_activations_are_numbered_as_in_the_kernel() -> None:
    assert get_args(Activation) == ("none", "relu", "sigmoid")
    source = cuda.KERNEL.source.with_name("chain.cuh").read_text()
    assert "RELU = 1, SIGMOID = 2" in source
    assert "THREADS = 256, ROWS = 16," in source


@pytest.mark.gpu
@every_chain
def test_answers_are_the_reference_on_a_gpu(widths: tuple[int, ...], last: Activation, gpu: None) -> None:
    layers, x = chain(widths, last), rows_of(513, widths[0])
    kernel, shape, args = cuda.arguments(x, cuda.pack(layers))
    launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
    np.testing.assert_allclose(args[-1], reference(x, layers), rtol=0, atol=TOLERANCE[last])
