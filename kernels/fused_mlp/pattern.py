"""The chains of layers that one ai.redline::FusedMlp replaces, and why others are left.

    int8        x → Q → DQ → Gemm | MatMul (+ Add) of a dequantized weight → [Q → DQ] → [Relu | Sigmoid] → Q → DQ → …
    bf16, fp32  x → Gemm | MatMul (+ Add) of a float32 weight → [Relu | Sigmoid] → …

The Q/DQ between a product and its activation vanishes: it rounded what now stays in registers, and saturated it at the
calibrated range, so a fused node lies a little nearer to the source model than the Q/DQ graph does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.common.formats import Precision
from redline.kernels.common.values import RefusedError, constant, only_use, producer, put
from redline.kernels.fused_mlp.operator import MAX_K, NAME, Activation, Layer, constants, of_floats
from redline.kernels.operators import Fused
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

_ACTIVATIONS: dict[str, Activation] = {"Relu": "relu", "Sigmoid": "sigmoid"}
_PRODUCTS = ("Gemm", "MatMul")


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One layer, where it lies in the graph."""

    node: "ir.Node"  # the Gemm or MatMul
    layer: Layer
    x: "ir.Value"  # float; of int8 about to be quantized
    y: "ir.Value"  # float, after the activation


def fuse(graph: "ir.Graph", precision: Precision) -> Fused:
    chains, refusals = find(graph, precision)
    for chain in chains:
        replace(graph, chain)
    shapes = ", ".join(
        "-".join(map(str, [c[0].layer.weight.shape[1], *(len(x.layer.weight) for x in c)])) for c in chains
    )
    done = f"{sum(map(len, chains))} layers in {len(chains)} fused nodes ({shapes})"
    return Fused([done] if chains else [], refusals)


def find(graph: "ir.Graph", precision: Precision = "int8") -> tuple[list[list[Link]], list[Verdict]]:
    """Every chain, each as long as it can be; and for every product left alone or chain cut short, why."""
    links, refusals = list[Link](), list[Verdict]()
    for node in graph:
        if node.op_type in _PRODUCTS and _concerns(node, precision):
            try:
                links.append(_quantized(node) if precision == "int8" else _plain(node, precision))
            except RefusedError as why:
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
    first = chain[0]  # its x is read anew: a chain replaced before may have renewed it
    x = _quantized_input(first.node)[0] if first.layer.weight.dtype == np.int8 else first.node.inputs[0]
    assert x is not None
    weights = constants([link.layer for link in chain])
    put(graph, NAME, f"{first.node.name}.fused", [x, weights], chain[-1].y)


def _concerns(node: "ir.Node", precision: Precision) -> bool:
    if precision == "int8":
        return any(producer(value, "DequantizeLinear") is not None for value in node.inputs[:2])
    return constant(node.inputs[1]) is not None


def _quantized(node: "ir.Node") -> Link:
    x, input_scale = _quantized_input(node)
    weight, weight_scale = _quantized_weight(node)
    bias, activation, y = _ending(node, len(weight), _unrounded)
    layer = Layer(weight=weight, weight_scale=weight_scale, bias=bias, input_scale=input_scale, activation=activation)
    return Link(node, layer, x, y)


def _plain(node: "ir.Node", precision: Precision) -> Link:
    x, weight = node.inputs[0], constant(node.inputs[1])
    assert x is not None and weight is not None
    if weight.dtype != np.float32 or weight.ndim != 2:
        raise RefusedError(f"its weight is {weight.dtype} {list(weight.shape)}, wanted float32 [n, k] or [k, n]")
    weight = _n_by_k(node, weight)
    bias, activation, y = _ending(node, len(weight), lambda value: value)
    return Link(node, of_floats(weight, bias, activation, precision), x, y)


def _ending(
    node: "ir.Node", n: int, unrounded: "Callable[[ir.Value], ir.Value]"
) -> "tuple[NDArray[np.float32], Activation, ir.Value]":
    """Bias [n], activation, and what comes out of it."""
    y, bias = unrounded(node.outputs[0]), _gemm_bias(node)
    consumer = only_use(y)
    if bias is None and consumer is not None and consumer.op_type == "Add":
        bias = next((c for c in map(constant, consumer.inputs) if c is not None), None)
        if bias is not None:
            if bias.ndim > 1 or bias.size not in (1, n):
                raise RefusedError(f"what is added to it is {list(bias.shape)}, wanted [{n}]")
            y = unrounded(consumer.outputs[0])
            consumer = only_use(y)
    activation: Activation = "none"
    if consumer is not None and consumer.op_type in _ACTIVATIONS:
        activation, y = _ACTIVATIONS[consumer.op_type], consumer.outputs[0]
    flat = np.zeros(n) if bias is None else np.broadcast_to(bias.reshape(-1), n)
    return flat.astype(np.float32), activation, y


