"""Where FusedMlp and EmbeddingInteraction nodes are a whole DLRM-like model, one ai.redline::FusedRecommender takes
their place; and why it doesn't.

    [FusedMlp(dense) …] → EmbeddingInteraction → FusedMlp → [Squeeze]
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from redline.kernels.common.formats import Precision
from redline.kernels.common.values import RefusedError, constant, only_use, producer, put
from redline.kernels.embedding_interaction import operator as interaction
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.fused_recommender.operator import NAME, Recommender, constants, from_constants
from redline.kernels.operators import DOMAIN, Fused
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

AFTER = ("fused_mlp", "embedding_interaction")
_CONSTANTS = 6  # of an EmbeddingInteraction, after its ids


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    node: "ir.Node"  # the EmbeddingInteraction
    op: Recommender
    ids: "ir.Value"
    dense: "list[ir.Value]"
    y: "ir.Value"


def fuse(graph: "ir.Graph", _: Precision) -> Fused:
    found, refusals = find(graph)
    for one in found:
        replace(graph, one)
    return Fused(["the whole recommender in one node"] * len(found), refusals)


def find(graph: "ir.Graph") -> tuple[list[Found], list[Verdict]]:
    """Every whole; and for each interaction that isn't part of one, or part of less than it could be, why."""
    found, refusals = list[Found](), list[Verdict]()
    for node in graph:
        if node.op_type == interaction.NAME and node.domain == DOMAIN:
            try:
                one, remarks = _whole(node)
                found.append(one)
            except RefusedError as why:
                remarks = [f"no whole recommender: {why}"]
            refusals += [Verdict(False, f"{node.name}: {remark}") for remark in remarks]
    return found, refusals


def replace(graph: "ir.Graph", found: Found) -> None:
    name, weights = f"{found.node.name}.whole", constants(found.op)
    squeeze = {"squeeze": int(found.op.squeeze)}
    put(graph, NAME, name, [found.ids, weights, *found.dense], found.y, squeeze)


def _whole(node: "ir.Node") -> tuple[Found, list[str]]:
    top = only_use(node.outputs[0])
    if top is None or top.op_type != mlp.NAME:
        user = f"{top.op_type} takes it" if top is not None else "it is used elsewhere too"
        raise RefusedError(f"what it gives does not go into one FusedMlp ({user})")
    ids, *rest = [value for value in node.inputs if value is not None]
    arrays = _arrays(rest[:_CONSTANTS])
    chains, dense, remarks = [_arrays(top.inputs[1:])], list["ir.Value"](), list[str]()
    for value in rest[_CONSTANTS:]:
        bottom = producer(value, mlp.NAME)
        if bottom is not None and only_use(value) is None:
            remarks.append(f"{bottom.name} stays outside: what it gives is used elsewhere too")
            bottom = None
        source = bottom.inputs[0] if bottom is not None else value
        assert source is not None
        chains.append(_arrays(bottom.inputs[1:]) if bottom is not None else list(mlp.constants([]).values()))
        dense.append(source)
    y, squeeze = _squeezed(top.outputs[0], chains[0])
    op = from_constants([*arrays, *(array for chain in chains for array in chain)], squeeze=squeeze)
    return Found(node, op, ids, dense, y), remarks


def _squeezed(y: "ir.Value", top: list[NDArray[Any]]) -> "tuple[ir.Value, bool]":
    """What a Squeeze of one number a row makes of y."""
    node = only_use(y)
    if node is None or node.op_type != "Squeeze" or len(node.inputs) < 2 or len(top[-1]) != 1:
        return y, False
    axes = constant(node.inputs[1])
    return (node.outputs[0], True) if axes is not None and axes.tolist() in ([1], [-1]) else (y, False)


def _arrays(values: Any) -> list[NDArray[Any]]:
    found = [constant(value) for value in values]
    assert all(array is not None for array in found), "a fused node's constants are constants"
    return [array for array in found if array is not None]
