"""EmbeddingInteraction beside PyTorch: gather, bmm, pick the pairs, concatenate."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from redline.kernels.embedding_interaction import cuda, shapes
from redline.kernels.embedding_interaction.operator import Interaction, stored
from redline.kernels.works import Subject, Work, queued

ROWS = (1, 512, 8192, 65536)
ALLOWED = 1e-3  # sums in another order
TABLES, SIZE, DIM = 26, 100_000, 32  # more than an L2 in either format


def plain(op: Interaction, device: str, dtype: torch.dtype = torch.float32) -> Callable[..., Tensor]:
    """(ids, dense …) → [rows, width]. int8: scaled as it is looked up, and dense vectors are rounded like it."""
    int8, count = op.row_scale.size > 0, op.dense_count
    table = torch.from_numpy(op.table).to(device)
    table = table if int8 else table.to(dtype)
    row_scale = torch.from_numpy(op.row_scale).to(device)
    columns, begin = (torch.from_numpy(op.tables[:, i].copy()).to(device) for i in (0, 1))
    places = [count + source if source >= 0 else -1 - source for source in op.vectors.tolist()]
    n = count + len(op.tables)
    i, j = divmod(op.pairs, len(op.vectors))
    pairs = torch.tensor([places[a] * n + places[b] for a, b in zip(i, j, strict=True)], device=device)
    lead = torch.tensor([places[v] for v in op.lead], device=device, dtype=torch.long)

    def rounded(x: Tensor) -> Tensor:
        scale = x.abs().amax(1, keepdim=True) / 127
        return (x / scale).round() * scale

    def forward(ids: Tensor, *dense: Tensor) -> Tensor:
        at = ids[:, columns] + begin
        found = (table[at] * row_scale[at][:, :, None]).to(dtype) if int8 else table[at]
        whole = torch.cat([*(x.to(dtype)[:, None] for x in dense), found], 1)
        near = torch.cat([*((rounded(x) if int8 else x).to(dtype)[:, None] for x in dense), found], 1)
        dots = torch.bmm(near, near.transpose(1, 2)).flatten(1)[:, pairs]
        return torch.cat([whole[:, lead].flatten(1), dots], 1)

    return forward


def bytes_looked_up(op: Interaction, rows: int) -> int:
    """Ids, rows of tables and their scales."""
    row = op.table.itemsize * op.dim + (4 if op.row_scale.size else 0)
    return rows * len(op.tables) * (8 + row)


def work(op: Interaction, rows: int, device: str = "cuda") -> Work:
    ids, dense = shapes.request(op, rows)
    packed, forward = cuda.pack(op), plain(op, device)
    there, compiled = [torch.from_numpy(x).to(device) for x in (ids, *dense)], torch.compile(forward)
    wanted = forward(*there)
    return Work(
        f"embedding_interaction {packed.variant} {len(op.tables)} tables x {op.dim} rows {rows}",
        {
            "redline": Subject(queued(*cuda.arguments(ids, dense, packed), device), wanted, ALLOWED),
            "torch.compile": Subject(lambda: compiled(*there), wanted, ALLOWED),
            "eager": Subject(lambda: forward(*there), wanted, ALLOWED),
        },
        2 * rows * len(op.pairs) * op.dim,
        bytes_looked_up(op, rows) + 4 * rows * (op.dense_count * op.dim + op.width),
    )


def works() -> Iterator[Work]:
    op = shapes.of((SIZE,) * TABLES, DIM, (-1, *range(TABLES)), (0,))
    for either in (op, stored(op, "int8")):
        yield from (work(either, rows) for rows in ROWS)
