"""PagedAttention beside PyTorch, which has no block tables: it gets keys and values gathered beforehand, untimed."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from redline.kernels import torch_face
from redline.kernels.flash_attention.operator import TOLERANCE
from redline.kernels.flash_attention.rivals import plain
from redline.kernels.works import Subject, Work


def work(dtype: torch.dtype, sequences: int, context: int, heads: int = 32, kv_heads: int = 8, d: int = 128) -> Work:
    size, scale = 16, d**-0.5
    per = -(-context // size)
    table = torch.randperm(sequences * per, device="cuda").int().reshape(sequences, per)
    lens = torch.full((sequences,), context, device="cuda", dtype=torch.int32)
    caches = [torch.randn(sequences * per, size, kv_heads, d, device="cuda", dtype=dtype) for _ in range(2)]
    k, v = (c[table.long()].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for c in caches)
    q = torch.randn(sequences, heads, d, device="cuda", dtype=dtype)
    rows = q[:, :, None]

    def eager() -> Tensor:
        wide_k, wide_v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        return plain(rows, wide_k, wide_v, None, scale)[:, :, 0]

    def gathered() -> Tensor:
        return sdpa(rows, k, v, scale=scale, enable_gqa=True)[:, :, 0]

    wanted = sdpa(rows.float(), k.float(), v.float(), scale=scale, enable_gqa=True)[:, :, 0]
    return Work(
        f"paged_attention {str(dtype).removeprefix('torch.')} sequences {sequences} context {context} "
        f"heads {heads}/{kv_heads} d {d}",
        {
            "redline": Subject(lambda: torch_face.paged_attention(q, *caches, table, lens, scale), wanted, TOLERANCE),
            "sdpa, gathered": Subject(gathered, wanted, TOLERANCE),
            "torch.compile, gathered": Subject(torch.compile(eager), wanted, TOLERANCE),
            "eager, gathered": Subject(eager, wanted, TOLERANCE),
        },
        4 * sequences * heads * context * d,
        k.nbytes + v.nbytes + 2 * q.nbytes + table.nbytes,
    )


def works() -> Iterator[Work]:
    for dtype in (torch.float16, torch.bfloat16):
        for sequences, context in ((1, 4096), (32, 1024), (128, 4096)):
            yield work(dtype, sequences, context)
