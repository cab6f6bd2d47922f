"""FusedRecommender beside PyTorch: its parts' rivals one after another, and the same in float16."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from redline.kernels.embedding_interaction import rivals as interaction
from redline.kernels.embedding_interaction import shapes as interactions
from redline.kernels.fused_mlp import rivals as mlp
from redline.kernels.fused_mlp.operator import Layer
from redline.kernels.fused_recommender import cuda, shapes
from redline.kernels.fused_recommender.operator import Recommender
from redline.kernels.works import Subject, Work, queued

ALLOWED = 5e-2  # what enters the top may round the other way


def plain(op: Recommender, device: str, dtype: torch.dtype | None = None) -> Callable[..., Tensor]:
    """(ids, dense …) → what the operator gives, in its int8 steps or, with a dtype, without them."""

    def chain(layers: Sequence[Layer]) -> mlp.Net:
        return mlp.floats(layers, device, dtype) if dtype else mlp.int8_steps(layers, device)

    bottoms = [chain(layers) if layers else None for layers in op.bottoms]
    dots, top = interaction.plain(op.interaction, device, dtype or torch.float32), chain(op.top)

    def forward(ids: Tensor, *dense: Tensor) -> Tensor:
        vectors = [bottom(x) if bottom else x for bottom, x in zip(bottoms, dense, strict=True)]
        y = top(dots(ids, *vectors))
        return y[:, 0] if op.squeeze else y

    return forward


def work(op: Recommender, rows: int, device: str = "cuda") -> Work:
    ids, dense = shapes.request(op, rows)
    packed, there = cuda.pack(op), [torch.from_numpy(x).to(device) for x in (ids, *dense)]
    steps, half = plain(op, device), plain(op, device, torch.half)
    compiled, compiled_half = torch.compile(steps), torch.compile(half)
    wanted, wanted_half = steps(*there), plain(op, device, torch.float32)(*there)
    weights = sum(layer.weight.size for chain in (*op.bottoms, op.top) for layer in chain)
    inputs = interaction.bytes_looked_up(op.interaction, rows) + 4 * rows * sum(op.dense_widths)
    return Work(
        f"fused_recommender {packed.interaction.variant} {len(op.interaction.tables)} tables rows {rows}",
        {
            "redline": Subject(queued(*cuda.arguments(ids, dense, packed), device), wanted, ALLOWED),
            "torch.compile": Subject(lambda: compiled(*there), wanted, ALLOWED),
            "torch.compile, float16": Subject(lambda: compiled_half(*there), wanted_half, ALLOWED),
            "eager": Subject(lambda: steps(*there), wanted, ALLOWED),
            "eager, float16": Subject(lambda: half(*there), wanted_half, ALLOWED),
        },
        2 * rows * (weights + len(op.interaction.pairs) * op.interaction.dim),
        inputs + weights + 4 * rows * op.n,
    )


def works() -> Iterator[Work]:
    """The DLRM of shapes.py on larger tables."""
    tables = interaction.TABLES
    found = interactions.of((interaction.SIZE,) * tables, interaction.DIM, (-1, *range(tables)), (0,), std=0.2)
    op = shapes.of(found, [(13, 256, 128, 32)], (512, 256, 128, 1))
    yield from (work(op, rows) for rows in interaction.ROWS)
