"""FlashAttention through kernel.cu: which kernel for which numbers, its launch, and the bytes it moves."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import UsageError
from redline.kernels.cases import Case
from redline.kernels.flash_attention.operator import TOLERANCE, reference
from redline.kernels.flash_attention.shapes import qkv
from redline.kernels.launch import Kernel, Shape

SOURCE = Path(__file__).parent / "kernel.cu"
_THREADS, ROWS, _ITEM_BYTES = 256, 128, 2  # as in kernel.cu; a tile of keys is d / 2
_TYPES = {"float16": "f16", "bfloat16": "bf16"}
_HEAD_DIMS = (64, 128)


def variant(source: Path, dtype: str, d: int) -> Kernel:
    """Of an attention kernel, named after its folder. Raises UsageError where there is none for these numbers."""
    if dtype not in _TYPES or d not in _HEAD_DIMS:
        raise UsageError(
            f"{source.parent.name} on CUDA is built for {' and '.join(_TYPES)} with a head_dim of "
            f"{' or '.join(map(str, _HEAD_DIMS))}, got {dtype} with {d}: use torch's scaled_dot_product_attention there"
        )
    return Kernel(source, f"{source.parent.name}_{_TYPES[dtype]}_d{d}")


def check_heads(heads: int, kv_heads: int, scale: float) -> None:
    if kv_heads < 1 or heads % kv_heads:
        raise UsageError(f"attention wants heads in whole groups a kv head, got {heads} heads and {kv_heads} kv heads")
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"attention wants a finite scale above 0 (1 / sqrt(head_dim) is usual), got {scale}")


def shape_of(batch: int, heads: int, n: int, d: int) -> Shape:
    """Of the launch."""
    smem = _ITEM_BYTES * d * (ROWS + 4 * (d // 2))
    return Shape((max(1, -(-n // ROWS)), heads, batch), (_THREADS, 1, 1), smem)


def arguments(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], *, causal: bool, scale: float
) -> tuple[Kernel, Shape, list[Any]]:
    """Kernel, launch and its arguments, of which the last is the answer."""
    batch, heads, n, d = q.shape
    kv_heads, m = k.shape[1:3]
    check_heads(heads, kv_heads, scale)
    inputs = [np.ascontiguousarray(x) for x in (q, k, v)]
    numbers = [n, m, heads, kv_heads, int(causal), float(scale)]
    return variant(SOURCE, q.dtype.name, d), shape_of(batch, heads, n, d), [*inputs, *numbers, np.empty_like(inputs[0])]


def bytes_moved(n: int, m: int, d: int, *, causal: bool = False) -> tuple[int, int]:
    """FlashAttention's formula for one head, bytes read and written: q and out once, k and v once a block of ROWS
    rows; causal, only as many tiles of d / 2 keys as its last row sees."""
    keys = 0
    for first in range(0, n, ROWS):
        last = max(0, min(first + ROWS, n) + m - n) if causal else m
        keys += min(m, -(-last // (d // 2)) * (d // 2))
    return _ITEM_BYTES * d * (n + 2 * keys), _ITEM_BYTES * d * n


def unfused_bytes(n: int, m: int, d: int) -> tuple[int, int]:
    """The least that three kernels move in 16 bits (scores, softmax, answer): each matrix once in or out a kernel."""
    read = n * d + m * d + n * m + n * m + m * d
    written = n * m + n * m + n * d
    return _ITEM_BYTES * read, _ITEM_BYTES * written


def cases() -> Iterator[Case]:
    for dtype, d, n, m, causal in (("float16", 64, 65, 65, True), ("bfloat16", 128, 129, 65, False)):
        inputs, scale = qkv(n, m, d, dtype), d**-0.5
        label, wanted = f"{n} x {m}{' causal' * causal}", reference(*inputs, causal=causal, scale=scale)
        yield Case(label, *arguments(*inputs, causal=causal, scale=scale), wanted, TOLERANCE)
