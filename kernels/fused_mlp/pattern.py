"""The chains of a Q/DQ graph that one ai.redline::FusedMlp replaces, and why others are left.

    x → Q → DQ → Gemm | MatMul (+ Add) of a dequantized weight → [Q → DQ] → [Relu | Sigmoid] → Q → DQ → Gemm → …

The Q/DQ between a product and its activation vanishes: it only rounded what now stays in registers, so a fused node
lies a little nearer to the source model than the Q/DQ graph does.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.fused_mlp.operator import DOMAIN, MAX_K, NAME, VERSION, Activation, Layer, constants
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS: dict[str, Activation] = {"Relu": "relu", "Sigmoid": "sigmoid"}
_PRODUCTS = ("Gemm", "MatMul")


class _RefusedError(Exception):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One layer, where it lies in the graph."""

    node: "ir.Node"  # the Gemm or MatMul
    layer: Layer
    x: "ir.Value"  # float, about to be quantized
    y: "ir.Value"  # float, after the activation


def find(graph: "ir.Graph") -> tuple[list[list[Link]], list[Verdict]]:
    """Every chain, each as long as it can be; and for every product left alone or chain cut short, why."""
    links, refusals = list[Link](), list[Verdict]()
    for node in graph:
        if node.op_type in _PRODUCTS and any(_dequantizes(value) for value in node.inputs[:2]):
            try:
                links.append(_link(node))
            except _RefusedError as why:
                refusals.append(Verdict(False, f"{node.name}: {why}"))
    chains: list[list[Link]] = []
    for link in links:
        before = next((chain for chain in chains if chain[-1].y is link.x), None)
        if before is None:
            chains.append([link])
        elif reason := _apart(before[-1], link):
            chains.append([link])
            refusals.append(Verdict(False, f"{link.node.name} starts a chain of its own: {reason}"))
        else:
            before.append(link)
    return chains, refusals


