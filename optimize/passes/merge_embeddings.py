"""Many embedding tables → one table and one Gather: a plain export has two Gathers a feature, each with its dispatch.

    Concat(…, [Unsqueeze](Gather(table_i, ids_i)), …)   →   Concat(…, [Reshape](Gather(all tables, ids + offsets)), …)

An id past its own table would read a neighbour's rows, so the pass asks that every id declares a `max` below its
table's size; the server checks requests against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.optimize.passes.graph import graph_before
from redline.optimize.passes.registry import apply
from redline.tensors import Tensor
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from redline.optimize.build import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeEmbeddings:
    """Merge tables of one width that end in the same Concat."""


@dataclass(frozen=True, slots=True)
class _Lookup:
    """One operand of the Concat that is a table look-up."""

    gather: "ir.Node"
    table: NDArray[np.floating[Any]]  # [ids, dim]
    source: "ir.Value"  # the graph input that holds the ids
    column: int | None  # which column of it; None: it is [rows]
    stacked: bool  # through an Unsqueeze: [rows, 1, dim]


@apply.register(MergeEmbeddings)
def _(config: MergeEmbeddings, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "MergeEmbeddings")
    import onnx_ir as ir

    model = ir.load(before)
    said = _merge(model.graph, {t.name: t for t in source.job.inputs})
    ir.save(model, out)
    return said


def _merge(graph: "ir.Graph", inputs: dict[str, Tensor]) -> Verdict:
    refusals, merged = [], 0
    for node in [n for n in graph if n.op_type == "Concat"]:
        concat = node
        found = [_lookup(value, inputs) for value in concat.inputs]
        refusals += [f.why for f in found if isinstance(f, Verdict)]
        for start, run in _runs([f if isinstance(f, _Lookup) else None for f in found]):
            concat = _replace(graph, concat, start, run)
            merged += len(run)
    if merged:
        return Verdict(True, f"{merged} tables in one")
    return Verdict(
        False, f"left as it was: {refusals[0] if refusals else 'fewer than two look-ups side by side in a Concat'}"
    )


def _lookup(value: "ir.Value | None", inputs: dict[str, Tensor]) -> _Lookup | Verdict | None:
    """The look-up that a Concat's operand is; None if it is something else; a Verdict says why one can't be merged."""
    node = value.producer() if value is not None else None
    stacked = node is not None and node.op_type == "Unsqueeze"
    if stacked and node is not None and node.inputs[0] is not None:
        if (axes := _constant(node.inputs[1])) is None or axes.tolist() != [1]:
            return None
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table, ids = _constant(node.inputs[0]), node.inputs[1]
    if table is None or table.ndim != 2 or ids is None:
        return None
    if len(node.outputs[0].uses()) != 1:
        return Verdict(False, f"{node.name}: its rows are used elsewhere too")
    column, picker = None, ids.producer()
    if picker is not None:
        index = _constant(picker.inputs[1]) if picker.op_type == "Gather" else None
        if index is None or index.ndim != 0 or picker.attributes.get_int("axis", 0) != 1 or picker.inputs[0] is None:
            return Verdict(
                False, f"{node.name}: its ids are computed ({picker.op_type}), not an input or a column of one"
            )
        ids, column = picker.inputs[0], int(index)
    spec = inputs.get(ids.name or "")
    if spec is None or len(spec.shape) != (1 if column is None else 2):
        return Verdict(False, f"{node.name}: its ids are not an input [rows] or a column of an input [rows, n]")
    limit = spec.max[column] if isinstance(spec.max, tuple) and column is not None else spec.max
    if not isinstance(limit, int) or limit >= len(table):
        return Verdict(False, f"{node.name}: input {spec.name!r} declares no `max` below its table's {len(table)} rows")
    return _Lookup(node, table, ids, column, stacked)


def _constant(value: "ir.Value | None") -> "NDArray[Any] | None":
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _runs(found: Sequence[_Lookup | None]) -> list[tuple[int, list[_Lookup]]]:
    """Stretches of at least two mergeable neighbours, last first, so that replacing one keeps the others' places."""
    starts = [i for i, f in enumerate(found) if f is not None and (i == 0 or not _alike(found[i - 1], f))]
    runs = []
    for start, end in pairwise([*starts, len(found)]):
        run = []
        for lookup in found[start:end]:
            if lookup is None:
                break
            run.append(lookup)
        if len(run) > 1:
            runs.append((start, run))
    return runs[::-1]


