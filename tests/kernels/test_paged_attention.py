"""kernels/paged_attention/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from redline.kernels.check import on_host
from redline.kernels.flash_attention.operator import TOLERANCE
from redline.kernels.flash_attention.shapes import DTYPES
from redline.kernels.host.run import ORDERS, Order
from redline.kernels.launch import launch
from redline.kernels.paged_attention import cuda
from redline.kernels.paged_attention.operator import NAME, reference, schema
from redline.kernels.paged_attention.shapes import CASES, cache

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("order", ORDERS)
@every_dtype
@every_case
def test_answers_are_the_reference(case: Any, dtype: str, order: Order) -> None:
    """In checked mode: no bug of any kind, either. Tables are in no order and hold rubbish past their end."""
    inputs, scale = cache(*case, dtype), case[3] ** -0.5
    answer, counts = on_host(*cuda.arguments(*inputs, scale=scale), order)
    np.testing.assert_allclose(answer.astype(np.float32), reference(*inputs, scale=scale), rtol=0, atol=TOLERANCE)
    assert sum(counts.read_bytes[1:3]) == cuda.cache_bytes(*case[:4])  # each token once for a group of heads
    assert counts.written_bytes[-1] == answer.nbytes


def test_blocks_may_be_shared() -> None:
    """A prefix that two sequences have in common lies in the cache once."""
    q, k, v, table, lens = cache((32, 32), 2, 1, 64, 16)
    table[1, 0] = table[0, 0]
    answer, _ = on_host(*cuda.arguments(q, k, v, table, lens, scale=0.125), "random")
    np.testing.assert_allclose(answer.astype(np.float32), reference(q, k, v, table, lens, scale=0.125), atol=TOLERANCE)


# A bug planted in the kernel itself, and what must be said.
BUGS = [
    ("    __pipeline_wait_prior(0);\n    __syncwarp();", "    __syncwarp();", "copy not waited for"),
    ("__syncwarp();  // this step", "// this step", "copy not waited for|race"),
    ("  __syncthreads();  // every warp sees all queries\n", "", "copy not waited for|race"),
    ("  __syncthreads();\n  float *answers", "  float *answers", "race"),
    (
        "  __syncthreads();\n  for (int i = threadIdx.x; i < there",
        "  for (int i = threadIdx.x; i < there",
        "race|uninit",
    ),
    ("const bool seen = token < length;", "const bool seen = true;", "out of bounds"),
    ("{left, left}", "{TOKENS, TOKENS}", "wrong"),
    ("total += weight * sum", "total += sum", "wrong"),
]


@pytest.mark.parametrize(("old", "new", "kind"), BUGS)
def test_a_bug_planted_in_the_kernel_is_found(old: str, new: str, kind: str, planted: Callable[..., list[str]]) -> None:
    inputs = cache((130, 67, 3), 4, 1, 64, 5)
    wanted, launched = reference(*inputs, scale=0.5), cuda.arguments(*inputs, scale=0.5)
    said = planted(*launched, old, new, lambda y: bool(np.abs(y.astype(np.float32) - wanted).max() < TOLERANCE))
    assert all(re.search(kind, found) for found in said), said


def test_python_and_the_kernel_agree_on_sizes() -> None:
    assert "WARPS = 4, ROWS = 16, TOKENS = 16, BUFFER = 2 * 2 * TOKENS;" in cuda.SOURCE.read_text()


def test_the_schema() -> None:
    made = schema()
    assert (made.name, made.domain, len(made.inputs)) == (NAME, "ai.redline", 5)


@pytest.mark.gpu
@every_dtype
@every_case
def test_answers_are_the_reference_on_a_gpu(case: Any, dtype: str, gpu: None) -> None:
    inputs, scale = cache(*case, dtype), case[3] ** -0.5
    kernel, shape, args = cuda.arguments(*inputs, scale=scale)
    launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
    np.testing.assert_allclose(args[-1].astype(np.float32), reference(*inputs, scale=scale), rtol=0, atol=TOLERANCE)
