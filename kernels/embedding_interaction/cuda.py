"""EmbeddingInteraction through kernel.cu: constants packed as the kernel reads them, launched on any backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import GraphError, RequestError
from redline.kernels.cases import Case
from redline.kernels.embedding_interaction import shapes
from redline.kernels.embedding_interaction.operator import Floats, Interaction, reference, stored
from redline.kernels.launch import SHARED_LIMIT_BYTES, Kernel, Shape

SOURCE = Path(__file__).parent / "kernel.cu"
CHUNK_BYTES = 16  # as in interaction.cuh
_WARPS = 8  # of a block at most; a row each
NO_FAULT = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """As `Interaction` in interaction.cuh takes it."""

    op: Interaction
    table: NDArray[Any]  # [all, dim padded to whole chunks]
    places: NDArray[np.int32]  # [looked up + entered + leads + pairs, 2]
    counts: tuple[int, int, int, int]  # of these four

    @property
    def variant(self) -> str:
        """What the kernel's name ends in."""
        return "int8" if self.op.row_scale.size else "fp32"

    @property
    def scratch_chunks(self) -> int:
        """Of a warp's shared memory: a row's vectors, an odd number of chunks apart; where they were found; scales."""
        chunks, vectors = int(self.table.shape[1]) * self.table.itemsize // CHUNK_BYTES, len(self.op.vectors)
        rest_bytes = 8 * len(self.op.tables) + 4 * vectors
        return vectors * (chunks | 1) + -(-rest_bytes // CHUNK_BYTES)

    def inputs(self, ids: NDArray[Any]) -> list[NDArray[Any]]:
        words = np.ascontiguousarray(ids).view(np.int32)  # of either width
        return [words, self.table, self.op.row_scale, self.op.tables, self.places]

    def numbers(self, ids: NDArray[Any]) -> list[int]:
        columns = 1 if ids.ndim == 1 else ids.shape[1]
        return [int(ids.itemsize == 8), columns, self.op.dim, len(self.op.tables), *self.counts]


def pack(op: Interaction) -> Packed:
    """Raises GraphError where the constants name what isn't there: on a GPU nobody else would look."""
    _check(op)
    n, vectors = len(op.vectors), [int(source) for source in op.vectors]
    looked_up = [(v, source) for v, source in enumerate(vectors) if source >= 0]
    entered = [(v, -1 - source) for v, source in enumerate(vectors) if source < 0]
    leads = [(int(v), max(-1, -1 - vectors[v])) for v in op.lead]
    pairs = [divmod(int(pair), n) for pair in op.pairs]
    padding = -op.dim % (CHUNK_BYTES // op.table.itemsize)
    return Packed(
        op=op,
        table=np.ascontiguousarray(np.pad(op.table, ((0, 0), (0, padding)))),
        places=np.array([*looked_up, *entered, *leads, *pairs], np.int32).reshape(-1, 2),
        counts=(len(looked_up), len(entered), len(leads), len(pairs)),
    )


def _check(op: Interaction) -> None:
    n, why = len(op.vectors), list[str]()
    if op.dim < 1 or n < 1:
        why.append("wanted at least one vector of at least one number")
    for t, (column, begin, size) in enumerate(op.tables.tolist()):
        if min(column, begin) < 0 or not 0 < size <= len(op.table) - begin:
            why.append(f"table {t}: rows {begin} to {begin + size} of {len(op.table)}")
    why += [f"vector {v} is of table {source}" for v, source in enumerate(op.vectors) if source >= len(op.tables)]
    why += [f"lead {lead} is no vector" for lead in op.lead if not 0 <= lead < n]
    for pair in op.pairs.tolist():
        if not 0 <= pair < n * n or pair // n == pair % n:
            why.append(f"pair {pair} is none of two vectors")
    if op.table.dtype != (np.int8 if op.row_scale.size else np.float32) or op.row_scale.size not in (0, len(op.table)):
        why.append(f"a table of {op.table.dtype} with {op.row_scale.size} scales, wanted one a row of int8, else none")
    if why:
        raise GraphError(f"EmbeddingInteraction: {why[0]}")


def arguments(ids: NDArray[Any], dense: Sequence[Floats], packed: Packed) -> tuple[Kernel, Shape, list[Any]]:
    """Kernel, launch and its arguments; the last two are the fault, which `refuse` puts in words, and the answer.

    Raises:
        RequestError: a wrong dtype or shape.
        GraphError: one row's vectors don't fit into shared memory.
    """
    op, rows = packed.op, len(ids)
    x = joined(ids, dense, op, [op.dim] * op.dense_count)
    row_bytes = packed.scratch_chunks * CHUNK_BYTES
    warps = min(_WARPS, SHARED_LIMIT_BYTES // row_bytes)
    if warps < 1:
        raise GraphError(
            f"EmbeddingInteraction on CUDA keeps a row's vectors in {SHARED_LIMIT_BYTES} bytes of shared memory, "
            f"{len(op.vectors)} of {op.dim} numbers take {row_bytes}"
        )
    numbers = [*packed.numbers(ids), rows, op.dense_count, packed.scratch_chunks]
    outputs = [np.full(1, NO_FAULT, np.int64), np.empty((rows, op.width), np.float32)]
    shape = Shape((max(1, -(-rows // warps)), 1, 1), (32 * warps, 1, 1), warps * row_bytes)
    kernel = Kernel(SOURCE, f"embedding_interaction_{packed.variant}")
    return kernel, shape, [*packed.inputs(ids), x, *numbers, *outputs]


def joined(ids: NDArray[Any], dense: Sequence[Floats], op: Interaction, widths: Sequence[int]) -> Floats:
    """Dense inputs side by side, once they and the ids are known to fit. [rows, Σ widths]"""
    rows, columns = len(ids), int(op.tables[:, 0].max(initial=-1)) + 1
    width = 1 if ids.ndim == 1 else ids.shape[1]
    if ids.dtype not in (np.int64, np.int32) or ids.ndim > 2 or width < columns:
        raise RequestError(f"ids: wanted int64 or int32 [rows, {columns}], got {ids.dtype} {list(ids.shape)}")
    for x, wanted in zip(dense, widths, strict=True):
        if x.dtype != np.float32 or x.shape != (rows, wanted):
            raise RequestError(f"dense input: wanted float32 [{rows}, {wanted}], got {x.dtype} {list(x.shape)}")
    return np.ascontiguousarray(np.concatenate([np.zeros((rows, 0), np.float32), *dense], axis=1))


def refuse(fault: NDArray[np.int64], ids: NDArray[Any], op: Interaction) -> None:
    """Raises RequestError with feature, row and value of the first id that no table has, where the kernel met one."""
    if fault[0] == NO_FAULT:
        return
    row, t = divmod(int(fault[0]), len(op.tables))
    column, _, size = op.tables[t]
    id_ = ids.reshape(len(ids), -1)[row, column]
    raise RequestError(f"feature {t} (column {column} of the ids), row {row}: id {id_} is not in 0..{size - 1}")


def cases() -> Iterator[Case]:
    for case, rows in ((1, 3), (3, 19), (6, 9), (7, 9)):
        for op in (shapes.interaction(case), stored(shapes.interaction(case), "int8")):
            ids, dense = shapes.request(op, rows)
            label = f"{rows} x {len(op.vectors)} of {op.dim}"
            yield Case(label, *arguments(ids, dense, pack(op)), reference(ids, dense, op), 0.0)
