"""The look-ups and pairwise dots that one ai.redline::EmbeddingInteraction replaces, and why others are left.

    [Gather(table, ids + offsets) | Unsqueeze(dense) …] → Concat → v;  MatMul(v, Transpose(v)) → Reshape → Gather(pairs)
    → [Concat(dense …, ·)]

The stack may be flat, too: Concat of [rows, k * dim], then Reshape to [rows, n, dim]. Tables that MergeEmbeddings put
into one come apart again by their offsets, so an id of one can't reach another's rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.common.formats import Precision
from redline.kernels.common.values import RefusedError, constant, only_use, producer, put
from redline.kernels.embedding_interaction.operator import NAME, Interaction, constants, stored
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.operators import Fused
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

AFTER = ("fused_mlp",)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    node: "ir.Node"  # the MatMul
    op: Interaction
    ids: "ir.Value"
    dense: "list[ir.Value]"
    y: "ir.Value"


@dataclass(frozen=True, slots=True, eq=False)
class _LookUp:
    """Neighbors in the stack that one Gather gives."""

    table: NDArray[np.float32]
    ids: "ir.Value"
    columns: NDArray[np.int64]  # of ids
    begin: NDArray[np.int64]


def fuse(graph: "ir.Graph", precision: Precision) -> Fused:
    """Tables are stored as what takes the dots computes; float32 where no FusedMlp does."""
    found, refusals = find(graph)
    done = []
    for one in found:
        user = only_use(one.y)
        kind = precision if user is not None and user.op_type == mlp.NAME else "fp32"
        replace(graph, one, stored(one.op, kind))
        vectors = f"{len(one.op.vectors)} vectors ({len(one.op.tables)} tables, {kind})"
        done.append(f"{len(one.op.pairs)} dots of {vectors} in one node")
    return Fused(done, refusals)


def find(graph: "ir.Graph") -> tuple[list[Found], list[Verdict]]:
    """Every product of stacked vectors by themselves; and for each left alone or cut short, why."""
    found, refusals = list[Found](), list[Verdict]()
    for node in graph:
        other = producer(node.inputs[1], "Transpose") if node.op_type == "MatMul" else None
        if other is None or other.inputs[0] is not node.inputs[0]:
            continue
        try:
            one, remark = _interaction(node)
            found.append(one)
            refusals += [Verdict(False, f"{node.name}: {remark}")] if remark else []
        except RefusedError as why:
            refusals.append(Verdict(False, f"{node.name}: {why}"))
    return found, refusals


def replace(graph: "ir.Graph", found: Found, op: Interaction | None = None) -> None:
    """op: what is computed instead of found.op, its table stored otherwise."""
    weights = constants(op or found.op)
    put(graph, NAME, f"{found.node.name}.fused", [found.ids, weights, *found.dense], found.y)


def _interaction(product: "ir.Node") -> tuple[Found, str]:
    transposed = producer(product.inputs[1], "Transpose")
    assert transposed is not None and product.inputs[0] is not None
    if transposed.attributes.get_ints("perm") != (0, 2, 1):
        raise RefusedError("its right side is not transposed by [0, 2, 1]")
    look_ups, sources, dense = _stack(product.inputs[0])
    ids = look_ups[0].ids
    if any(other.ids is not ids for other in look_ups):
        names = sorted({str(other.ids.name) for other in look_ups})
        raise RefusedError(f"its ids come from {' and '.join(names)}, wanted one input of all")
    n = len(sources)
    y, pairs = _pairs(product.outputs[0], n)
    lead, remark = list[int](), ""
    concat = only_use(y)
    if concat is not None and concat.op_type == "Concat":
        places = {value: sources.index(-1 - d) for d, value in enumerate(dense)}
        *before, last = concat.inputs
        along = concat.attributes.get_int("axis", 0) in (1, -1)
        if along and last is y and all(value in places for value in before):
            lead, y = [places[value] for value in before if value is not None], concat.outputs[0]
        else:
            remark = f"its dots alone; {concat.name} does not join dense vectors and them along axis 1"
    starts = np.cumsum([0, *(len(x.table) for x in look_ups[:-1])])
    op = Interaction(
        table=np.concatenate([x.table for x in look_ups]),
        row_scale=np.zeros(0, np.float32),
        tables=np.concatenate([_tables(x, int(start)) for x, start in zip(look_ups, starts, strict=True)]),
        vectors=np.array(sources, np.int64),
        lead=np.array(lead, np.int64),
        pairs=pairs,
    )
    return Found(product, op, ids, dense, y), remark


def _stack(value: "ir.Value") -> "tuple[list[_LookUp], list[int], list[ir.Value]]":
    """The look-ups, where each vector comes from (a table, or -1 - d for dense vector d), and the dense vectors."""
    concat = producer(value, "Concat")
    flat = concat is None and (reshape := producer(value, "Reshape")) is not None
    dim = None
    if flat and reshape is not None:
        concat, shape = producer(reshape.inputs[0], "Concat"), constant(reshape.inputs[1])
        dim = int(shape[-1]) if shape is not None and shape.size == 3 else None
    if concat is None or concat.attributes.get_int("axis", 0) != 1 or (flat and dim is None):
        raise RefusedError("its vectors are not a Concat along axis 1")
    look_ups, sources, dense, tables = list[_LookUp](), list[int](), list["ir.Value"](), 0
    for part in concat.inputs:
        assert part is not None
        lookup = _look_up(part, flat)
        if lookup is not None:
            sources += range(tables, tables + len(lookup.columns))
            tables += len(lookup.columns)
            look_ups.append(lookup)
            continue
        sources.append(-1 - len(dense))
        dense.append(_dense(part, dim))
    if not look_ups:
        raise RefusedError("none of its vectors is looked up in a table")
    widths = {x.table.shape[1] for x in look_ups} | ({dim} if dim is not None else set())
    if len(widths) > 1:
        raise RefusedError(f"its vectors are {sorted(widths)} wide, wanted one width")
    if flat and reshape is not None and not _reshapes(reshape, len(sources), *widths):
        raise RefusedError(f"{reshape.name} does not make [rows, {len(sources)}, {dim}] of its vectors")
    return look_ups, sources, dense


def _dense(part: "ir.Value", dim: int | None) -> "ir.Value":
    if dim is not None:  # flat
        if part.shape is None or part.shape[-1] != dim:
            raise RefusedError(f"{part.name} is not known to be [rows, {dim}]")
        return part
    unsqueeze = producer(part, "Unsqueeze")
    if unsqueeze is None or not _unsqueezes(unsqueeze) or unsqueeze.inputs[0] is None:
        node = part.producer()
        origin = node.op_type if node else part.name
        raise RefusedError(f"{origin} gives some of its vectors, wanted Gather of a constant table, or Unsqueeze")
    return unsqueeze.inputs[0]


def _look_up(part: "ir.Value", flat: bool) -> _LookUp | None:
    view, node = None, part.producer()
    if node is not None and node.op_type in ("Unsqueeze", "Reshape") and node.inputs[0] is not None:
        view, node = node, node.inputs[0].producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table, ids = constant(node.inputs[0]), node.inputs[1]
    if table is None or ids is None:
        return None
    if table.dtype != np.float32 or table.ndim != 2:
        raise RefusedError(f"{node.name}: its table is {table.dtype} {list(table.shape)}, wanted float32 [rows, dim]")
    found = _LookUp(table, *_ids(node.name or "", ids, len(table)))
    tail = [len(found.columns), table.shape[1]]
    if view is not None and not (
        _unsqueezes(view) if view.op_type == "Unsqueeze" else _reshapes(view, *([tail[0] * tail[1]] if flat else tail))
    ):
        raise RefusedError(f"{node.name}: {view.op_type} does not make [rows, {tail[0]}, {tail[1]}] of its rows")
    return found


def _ids(name: str, ids: "ir.Value", rows: int) -> "tuple[ir.Value, NDArray[np.int64], NDArray[np.int64]]":
    """Where a table's ids come from, which columns of it, and where the tables that are merged in it begin."""
    add = producer(ids, "Add")
    offsets = next((c for c in map(constant, add.inputs) if c is not None), None) if add else None
    if add is not None:
        source = next((value for value in add.inputs if constant(value) is None), None)
        if offsets is None or offsets.ndim != 1 or source is None:
            raise RefusedError(f"{name}: what is added to its ids is no constant, one a table")
        if np.any(np.diff([*offsets, rows]) < 1) or offsets[0] < 0:
            raise RefusedError(f"{name}: the offsets of its tables do not ascend within {rows} rows")
        ids = source
    begin = np.zeros(1, np.int64) if offsets is None else offsets.astype(np.int64)
    picker = producer(ids, "Gather")
    columns = constant(picker.inputs[1]) if picker else None
    picked = picker.inputs[0] if picker is not None and picker.attributes.get_int("axis", 0) == 1 else None
    known = [] if ids.shape is None else list(ids.shape)
    if picked is not None and columns is not None:
        width = picked.shape[-1] if picked.shape is not None else None
        if np.any(columns < 0) and not isinstance(width, int):
            raise RefusedError(f"{name}: column {columns.min()} of ids of unknown width")
        ids, columns = picked, np.where(columns < 0, columns + (width if isinstance(width, int) else 0), columns)
    elif offsets is None and len(known) != 1:
        raise RefusedError(f"{name}: its ids are not known to be [rows]")
    elif offsets is not None and known and known[1:] != [len(begin)]:
        raise RefusedError(f"{name}: its ids are [{', '.join(map(str, known))}], wanted [rows, {len(begin)}]")
    else:
        columns = np.arange(len(begin))
    if columns.size != len(begin):
        raise RefusedError(f"{name}: {columns.size} columns of ids for {len(begin)} tables")
    return ids, columns.reshape(-1).astype(np.int64), begin


