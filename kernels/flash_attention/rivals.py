"""FlashAttention beside PyTorch: its own fused attention, and the formula as it stands."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from redline.kernels import torch_face
from redline.kernels.flash_attention.operator import TOLERANCE
from redline.kernels.works import Subject, Work


def plain(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.transpose(2, 3) * scale
    return (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(3) @ v


def work(dtype: torch.dtype, d: int, n: int, causal: bool) -> Work:
    batch, heads, scale = max(1, 8192 // n), 2048 // d, d**-0.5
    q, k, v = (torch.randn(batch, heads, n, d, device="cuda", dtype=dtype) for _ in range(3))
    hidden = torch.ones(n, n, device="cuda", dtype=torch.bool).triu(1) if causal else None
    wanted = sdpa(q.float(), k.float(), v.float(), is_causal=causal, scale=scale)
    compiled = torch.compile(plain)
    return Work(
        f"flash_attention {str(dtype).removeprefix('torch.')} batch {batch} heads {heads} n {n} d {d} causal {causal}",
        {
            "redline": Subject(lambda: torch_face.flash_attention(q, k, v, causal, scale), wanted, TOLERANCE),
            "sdpa": Subject(lambda: sdpa(q, k, v, is_causal=causal, scale=scale), wanted, TOLERANCE),
            "torch.compile": Subject(lambda: compiled(q, k, v, hidden, scale), wanted, TOLERANCE),
            "eager": Subject(lambda: plain(q, k, v, hidden, scale), wanted, TOLERANCE),
        },
        4 * batch * heads * d * (n * (n + 1) // 2 if causal else n * n),
        4 * q.nbytes,
    )


def works() -> Iterator[Work]:
    for dtype in (torch.float16, torch.bfloat16):
        for d in (64, 128):
            for n, causal in ((512, False), (2048, False), (2048, True), (8192, True)):
                yield work(dtype, d, n, causal)