def replace(graph: "ir.Graph", chain: list[Link]) -> None:
    """One node for the chain; what it makes superfluous is left to a sweep."""
    import onnx_ir as ir

    old, name = chain[-1].y, f"{chain[0].node.name}.fused"
    operands = [_quantized_input(chain[0].node)[0]]  # read anew: a chain replaced before may have renewed it
    for label, array in constants([link.layer for link in chain]).items():
        value = ir.Value(name=f"{name}.{label}", const_value=ir.tensor(array, name=f"{name}.{label}"))
        graph.register_initializer(value)
        operands.append(value)
    new = ir.Value(name=old.name, shape=old.shape, type=old.type)
    old.name = f"{old.name}.unfused"
    node = ir.node(NAME, operands, domain=DOMAIN, version=VERSION, outputs=[new], name=name)
    last = old.producer()
    assert last is not None
    graph.insert_before(last, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _link(node: "ir.Node") -> Link:
    x, input_scale = _quantized_input(node)
    weight, weight_scale = _weight(node)
    y, bias = _unrounded(node.outputs[0]), _gemm_bias(node)
    consumer = _only_use(y)
    if bias is None and consumer is not None and consumer.op_type == "Add":
        bias = next((c for c in map(_constant, consumer.inputs) if c is not None), None)
        if bias is not None:
            if bias.ndim > 1 or bias.size not in (1, len(weight)):
                raise _RefusedError(f"what is added to it is {list(bias.shape)}, wanted [{len(weight)}]")
            y = _unrounded(consumer.outputs[0])
            consumer = _only_use(y)
    activation: Activation = "none"
    if consumer is not None and consumer.op_type in _ACTIVATIONS:
        activation, y = _ACTIVATIONS[consumer.op_type], consumer.outputs[0]
    flat = np.zeros(len(weight)) if bias is None else np.broadcast_to(bias.reshape(-1), len(weight))
    layer = Layer(
        weight=weight,
        weight_scale=weight_scale,
        bias=flat.astype(np.float32),
        input_scale=input_scale,
        activation=activation,
    )
    return Link(node, layer, x, y)


def _quantized_input(node: "ir.Node") -> tuple["ir.Value", float]:
    dequantize = _producer(node.inputs[0], "DequantizeLinear")
    quantize = _producer(dequantize.inputs[0], "QuantizeLinear") if dequantize else None
    if dequantize is None or quantize is None or quantize.inputs[0] is None:
        raise _RefusedError("its input is not quantized (no QuantizeLinear, DequantizeLinear before it)")
    scales = []
    for step in (quantize, dequantize):
        scale, zero = _constant(step.inputs[1]), _constant(step.inputs[2]) if len(step.inputs) > 2 else None
        if scale is None or scale.size != 1 or scale.dtype != np.float32:
            raise _RefusedError("its input's scale is not one float32 constant")
        if zero is None or zero.dtype != np.int8:
            raise _RefusedError(f"its input is {'uint8' if zero is None else zero.dtype}, wanted int8")
        if zero.any():
            raise _RefusedError(f"its input's zero point is {zero.reshape(-1)[0]}, wanted 0 (symmetric)")
        scales.append(float(scale.reshape(-1)[0]))
    if scales[0] != scales[1] or not (np.isfinite(scales[0]) and scales[0] > 0):
        raise _RefusedError(f"its input's scales are {scales}, wanted one finite scale above 0")
    return quantize.inputs[0], scales[0]


def _weight(node: "ir.Node") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[n, k] and [n]."""
    dequantize = _producer(node.inputs[1], "DequantizeLinear")
    weight = _constant(dequantize.inputs[0]) if dequantize else None
    if dequantize is None or weight is None:
        raise _RefusedError("its weight is not a quantized constant")
    scale = _constant(dequantize.inputs[1])
    zero = _constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if weight.dtype != np.int8 or weight.ndim != 2 or (zero is not None and zero.any()):
        raise _RefusedError(
            f"its weight is {weight.dtype} {list(weight.shape)}, wanted symmetric int8 [n, k] or [k, n]"
        )
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1:
        raise _RefusedError("its weight's scale is not a float32 constant, one or one a channel")
    plain = node.op_type == "MatMul" or node.attributes.get_int("transB") != 1
    axis = dequantize.attributes.get_int("axis", 1) % 2
    if scale.size > 1 and axis != (1 if plain else 0):
        raise _RefusedError("its weight's scales run along k, wanted one an output channel")
    weight = weight.T if plain else weight
    if weight.shape[1] > MAX_K:
        raise _RefusedError(f"k = {weight.shape[1]:,} may overflow int32, at most {MAX_K:,}")
    return weight, np.broadcast_to(scale.reshape(-1), len(weight)).copy()


def _gemm_bias(node: "ir.Node") -> "NDArray[Any] | None":
    if node.op_type != "Gemm":
        return None
    get = node.attributes.get_float
    if get("alpha", 1.0) != 1.0 or get("beta", 1.0) != 1.0 or node.attributes.get_int("transA") == 1:
        raise _RefusedError("alpha, beta or transA differ from 1, 1, 0")
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    bias = _constant(node.inputs[2])
    if bias is None or bias.dtype != np.float32 or bias.size != (bias.shape[-1] if bias.ndim else 1):
        raise _RefusedError("its bias is no float32 constant, one a channel")
    return bias


def _apart(a: Link, b: Link) -> str:
    """Why b can't join the chain that ends in a; empty if it can."""
    if a.layer.activation == "sigmoid":
        return "a sigmoid ends the one before"
    quantize = _only_use(a.y)
    dequantize = _only_use(quantize.outputs[0]) if quantize else None
    if dequantize is None or _only_use(dequantize.outputs[0]) is not b.node:
        return f"what {a.node.name} gives is used elsewhere too"
    return ""


def _unrounded(value: "ir.Value") -> "ir.Value":
    """Past a Q/DQ that only rounds; one that feeds a product is that product's own."""
    quantize = _only_use(value)
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return value
    dequantize = _only_use(quantize.outputs[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return value
    after = dequantize.outputs[0]
    return value if any(use.node.op_type in _PRODUCTS for use in after.uses()) else after


def _only_use(value: "ir.Value") -> "ir.Node | None":
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _producer(value: "ir.Value | None", op_type: str) -> "ir.Node | None":
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _dequantizes(value: "ir.Value | None") -> bool:
    return _producer(value, "DequantizeLinear") is not None


def _constant(value: "ir.Value | None") -> "NDArray[Any] | None":
    import onnx_ir as ir

    if value is None or value.is_graph_input():  # an initializer that a request may replace is none
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