def _unsqueezes(node: "ir.Node") -> bool:
    """Whether it makes [rows, 1, dim] of [rows, dim]."""
    axes = constant(node.inputs[1])
    return axes is not None and axes.tolist() in ([1], [-2])


def _reshapes(node: "ir.Node", *tail: int) -> bool:
    """Whether it makes [rows, *tail] of as many numbers a row."""
    shape = constant(node.inputs[1])
    if shape is None or shape.size != 1 + len(tail) or shape[0] not in (0, -1):
        return False
    return all(have in (-1, want) for have, want in zip(shape[1:], tail, strict=True))


def _tables(x: _LookUp, start: int) -> NDArray[np.int64]:
    return np.stack([x.columns, start + x.begin, np.diff([*x.begin, len(x.table)])], axis=1).astype(np.int64)


def _pairs(products: "ir.Value", n: int) -> "tuple[ir.Value, NDArray[np.int64]]":
    """[rows, n, n] → what the graph picks of them."""
    flatten = only_use(products)
    gather = only_use(flatten.outputs[0]) if flatten is not None else None
    if flatten is None or gather is None:
        raise RefusedError("its dots are used more than once")
    whole = (flatten.op_type == "Flatten" and flatten.attributes.get_int("axis", 1) == 1) or (
        flatten.op_type == "Reshape" and _reshapes(flatten, n * n)
    )
    index: NDArray[Any] | None = constant(gather.inputs[1]) if gather.op_type == "Gather" else None
    if not whole or index is None or index.ndim != 1 or gather.attributes.get_int("axis", 0) not in (1, -1):
        picked = f"{flatten.op_type}, {gather.op_type}"
        raise RefusedError(f"{picked} pick of its dots, wanted Reshape and Gather by a constant")
    index = np.where(index < 0, index + n * n, index)
    if np.any(index // n == index % n):
        raise RefusedError("it takes a vector's product with itself, too")
    return gather.outputs[0], index.astype(np.int64)
