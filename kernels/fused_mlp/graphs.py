"""The same layers as ONNX graphs: the fused node, the Q/DQ graph of QuantizeStatic, the plain one of ExportOnnx."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.fused_mlp.operator import NAME, Layer, constants
from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx


def fused(layers: Sequence[Layer]) -> "onnx.ModelProto":
    from onnx import helper

    weights = constants(layers)
    return _model([helper.make_node(NAME, ["x", *weights], ["y"], domain=DOMAIN)], weights, layers)


def quantized(layers: Sequence[Layer], *, rounds_products: bool = True) -> "onnx.ModelProto":
    """rounds_products: with the Q/DQ between product and activation that ONNX Runtime's quantizer puts there."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []
    weights: dict[str, NDArray[Any]] = {"zero": np.array(0, np.int8)}

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], name=f"{op}{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    def rounded(value: str, scale: float, label: str) -> str:
        weights[label] = np.array(scale, np.float32)
        return node("DequantizeLinear", node("QuantizeLinear", value, label, "zero"), label, "zero")

    value = "x"
    for i, layer in enumerate(layers):
        weights |= {f"w{i}": layer.weight, f"ws{i}": layer.weight_scale, f"b{i}": layer.bias}
        weights[f"wz{i}"] = np.zeros(len(layer.bias), np.int8)
        weight = node("DequantizeLinear", f"w{i}", f"ws{i}", f"wz{i}", axis=0)
        value = node("Gemm", rounded(value, layer.input_scale, f"s{i}"), weight, f"b{i}", transB=1)
        if rounds_products and layer.activation != "none":
            value = rounded(value, layers[min(i + 1, len(layers) - 1)].input_scale, f"o{i}")
        if layer.activation != "none":
            value = node({"relu": "Relu", "sigmoid": "Sigmoid"}[layer.activation], value)
    nodes[-1].output[0] = "y"
    return _model(nodes, weights, layers)


def plain(layers: Sequence[Layer]) -> "onnx.ModelProto":
    """Gemm and activation a layer, in floats: what ExportOnnx writes."""
    from onnx import helper

    nodes, weights, value = list["onnx.NodeProto"](), dict[str, NDArray[Any]](), "x"
    for i, layer in enumerate(layers):
        weights |= {f"w{i}": layer.weight.astype(np.float32), f"b{i}": layer.bias}
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"v{i}"], name=f"Gemm{i}", transB=1))
        value = f"v{i}"
        if layer.activation != "none":
            op = {"relu": "Relu", "sigmoid": "Sigmoid"}[layer.activation]
            nodes.append(helper.make_node(op, [value], [f"a{i}"], name=f"{op}{i}"))
            value = f"a{i}"
    nodes[-1].output[0] = "y"
    return _model(nodes, weights, layers)


def _model(
    nodes: "list[onnx.NodeProto]", weights: dict[str, NDArray[Any]], layers: Sequence[Layer]
) -> "onnx.ModelProto":
    from onnx import TensorProto, helper, numpy_helper

    k, n = layers[0].weight.shape[1], layers[-1].weight.shape[0]
    graph = helper.make_graph(
        nodes,
        "fused_mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
