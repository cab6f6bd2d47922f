"""Shapes that tests and `make kernels` share: one row, a row past a tile, a row past many."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

LENGTHS = (1, 65, 513)  # of n and of m
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
HEAD_DIMS = (64, 128)


def numbers(shape: Sequence[int], dtype: str, seed: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(DTYPES[dtype])


def qkv(
    n: int, m: int, d: int, dtype: str = "float16", *, batch: int = 1, heads: int = 1, kv_heads: int = 1
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    q = numbers((batch, heads, n, d), dtype, 0)
    k, v = (numbers((batch, kv_heads, m, d), dtype, seed) for seed in (1, 2))
    return q, k, v