def _alike(a: _Lookup | None, b: _Lookup) -> bool:
    return (
        a is not None
        and a.table.shape[1] == b.table.shape[1]
        and a.table.dtype == b.table.dtype
        and a.stacked == b.stacked
        and a.source.dtype == b.source.dtype
    )


def _replace(graph: "ir.Graph", concat: "ir.Node", start: int, run: list[_Lookup]) -> "ir.Node":
    import onnx_ir as ir

    name = concat.outputs[0].name  # a value's name is its own, a node may have none
    # Added, in the ids' own width: int32 ids stay int32 (a merged table has fewer than 2**31 rows).
    dtype = np.int32 if run[0].source.dtype == ir.DataType.INT32 else np.int64
    sizes = [len(lookup.table) for lookup in run]
    offsets = np.cumsum([0, *sizes[:-1]]).astype(dtype)
    made: list[ir.Node] = []

    def constant(label: str, array: NDArray[Any]) -> ir.Value:
        label = f"{name}.{label}{start}"
        while label in graph.initializers:  # every operand of a Concat may need one
            label += "_"
        value = ir.Value(name=label, const_value=ir.tensor(array, name=label))
        graph.register_initializer(value)
        return value

    def node(op: str, *operands: ir.Value, **attributes: int) -> ir.Value:
        made.append(ir.node(op, list(operands), attributes, name=f"{name}.merged{start}.{len(made)}"))
        return made[-1].outputs[0]

    def column(lookup: _Lookup) -> ir.Value:  # [rows, 1]
        if lookup.column is None:
            return node("Unsqueeze", lookup.source, constant("axis", np.array([1])))
        return node("Gather", lookup.source, constant(f"column{lookup.column}_", np.array([lookup.column])), axis=1)

    source, columns = run[0].source, [lookup.column for lookup in run]
    if all(lookup.source is source for lookup in run) and None not in columns:
        whole = columns == list(range(_width(source)))
        ids = source if whole else node("Gather", source, constant("columns", np.array(columns)), axis=1)
    else:
        ids = node("Concat", *[column(lookup) for lookup in run], axis=1)
    table = constant("tables", np.concatenate([lookup.table for lookup in run]))
    rows = node("Gather", table, node("Add", ids, constant("offsets", offsets)), axis=0)  # [rows, tables, dim]
    if not run[0].stacked:
        rows = node("Reshape", rows, constant("flat", np.array([0, -1])))
    graph.insert_before(concat, made)
    operands = [*concat.inputs[:start], rows, *concat.inputs[start + len(run) :]]
    axis = concat.attributes.get_int("axis", 0)
    fused = ir.node(
        "Concat", operands, {"axis": axis}, name=f"{name}.fused", outputs=[ir.Value(name=f"{name}.out{start}")]
    )
    graph.insert_before(concat, fused)
    old, new = concat.outputs[0], fused.outputs[0]
    new.shape, new.type = old.shape, old.type
    old.replace_all_uses_with(new)
    _sweep(graph, concat)
    return fused


def _width(value: "ir.Value") -> int:
    """Columns of a [rows, columns] value."""
    width = value.shape[1] if value.shape is not None else 0
    return width if isinstance(width, int) else 0


def _sweep(graph: "ir.Graph", node: "ir.Node") -> None:
    """Remove a dead node and whatever only it needed, so that the old tables leave the file."""
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    operands = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in operands:
        producer = value.producer()
        if producer is not None:
            _sweep(graph, producer)
        elif value.name is not None and value.name in graph.initializers and not value.uses():
            del graph.initializers[value.name]
