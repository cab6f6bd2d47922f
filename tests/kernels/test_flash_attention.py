"""kernels/flash_attention/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from redline.errors import UsageError
from redline.kernels.check import on_host
from redline.kernels.flash_attention import cuda, traffic
from redline.kernels.flash_attention.operator import NAME, TOLERANCE, reference, schema
from redline.kernels.flash_attention.shapes import DTYPES, HEAD_DIMS, LENGTHS, qkv
from redline.kernels.host.run import ORDERS, Order
from redline.kernels.launch import launch

every_length = pytest.mark.parametrize(("n", "m"), [*product(LENGTHS, LENGTHS)])
every_kind = pytest.mark.parametrize(("dtype", "d"), [*product(DTYPES, HEAD_DIMS)])


def gap(answer: NDArray[Any], wanted: NDArray[np.float32]) -> float:
    return float(np.abs(answer.astype(np.float32) - wanted).max())


@pytest.mark.parametrize("order", ORDERS)
@every_kind
@every_length
def test_answers_are_the_reference(n: int, m: int, dtype: str, d: int, order: Order) -> None:
    """In checked mode: no bug of any kind, either. Every second shape is causal in one type and not in the other."""
    causal = (LENGTHS.index(n) + LENGTHS.index(m) + list(DTYPES).index(dtype)) % 2 == 0
    inputs, scale = qkv(n, m, d, dtype), d**-0.5
    answer, counts = on_host(*cuda.arguments(*inputs, causal=causal, scale=scale), order)
    assert gap(answer, reference(*inputs, causal=causal, scale=scale)) < TOLERANCE
    assert (sum(counts.read_bytes), sum(counts.written_bytes)) == cuda.bytes_moved(n, m, d, causal=causal)


def test_the_reference_is_torch_s_attention() -> None:
    q, k, v = qkv(33, 33, 64, heads=4, kv_heads=4)
    for causal in (False, True):
        tensors = [torch.from_numpy(x.astype(np.float32)) for x in (q, k, v)]
        wanted = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=causal, scale=0.2)
        np.testing.assert_allclose(reference(q, k, v, causal=causal, scale=0.2), wanted.numpy(), atol=1e-5)


def test_heads_share_keys_and_batches_are_apart() -> None:
    inputs = qkv(70, 40, 64, batch=2, heads=6, kv_heads=3)
    answer, _ = on_host(*cuda.arguments(*inputs, causal=True, scale=0.125), "random")
    assert gap(answer, reference(*inputs, causal=True, scale=0.125)) < TOLERANCE
    assert np.all(answer[:, :, :30] == 0)  # 30 queries before the first key


def test_large_scores_neither_overflow_nor_vanish() -> None:
    q, k, v = qkv(65, 130, 64)
    q, k = q * np.float16(30), k * np.float16(30)  # scores of ± 30,000
    answer, _ = on_host(*cuda.arguments(q, k, v, causal=False, scale=1.0), "forward")
    assert np.isfinite(answer).all()
    assert gap(answer, reference(q, k, v, causal=False, scale=1.0)) < TOLERANCE


# A bug planted in the kernel itself, and what must be said: the kind of a DeviceBugError, or that the answer is wrong.
BUGS = [
    ("    __pipeline_wait_prior(0);\n", "", "copy not waited for"),
    ("    __syncthreads();  // this tile", "    // this tile", "copy not waited for|race"),
    ("stages + tile % 2 * 2 * KEYS * D;\n    auto key", "stages;\n    auto key", "race|copy not waited for"),
    ("tile * KEYS + r < m ?", "tile * KEYS + r <= m ?", "out of bounds"),
    (
        "step * 2 + lane / 16));\n      const unsigned a",
        "step * 2 + lane / 16) + 4);\n      const unsigned a",
        "misaligned",
    ),
    ("(c ^ (row % 8)) * CHUNK", "(c ^ (row % 8)) * CHUNK + D", "shared memory out of bounds|uninitialized"),
    ("row + m - n + 1", "row + m - n + 2", "wrong"),
    ("sum[half] *= kept;", "", "wrong"),
    ("fmaxf(x, __shfl_xor_sync(~0u, x, 1))", "x", "wrong"),
    ("s[tile][i] = -INFINITY", "s[tile][i] = 0.f", "wrong"),
    ("two * 16 + lane % 16, c * 2", "two * 16 + (lane ^ 8) % 16, c * 2", "wrong"),
]


@pytest.mark.parametrize(("old", "new", "kind"), BUGS)
def test_a_bug_planted_in_the_kernel_is_found(old: str, new: str, kind: str, planted: Callable[..., list[str]]) -> None:
    inputs = qkv(130, 130, 64)
    wanted, launched = reference(*inputs, causal=True, scale=0.5), cuda.arguments(*inputs, causal=True, scale=0.5)
    said = planted(*launched, old, new, lambda y: bool(gap(y, wanted) < TOLERANCE))
    assert all(re.search(kind, found) for found in said), said


def test_counted_bytes_are_the_formula_s_and_a_quarter_of_unfused_ones() -> None:
    for n, m, causal in ((65, 513, False), (300, 300, True), (300, 513, True)):
        assert traffic.counted(n, m, 64, causal=causal) == cuda.bytes_moved(n, m, 64, causal=causal)
    n = 1 << 14
    ratio = sum(cuda.unfused_bytes(n, n, 64)) / sum(cuda.bytes_moved(n, n, 64))
    assert 3.9 < ratio < 4.1  # 8 bytes a pair of query and key against 4 · 64 / 128


def test_the_plot_in_the_docs_is_today_s() -> None:
    drawn = Path(__file__).parents[2] / "docs" / "attention-bytes.svg"
    short = str(traffic.svg((64, 128)))
    assert all(word in drawn.read_text() and word in short for word in ("counted", "unfused", f"{cuda.ROWS} rows"))


def test_what_the_kernel_is_not_built_for() -> None:
    with pytest.raises(UsageError, match=r"flash_attention on CUDA .* head_dim of 64 or 128, got float16 with 80"):
        cuda.arguments(*qkv(2, 2, 80), causal=False, scale=1.0)
    with pytest.raises(UsageError, match="got 3 heads and 2 kv heads"):
        cuda.arguments(*qkv(2, 2, 64, heads=3, kv_heads=2), causal=False, scale=1.0)
    with pytest.raises(UsageError, match=r"finite scale above 0.*got -1"):
        cuda.arguments(*qkv(2, 2, 64), causal=False, scale=-1.0)


def test_python_and_the_kernel_agree_on_sizes() -> None:
    assert f"THREADS = 256, ROWS = {cuda.ROWS};" in cuda.SOURCE.read_text()
    assert "constexpr int KEYS = D / 2;" in cuda.SOURCE.read_text()


def test_the_schema() -> None:
    made = schema()
    assert (made.name, made.domain, sorted(made.attributes)) == (NAME, "ai.redline", ["causal", "scale"])


@pytest.mark.gpu
@every_kind
@every_length
def test_answers_are_the_reference_on_a_gpu(n: int, m: int, dtype: str, d: int, gpu: None) -> None:
    inputs = qkv(n, m, d, dtype, batch=2, heads=4, kv_heads=2)
    for causal in (False, True):
        kernel, shape, args = cuda.arguments(*inputs, causal=causal, scale=d**-0.5)
        launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
        assert gap(args[-1], reference(*inputs, causal=causal, scale=d**-0.5)) < TOLERANCE
