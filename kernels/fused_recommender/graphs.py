"""The operator as an ONNX graph of one node, and as the three nodes that it is made of."""

from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from redline.kernels.embedding_interaction import operator as interaction
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.fused_recommender.operator import NAME, Recommender, constants
from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx


def fused(op: Recommender) -> "onnx.ModelProto":
    from onnx import helper

    weights, dense = constants(op), [f"dense{d}" for d in range(len(op.bottoms))]
    node = helper.make_node(NAME, ["ids", *weights, *dense], ["y"], domain=DOMAIN, squeeze=int(op.squeeze))
    return _model([node], weights, op)


def parts(op: Recommender) -> "onnx.ModelProto":
    """Bottoms, interaction, top, Squeeze: what FuseKernels has before it makes one node of them."""
    import numpy as np
    from onnx import helper

    nodes, weights, vectors = list["onnx.NodeProto"](), dict[str, NDArray[Any]](), list[str]()

    def node(kind: str, name: str, x: list[str], added: dict[str, NDArray[Any]], after: list[str]) -> str:
        named = {f"{name}.{label}": array for label, array in added.items()}
        weights.update(named)
        nodes.append(helper.make_node(kind, [*x, *named, *after], [f"{name}.y"], name=name, domain=DOMAIN))
        return f"{name}.y"

    for d, layers in enumerate(op.bottoms):
        x = f"dense{d}"
        vectors.append(node(mlp.NAME, f"bottom{d}", [x], mlp.constants(layers), []) if layers else x)
    y = node(interaction.NAME, "interaction", ["ids"], interaction.constants(op.interaction), vectors)
    y = node(mlp.NAME, "top", [y], mlp.constants(op.top), [])
    weights["axes"] = np.array([1])
    nodes.append(
        helper.make_node("Squeeze", [y, "axes"], ["y"], name="squeeze")
        if op.squeeze
        else helper.make_node("Identity", [y], ["y"], name="same")
    )
    return _model(nodes, weights, op)


def _model(nodes: "list[onnx.NodeProto]", weights: dict[str, NDArray[Any]], op: Recommender) -> "onnx.ModelProto":
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "recommender",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", op.columns]),
            *(
                helper.make_tensor_value_info(f"dense{d}", TensorProto.FLOAT, ["rows", width])
                for d, width in enumerate(op.dense_widths)
            ),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"] if op.squeeze else ["rows", op.n])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
