"""PagedAttention through kernel.cu: which kernel for which numbers, its launch, and the bytes it moves."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.cases import Case
from redline.kernels.flash_attention.cuda import check_heads, variant
from redline.kernels.flash_attention.operator import TOLERANCE
from redline.kernels.flash_attention.shapes import DTYPES
from redline.kernels.launch import Kernel, Shape
from redline.kernels.paged_attention.operator import reference
from redline.kernels.paged_attention.shapes import CASES, cache

SOURCE = Path(__file__).parent / "kernel.cu"
_WARPS, _ROWS, _BUFFER, _ITEM_BYTES = 4, 16, 64, 2  # as in kernel.cu


def shape_of(sequences: int, heads: int, kv_heads: int, d: int) -> Shape:
    """Of the launch."""
    chunks = -(-(heads // kv_heads) // _ROWS)
    return Shape((chunks, kv_heads, sequences), (32 * _WARPS, 1, 1), _ITEM_BYTES * d * (_ROWS + _WARPS * _BUFFER))


def arguments(
    q: NDArray[Any],
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    block_table: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    *,
    scale: float,
) -> tuple[Kernel, Shape, list[Any]]:
    """Kernel, launch and its arguments, of which the last is the answer."""
    (sequences, heads, d), (block_size, kv_heads) = q.shape, k_cache.shape[1:3]
    check_heads(heads, kv_heads, scale)
    inputs = [np.ascontiguousarray(x) for x in (q, k_cache, v_cache, block_table, context_lens)]
    numbers = [heads, kv_heads, block_size, block_table.shape[1], float(scale)]
    kernel = variant(SOURCE, q.dtype.name, d)
    return kernel, shape_of(sequences, heads, kv_heads, d), [*inputs, *numbers, np.empty_like(inputs[0])]


def cache_bytes(context_lens: Sequence[int], heads: int, kv_heads: int, d: int) -> int:
    """Read of k and v together: each token once for up to 16 heads of a group."""
    return 2 * _ITEM_BYTES * d * sum(context_lens) * kv_heads * -(-(heads // kv_heads) // _ROWS)


def cases() -> Iterator[Case]:
    for case, dtype in zip(CASES[1:3], DTYPES, strict=True):
        inputs, scale = cache(*case, dtype), case[3] ** -0.5
        label, wanted = f"tokens {','.join(map(str, case[0]))}", reference(*inputs, scale=scale)
        yield Case(label, *arguments(*inputs, scale=scale), wanted, TOLERANCE)
