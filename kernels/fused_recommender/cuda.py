"""FusedRecommender through kernel.cu: its parts packed by their own folders, launched as one kernel on any backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import GraphError
from redline.kernels.cases import Case
from redline.kernels.common.formats import Precision
from redline.kernels.embedding_interaction import cuda as interaction
from redline.kernels.embedding_interaction.operator import Floats
from redline.kernels.fused_mlp import cuda as mlp
from redline.kernels.fused_recommender import shapes
from redline.kernels.fused_recommender.operator import Recommender, reference
from redline.kernels.launch import SHARED_LIMIT_BYTES, Kernel, Shape

SOURCE = Path(__file__).parent / "kernel.cu"
TOLERANCE = 1e-5  # the sigmoid's exp


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    op: Recommender
    interaction: interaction.Packed
    layers: mlp.Packed  # of all bottoms, then of the top
    chains: NDArray[np.int32]  # layers of each
    slots: int  # warps that take rows through the interaction, as many as fit

    @property
    def shared_bytes(self) -> int:
        return self.layers.shared_bytes + _dense_bytes(self.op) + self.slots * _row_bytes(self.interaction)


def _dense_bytes(op: Recommender) -> int:
    return 4 * len(op.bottoms) * mlp.ROWS * op.interaction.dim


def _row_bytes(packed: interaction.Packed) -> int:
    return packed.scratch_chunks * interaction.CHUNK_BYTES


def pack(op: Recommender) -> Packed:
    """Raises GraphError where the parts don't fit each other, or a block's share of them into shared memory."""
    chains = [*op.bottoms, op.top]
    _check(op)
    parts, layers = interaction.pack(op.interaction), mlp.laid_out(*filter(None, chains))
    row_bytes, taken = _row_bytes(parts), layers.shared_bytes + _dense_bytes(op)
    slots = min(mlp.THREADS // 32, (SHARED_LIMIT_BYTES - taken) // row_bytes)
    if slots < 1:
        raise GraphError(
            f"FusedRecommender on CUDA has {SHARED_LIMIT_BYTES} bytes of shared memory a block: {mlp.ROWS} rows of "
            f"two layers' inputs take {layers.shared_bytes}, of {len(op.bottoms)} dense vectors {_dense_bytes(op)}, a "
            f"row's {len(op.interaction.vectors)} vectors {row_bytes}"
        )
    counts = np.array([len(layers) for layers in chains], np.int32)
    return Packed(op=op, interaction=parts, layers=layers, chains=counts, slots=slots)


def _check(op: Recommender) -> None:
    found, k = op.interaction, op.top[0].weight.shape[1]
    for d, layers in enumerate(op.bottoms):
        if layers and len(layers[-1].weight) != found.dim:
            raise GraphError(
                f"FusedRecommender: dense vector {d} is {len(layers[-1].weight)} wide, the tables are {found.dim}"
            )
    if len(op.bottoms) != found.dense_count:
        raise GraphError(f"FusedRecommender: {len(op.bottoms)} bottoms for {found.dense_count} dense vectors")
    if k != found.width:
        raise GraphError(f"FusedRecommender: the top MLP takes {k} numbers, the interaction gives {found.width}")


def arguments(ids: NDArray[Any], dense: Sequence[Floats], packed: Packed) -> tuple[Kernel, Shape, list[Any]]:
    """Kernel, launch and its arguments; the last two are the fault (interaction's `refuse`) and the answer.

    Raises:
        RequestError: a wrong dtype or shape.
    """
    op, parts, layers, rows = packed.op, packed.interaction, packed.layers, len(ids)
    x = interaction.joined(ids, dense, op.interaction, op.dense_widths)
    arrays = [*parts.inputs(ids), x, *layers.arrays, packed.chains]
    numbers = [*parts.numbers(ids), rows, len(op.bottoms), x.shape[1], *layers.strides, packed.slots]
    outputs = [np.full(1, interaction.NO_FAULT, np.int64), np.empty(rows if op.squeeze else (rows, op.n), np.float32)]
    shape = Shape((max(1, -(-rows // mlp.ROWS)), 1, 1), (mlp.THREADS, 1, 1), packed.shared_bytes)
    kernel = Kernel(SOURCE, f"fused_recommender_{parts.variant}")
    return kernel, shape, [*arrays, *numbers, parts.scratch_chunks, *outputs]


def cases() -> Iterator[Case]:
    tables: tuple[Precision, ...] = ("fp32", "int8")
    named = [(f"case {i}", op) for stored in tables for i, op in enumerate(shapes.cases(tables=stored)[:2])]
    for label, op in (*named, ("26 tables", shapes.dlrm())):
        rows = mlp.ROWS + 3  # a tile and a tail
        ids, dense = shapes.request(op, rows)
        yield Case(f"{rows} x {label}", *arguments(ids, dense, pack(op)), reference(ids, dense, op), TOLERANCE)
