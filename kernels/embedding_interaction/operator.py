"""ai.redline::EmbeddingInteraction: look up rows of many tables, dot every two vectors of a row, concatenate.

    ids [rows, columns], dense vectors [rows, dim] … → vectors [rows, n, dim] → [rows, leads * dim + pairs]

The node's inputs: ids (int32 or int64), table [all, dim] int8, bfloat16 or float (every table below the other),
row_scale [all] (int8 only, else [0]), tables [n, 3] (which column of ids, first row, rows), vectors [n] (a table, or
-1 - d for dense vector d), lead [l] (vectors that go out as they are), pairs [p] (i * n + j of each dot product that
goes out), then the dense vectors; all but ids and dense vectors are constants. An id outside its table is an error that
names feature, row and id; answers of what isn't finite are of no meaning, in their own row only.

float, bfloat16: fp32 sums over the dimensions; a dense vector enters its dots rounded as the table's rows are, but
goes out as it is. int8: a dense vector becomes steps on a scale of its own (largest number / 127), sums are exact, then
times the product of both scales.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels import operators
from redline.kernels.common.formats import Precision, dtype_of

if TYPE_CHECKING:
    import onnx

NAME = "EmbeddingInteraction"
IDS = ("tensor(int32)", "tensor(int64)")
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interaction:
    table: NDArray[Any]  # [all, dim] bfloat16 or float32, or int8 with row_scale
    row_scale: Floats  # [all], or [0]
    tables: Ints  # [tables, 3]
    vectors: Ints  # [n]
    lead: Ints  # [leads]
    pairs: Ints  # [pairs]

    @property
    def dim(self) -> int:
        return int(self.table.shape[1])

    @property
    def dense_count(self) -> int:
        return int(max(0, -self.vectors.min(initial=0)))

    @property
    def width(self) -> int:
        """Numbers that come out, a row."""
        return len(self.lead) * self.dim + len(self.pairs)


def lower_triangle(vectors: int) -> Ints:
    """Pairs i > j, row by row."""
    row, column = np.tril_indices(vectors, -1)
    return np.asarray(row * vectors + column, np.int64)


def quantize_rows(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Each row on a scale of its own. x: [rows, dim] → steps [rows, dim], scale [rows]"""
    largest = np.fmax.reduce(np.abs(x), axis=1, initial=0)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    steps: NDArray[np.float32] = np.fmin(np.fmax(np.rint(x / scale[:, None]), -128), 127)
    return steps.astype(np.int8), scale


def reference(ids: NDArray[Any], dense: Sequence[Floats], op: Interaction) -> Floats:
    """What every implementation must give: of int8 its bits, else within 1e-5 of the answers' scale.

    Raises:
        ValueError: an id outside its table.
    """
    ids = ids if ids.ndim == 2 else ids[:, None]
    columns, begin, size = op.tables.T if len(op.tables) else np.zeros((3, 0), np.int64)
    chosen = ids[:, columns]
    bad = (chosen < 0) | (chosen >= size)
    if bad.any():
        row, t = np.argwhere(bad)[0]
        raise ValueError(f"feature {t}, row {row}: id {chosen[row, t]} is not in 0..{size[t] - 1}")
    at = begin + chosen  # [rows, tables]
    vectors, scales, plain = [], [], []
    for source in op.vectors:
        if source < 0:
            rows = dense[-1 - source]
            plain.append(rows)
            one = np.ones(len(rows), np.float32)
            steps, scale = quantize_rows(rows) if op.row_scale.size else (rows.astype(op.table.dtype), one)
        else:
            steps = op.table[at[:, source]]
            scale = op.row_scale[at[:, source]] if op.row_scale.size else np.ones(len(ids), np.float32)
            plain.append(steps * scale[:, None])
        vectors.append(steps.astype(np.int32 if op.row_scale.size else np.float32))
        scales.append(scale)
    n = len(op.vectors)
    dots = np.zeros((len(ids), len(op.pairs)), np.float32)
    for p, (i, j) in enumerate(zip(op.pairs // n, op.pairs % n, strict=True)):
        total = np.zeros(len(ids), vectors[i].dtype)
        for d in range(op.dim):
            total = total + vectors[i][:, d] * vectors[j][:, d]
        dots[:, p] = total.astype(np.float32) * (scales[i] * scales[j])
    return np.concatenate([*(plain[i] for i in op.lead), dots], axis=1).astype(np.float32)


def stored(op: Interaction, precision: Precision) -> Interaction:
    """The same with its float32 table in another format: int8 with a scale a row, or bf16."""
    if precision != "int8":
        return replace(op, table=op.table.astype(dtype_of(precision)))
    steps, scale = quantize_rows(op.table)
    return replace(op, table=steps, row_scale=scale)


def constants(op: Interaction) -> dict[str, NDArray[Any]]:
    """The node's inputs between ids and dense vectors, in order."""
    return {
        "table": np.ascontiguousarray(op.table),
        "row_scale": op.row_scale,
        "tables": op.tables,
        "vectors": op.vectors,
        "lead": op.lead,
        "pairs": op.pairs,
    }


def operations(constants: Sequence[NDArray[Any]]) -> int:
    """A row's, a multiply-add being two; constants: as above."""
    table, pairs = constants[0], constants[5]
    return 2 * len(pairs) * int(table.shape[1])


def schema() -> "onnx.defs.OpSchema":
    return operators.schema(NAME, __doc__, "ids", IDS)