def _n_by_k(node: "ir.Node", weight: NDArray[Any]) -> NDArray[Any]:
    return weight if node.op_type == "Gemm" and node.attributes.get_int("transB") == 1 else weight.T


def _quantized_input(node: "ir.Node") -> tuple["ir.Value", float]:
    dequantize = producer(node.inputs[0], "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize else None
    if dequantize is None or quantize is None or quantize.inputs[0] is None:
        raise RefusedError("its input is not quantized (no QuantizeLinear, DequantizeLinear before it)")
    scales = []
    for step in (quantize, dequantize):
        scale, zero = constant(step.inputs[1]), constant(step.inputs[2]) if len(step.inputs) > 2 else None
        if scale is None or scale.size != 1 or scale.dtype != np.float32:
            raise RefusedError("its input's scale is not one float32 constant")
        if zero is None or zero.dtype != np.int8:
            raise RefusedError(f"its input is {'uint8' if zero is None else zero.dtype}, wanted int8")
        if zero.any():
            raise RefusedError(f"its input's zero point is {zero.reshape(-1)[0]}, wanted 0 (symmetric)")
        scales.append(float(scale.reshape(-1)[0]))
    if scales[0] != scales[1] or not (np.isfinite(scales[0]) and scales[0] > 0):
        raise RefusedError(f"its input's scales are {scales}, wanted one finite scale above 0")
    return quantize.inputs[0], scales[0]


def _quantized_weight(node: "ir.Node") -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[n, k] and [n]."""
    dequantize = producer(node.inputs[1], "DequantizeLinear")
    weight = constant(dequantize.inputs[0]) if dequantize else None
    if dequantize is None or weight is None:
        raise RefusedError("its weight is not a quantized constant")
    scale = constant(dequantize.inputs[1])
    zero = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    if weight.dtype != np.int8 or weight.ndim != 2 or (zero is not None and zero.any()):
        raise RefusedError(f"its weight is {weight.dtype} {list(weight.shape)}, wanted symmetric int8 [n, k] or [k, n]")
    if scale is None or scale.dtype != np.float32 or scale.ndim > 1:
        raise RefusedError("its weight's scale is not a float32 constant, one or one a channel")
    axis = dequantize.attributes.get_int("axis", 1) % 2
    k_by_n = weight
    weight = _n_by_k(node, weight)
    if scale.size > 1 and axis != (0 if weight is k_by_n else 1):
        raise RefusedError("its weight's scales run along k, wanted one an output channel")
    if weight.shape[1] > MAX_K:
        raise RefusedError(f"k = {weight.shape[1]:,} may overflow int32, at most {MAX_K:,}")
    return weight, np.broadcast_to(scale.reshape(-1), len(weight)).copy()


def _gemm_bias(node: "ir.Node") -> "NDArray[Any] | None":
    if node.op_type != "Gemm":
        return None
    get = node.attributes.get_float
    if get("alpha", 1.0) != 1.0 or get("beta", 1.0) != 1.0 or node.attributes.get_int("transA") == 1:
        raise RefusedError("alpha, beta or transA differ from 1, 1, 0")
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return None
    bias = constant(node.inputs[2])
    if bias is None or bias.dtype != np.float32 or bias.size != (bias.shape[-1] if bias.ndim else 1):
        raise RefusedError("its bias is no float32 constant, one a channel")
    return bias


def _apart(a: Link, b: Link) -> str:
    """Why b can't join the chain that ends in a; empty if it can."""
    if a.layer.activation == "sigmoid":
        return "a sigmoid ends the one before"
    user = only_use(a.y)
    for _ in range(2 if a.layer.weight.dtype == np.int8 else 0):  # QuantizeLinear, DequantizeLinear
        user = only_use(user.outputs[0]) if user else None
    return "" if user is b.node else f"what {a.node.name} gives is used elsewhere too"


def _unrounded(value: "ir.Value") -> "ir.Value":
    """Past a Q/DQ that only rounds and saturates at its range; one that feeds a product is that product's own. One of
    uint8 is none: with zero point 0 it would be a ReLU."""
    quantize = only_use(value)
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return value
    dequantize = only_use(quantize.outputs[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return value
    for step in (quantize, dequantize):
        zero = constant(step.inputs[2]) if len(step.inputs) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.any():
            return value
    after = dequantize.outputs[0]
    return value if any(use.node.op_type in _PRODUCTS for use in after.uses()) else after
