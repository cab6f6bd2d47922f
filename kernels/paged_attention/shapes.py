"""Caches that tests, `make kernels` and the benchmark share: blocks in no order, a table with rubbish past its end."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.flash_attention.shapes import numbers

# context_lens, heads, kv_heads, d, block_size: empty and one token, a block's edge, every warp busy; groups of 1 to 17.
CASES = (
    ((1,), 1, 1, 64, 16),
    ((0, 16, 17, 65), 4, 4, 64, 16),
    ((513, 7), 8, 2, 128, 16),
    ((129, 64), 17, 1, 64, 16),
    ((40, 33), 6, 3, 128, 5),
)


def cache(
    context_lens: Sequence[int], heads: int, kv_heads: int, d: int, block_size: int, dtype: str = "float16"
) -> tuple[NDArray[Any], ...]:
    """q, k_cache, v_cache, block_table, context_lens."""
    needed = [-(-length // block_size) for length in context_lens]
    blocks = np.random.default_rng(3).permutation(sum(needed)).astype(np.int32)
    table = np.full((len(needed), max(needed) + 1), 1 << 20, np.int32)
    for row, count, start in zip(table, needed, np.cumsum(needed) - needed, strict=True):
        row[:count] = blocks[start : start + count]
    q = numbers((len(needed), heads, d), dtype, 0)
    k, v = (numbers((max(1, len(blocks)), block_size, kv_heads, d), dtype, seed) for seed in (1, 2))
    return q, k, v, table, np.array(context_lens, np.int32)
