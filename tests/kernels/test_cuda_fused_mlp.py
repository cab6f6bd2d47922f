"""kernels/fused_mlp/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from redline.errors import GraphError, RequestError
from redline.kernels.check import on_host
from redline.kernels.fused_mlp import cuda
from redline.kernels.fused_mlp.cuda import CASES, TOLERANCE
from redline.kernels.fused_mlp.operator import ACTIVATIONS, Activation, Layer, reference
from redline.kernels.fused_mlp.shapes import DLRM_TOP, chain
from redline.kernels.fused_mlp.shapes import ROWS as SHARED_ROWS
from redline.kernels.host.run import ORDERS, Counts, Order
from redline.kernels.launch import SHARED_LIMIT_BYTES, launch

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
    assert cuda.pack(chain((16, 4080, 16))).shared_bytes == SHARED_LIMIT_BYTES


@pytest.mark.parametrize(
    ("i", "change", "why"),
    [
        (1, {"weight": np.zeros((3, 6), np.int8)}, "layer 1: takes 6 numbers, the layer before gives 7"),
        (0, {"weight": np.zeros((7, 5), np.float32)}, "layer 0: weight of float32, on CUDA it must be int8"),
        (0, {"weight": np.zeros(7, np.int8)}, r"layer 0: wanted int8 weight \[n, k\], .*, got int8 \[7\], "),
        (1, {"weight_scale": np.ones(2, np.float32)}, r"layer 1: wanted .*, got int8 \[3, 7\], float32 \[2\], "),
        (1, {"bias": np.ones(4, np.float32)}, r"layer 1: wanted .*\[3\], float32 \[4\]$"),
        (1, {"bias": np.ones(3)}, r"layer 1: wanted .*\[3\], float64 \[3\]$"),
        (0, {"input_scale": 0.0}, "layer 0: input scale must be finite and above 0, got 0.0"),
        (1, {"input_scale": np.inf}, "layer 1: input scale must be finite and above 0, got inf"),
        (1, {"input_scale": np.nan}, "layer 1: input scale must be finite and above 0, got nan"),
        (0, {"activation": "sigmoid"}, r"layer 0: activation sigmoid \(a sigmoid ends a chain\)"),
    ],
)
def test_a_chain_that_does_not_fit_is_refused(i: int, change: dict[str, Any], why: str) -> None:
    layers = chain((5, 7, 3))
    layers[i] = replace(layers[i], **change)
    with pytest.raises(GraphError, match=f"^FusedMlp: {why}"):
        cuda.pack(layers)


def test_no_layers_are_refused() -> None:
    with pytest.raises(GraphError, match="FusedMlp: no layers"):
        cuda.pack([])


@pytest.mark.parametrize(
    "x",
    [np.zeros((2, 4), np.float32), np.zeros((2, 5)), np.zeros(5, np.float32), np.zeros((), np.float32)],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_a_request_that_does_not_fit_is_refused(x: NDArray[Any]) -> None:
    why = f"x: wanted float32 [rows, 5], got {x.dtype} {list(x.shape)}"
    with pytest.raises(RequestError, match=re.escape(why)):
        cuda.arguments(x, cuda.pack(chain((5, 7, 3))))


def test_activations_are_numbered_as_in_the_kernel() -> None:
    assert ACTIVATIONS == ("none", "relu", "sigmoid")
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
