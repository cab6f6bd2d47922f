"""What patterns ask of a graph's values, and how they put a node in place of what they found."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx_ir as ir


class RefusedError(Exception):
    """What was found can't be fused; the text says why."""


def constant(value: "ir.Value | None") -> "NDArray[Any] | None":
    import onnx_ir as ir

    if value is None or value.is_graph_input():  # an initializer that a request may replace is none
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def producer(value: "ir.Value | None", *op_types: str) -> "ir.Node | None":
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in op_types else None


def only_use(value: "ir.Value") -> "ir.Node | None":
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def put(
    graph: "ir.Graph",
    operator: str,
    name: str,
    operands: "Sequence[ir.Value | Mapping[str, NDArray[Any]]]",
    old: "ir.Value",
    attributes: Mapping[str, int] | None = None,
) -> None:
    """A node of an operator of ours whose answer takes the place of `old`; what that makes superfluous is left to a
    sweep. operands: values, and named constants to add."""
    import onnx_ir as ir

    values = list[ir.Value]()
    for operand in operands:
        if isinstance(operand, ir.Value):
            values.append(operand)
            continue
        for label, array in operand.items():
            value = ir.Value(name=f"{name}.{label}", const_value=ir.tensor(array, name=f"{name}.{label}"))
            graph.register_initializer(value)
            values.append(value)
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    old.name = f"{old.name}.unfused"
    node = ir.node(operator, values, attributes, domain=DOMAIN, version=VERSION, outputs=[new], name=name)
    last = old.producer()
    assert last is not None
    graph.insert_before(last, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
