"""What TensorRT asks of a Q/DQ graph, as one rule a row: read before a build, so that a "no" names the node.

Every rule carries its evidence. Measured with TensorRT for RTX 1.7.1: the build fails, or INT8 is silently lost. Those
refuse. What NVIDIA's pages only advise is a warning.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

FAILS, LOST, ADVICE = "the build fails", "INT8 is silently lost", "NVIDIA's advice, not measured"
_SHAPE_ONLY = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}
_PRODUCTS = {"Gemm", "MatMul", "Conv"}
_SMALL = 16  # channels; below, an INT8 product seldom pays


class Graph:
    """An ONNX graph with its edges both ways."""

    def __init__(self, model: "ModelProto") -> None:
        from onnx import numpy_helper

        self.nodes: list[NodeProto] = list(model.graph.node)
        self.outputs = {o.name for o in model.graph.output}
        self.constants: dict[str, NDArray[Any]] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
        for node in self.nodes:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                self.constants[node.output[0]] = numpy_helper.to_array(value)
        self.made_by: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output}
        self.used_by: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.used_by[name].append(node)

    def of_type(self, *kinds: str) -> Iterator["NodeProto"]:
        return (n for n in self.nodes if n.op_type in kinds)

    def maker(self, value: str, *kinds: str) -> "NodeProto | None":
        """The node that made the value, if it is one of these."""
        node = self.made_by.get(value)
        return node if node is not None and node.op_type in kinds else None

    def is_weight(self, value: str) -> bool:
        """Whether it depends on constants alone."""
        node = self.made_by.get(value)
        return value in self.constants or (node is not None and all(self.is_weight(i) for i in node.input if i))

    def weight_products(self) -> Iterator["NodeProto"]:
        return (n for n in self.of_type(*_PRODUCTS) if self.is_weight(n.input[1]) and not self.is_weight(n.input[0]))


Finding = tuple["NodeProto", str]


def int8_products(graph: Graph) -> list["NodeProto"]:
    """The products that are meant to run in INT8: both operands come out of a DequantizeLinear."""
    kind = "DequantizeLinear"
    return [n for n in graph.of_type(*_PRODUCTS) if graph.maker(n.input[0], kind) and graph.maker(n.input[1], kind)]


def _attribute(node: "NodeProto", name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _zero_points(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None and zero.dtype != np.int32 and (zero.dtype != np.int8 or zero.any()):
            yield node, f"zero point {zero.flat[np.argmax(zero != 0)]} of {zero.dtype}, wanted 0 of int8 (symmetric)"


def _scales(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is not None and not ((scale > 0) & np.isfinite(scale)).all():
            yield node, f"scale {scale.min():g}, wanted above 0 and finite"


def _int32_bias(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("DequantizeLinear"):
        data = graph.constants.get(node.input[0])
        if data is not None and data.dtype == np.int32:
            yield node, "dequantizes an int32 bias; keep the bias in float (QuantizeBias=False)"


def _mixed_scales(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type(*_PRODUCTS):
        pair = [graph.maker(i, "DequantizeLinear") for i in node.input[:2]]
        kinds = {str(graph.constants[dq.input[1]].dtype) for dq in pair if dq and dq.input[1] in graph.constants}
        if len(kinds) > 1:
            yield node, f"its operands' scales are {' and '.join(sorted(kinds))}, wanted one type"


def _lone_quantize(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("QuantizeLinear"):
        users = {n.op_type for n in graph.used_by[node.output[0]]}
        if wrong := users - _SHAPE_ONLY - {"DequantizeLinear"}:
            yield node, f"its INT8 codes go into {', '.join(sorted(wrong))} with no DequantizeLinear between"


def _channel_axis(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type(*_PRODUCTS):
        dq = graph.maker(node.input[1], "DequantizeLinear")
        scale = graph.constants.get(dq.input[1]) if dq else None
        data = graph.constants.get(dq.input[0]) if dq else None
        if dq is None or scale is None or data is None or scale.size == 1:
            continue
        wanted = {"Conv": 0, "Gemm": 1 - _attribute(node, "transB", 0), "MatMul": data.ndim - 1}[node.op_type]
        if (axis := _attribute(dq, "axis", 1) % data.ndim) != wanted:
            yield node, f"its weight {list(data.shape)} has a scale per axis {axis}, wanted axis {wanted} (its outputs)"


def _weight_left(graph: Graph) -> Iterator[Finding]:
    for node in graph.weight_products():
        dq = "DequantizeLinear"
        if graph.maker(node.input[0], dq) and not graph.maker(node.input[1], dq):
            yield node, "its activation is quantized, its weight is not"


def _activation_left(graph: Graph) -> Iterator[Finding]:
    for node in graph.weight_products():
        dq = "DequantizeLinear"
        if graph.maker(node.input[1], dq) and not graph.maker(node.input[0], dq):
            yield node, "its weight is quantized, its activation is not"


def _runtime_scale(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("QuantizeLinear", "DequantizeLinear"):
        if not graph.is_weight(node.input[1]):
            yield node, "its scale is computed at run time; calibrate it (QuantizeStatic)"


def _pair_in_between(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type(*_PRODUCTS):
        for quantize in (n for n in graph.used_by[node.output[0]] if n.op_type == "QuantizeLinear"):
            after = [n for dq in graph.used_by[quantize.output[0]] for n in graph.used_by[dq.output[0]]]
            if nexts := sorted({n.op_type for n in after} & {"Relu", "Add"}):
                yield node, f"a Q/DQ pair stands before its {' and '.join(nexts)}, which then can't fuse"


def _double_pair(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("QuantizeLinear"):
        if graph.maker(node.input[0], "DequantizeLinear"):
            yield node, "quantizes what was just dequantized"


def _output_pair(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("DequantizeLinear"):
        if node.output[0] in graph.outputs:
            yield node, "a Q/DQ pair before the graph's output only loses digits"


def _residual(graph: Graph) -> Iterator[Finding]:
    for node in graph.of_type("Add"):
        quantized = [graph.maker(i, "DequantizeLinear") is not None for i in node.input]
        if any(quantized) and not all(quantized) and not any(graph.is_weight(i) for i in node.input):
            yield node, "one branch is quantized, the other is not"


def _small_product(graph: Graph) -> Iterator[Finding]:
    for node in int8_products(graph):
        dq = graph.made_by[node.input[1]]
        shape = graph.constants[dq.input[0]].shape if dq.input[0] in graph.constants else ()
        if len(shape) == 2 and min(shape) < _SMALL:
            yield node, f"its weight {list(shape)} has a side below {_SMALL}"


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    evidence: str
    find: Callable[[Graph], Iterator[Finding]]


RULES = (
    Rule("zero point", FAILS, _zero_points),  # uint8 at 0 builds, but is read as int8
    Rule("scale", FAILS, _scales),
    Rule("int32 bias", FAILS, _int32_bias),
    Rule("mixed scales", FAILS, _mixed_scales),
    Rule("lone QuantizeLinear", FAILS, _lone_quantize),
    Rule("channel axis", LOST, _channel_axis),
    Rule("weight left out", LOST, _weight_left),
    Rule("activation left out", LOST, _activation_left),
    Rule("scale at run time", LOST, _runtime_scale),
    Rule("pair in between", ADVICE, _pair_in_between),
    Rule("double pair", ADVICE, _double_pair),
    Rule("output pair", ADVICE, _output_pair),
    Rule("residual branch", ADVICE, _residual),
    Rule("small product", ADVICE, _small_product),
)


def lint(graph: Graph) -> dict[Rule, list[str]]:
    """What each rule found: "node (operator): why"."""
    found = {rule: [f"{node.name} ({node.op_type}): {why}" for node, why in rule.find(graph)] for rule in RULES}
    return {rule: texts for rule, texts in found.items() if texts}
