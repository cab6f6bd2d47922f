"""torch.ops.redline.flash_attention and paged_attention: the kernels as PyTorch operators, which torch.compile takes.

Importing this module registers them. On CUDA they launch kernel.cu (compiled once, loaded at the first call) on the
current stream; on a CPU plain torch answers, so that a model can be tested without a GPU. No gradients: for inference.
The CUDA side has not run on a GPU yet.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from redline.errors import UsageError
from redline.kernels.flash_attention import cuda as flash
from redline.kernels.launch import Kernel, Shape, launch_on, number
from redline.kernels.paged_attention import cuda as paged

_ALIGNED = 16  # bytes; what one asynchronous copy takes


@torch.library.custom_op("redline::flash_attention", mutates_args=(), device_types="cpu")
def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """q [batch, heads, n, d], k and v [batch, kv_heads, m, d] → [batch, heads, n, d].

    causal: the queries are the last n of m positions; one that sees no key answers 0.
    """
    flash.check_heads(q.shape[1], k.shape[1], scale)
    return _attention(q, k, v, causal, scale)


@torch.library.custom_op("redline::paged_attention", mutates_args=(), device_types="cpu")
def paged_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """q [sequences, heads, d], caches [blocks, block_size, kv_heads, d], block_table [sequences, max_blocks] int32,
    context_lens [sequences] int32 → [sequences, heads, d].

    A context must fit its row of the table, and the table the cache: on CUDA nobody looks.
    """
    flash.check_heads(q.shape[1], k_cache.shape[2], scale)
    out = torch.zeros(q.shape, dtype=q.dtype)
    for i, length in enumerate(context_lens.tolist()):
        blocks = block_table[i, : -(-length // k_cache.shape[1])].long()
        k, v = (cache[blocks].flatten(0, 1)[:length].transpose(0, 1)[None] for cache in (k_cache, v_cache))
        out[i] = _attention(q[i][None, :, None], k, v, False, scale)[0, :, 0]
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    group, (n, m) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    seen = torch.ones(n, m, dtype=torch.bool)
    seen = seen.tril(m - n) if causal else seen
    scores = (q.float() @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(3).masked_fill(~seen, 0)  # a row that sees nothing is all NaN
    return (weights @ v).to(q.dtype)


@flash_attention.register_fake
@paged_attention.register_fake
def _like_q(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


@flash_attention.register_kernel("cuda")
def _flash_attention_cuda(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    (batch, heads, n, d), (kv_heads, m) = q.shape, k.shape[1:3]
    flash.check_heads(heads, kv_heads, scale)
    numbers = [n, m, heads, kv_heads, int(causal), scale]
    kernel = flash.variant(flash.SOURCE, _dtype(q, k, v), d)
    return _launched(kernel, flash.shape_of(batch, heads, n, d), [q, k, v], numbers)


@paged_attention.register_kernel("cuda")
def _paged_attention_cuda(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    (sequences, heads, d), (block_size, kv_heads) = q.shape, k_cache.shape[1:3]
    flash.check_heads(heads, kv_heads, scale)
    if {block_table.dtype, context_lens.dtype} != {torch.int32}:
        raise UsageError(f"block_table and context_lens must be int32, got {block_table.dtype}, {context_lens.dtype}")
    kernel = flash.variant(paged.SOURCE, _dtype(q, k_cache, v_cache), d)
    inputs = [q, k_cache, v_cache, block_table, context_lens]
    numbers = [heads, kv_heads, block_size, block_table.shape[1], scale]
    return _launched(kernel, paged.shape_of(sequences, heads, kv_heads, d), inputs, numbers)


def _dtype(*tensors: Tensor) -> str:
    """The one of all."""
    came = sorted({str(x.dtype).removeprefix("torch.") for x in tensors})
    if len(came) > 1:
        raise UsageError(f"q, k and v must have one dtype, got {', '.join(came)}")
    return came[0]


def _launched(kernel: Kernel, shape: Shape, inputs: Sequence[Tensor], numbers: Sequence[int | float]) -> Tensor:
    """The answer, which is like the first input; queued on the current stream, as all of torch is."""
    out = torch.empty(inputs[0].shape, dtype=inputs[0].dtype, device=inputs[0].device)
    if devices := {x.device for x in inputs} - {out.device}:
        raise UsageError(f"{kernel.name}: all tensors must be on {out.device}, got one on {devices.pop()}")
    if out.numel() == 0:
        return out
    whole = [x.contiguous() for x in inputs]
    whole = [x if x.data_ptr() % _ALIGNED == 0 else x.clone() for x in whole]
    with _current(out.device) as (stream, device):
        addresses = [np.uint64(x.data_ptr()) for x in (*whole, out)]
        values = [*addresses[:-1], *map(number, numbers), addresses[-1]]
        launch_on(stream, device, kernel, shape, values)
    return out


@contextmanager
def _current(device: torch.device) -> Iterator[tuple[int, int]]:
    """Stream and number of the device, which is current within."""
    with torch.cuda.device(device):
        yield torch.cuda.current_stream().cuda_stream, torch.cuda.current_device()
