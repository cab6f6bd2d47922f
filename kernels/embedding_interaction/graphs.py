"""The operator as an ONNX graph of one node."""

from typing import TYPE_CHECKING

from redline.kernels.embedding_interaction.operator import NAME, Interaction, constants
from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx


def fused(op: Interaction, *, ids: str = "int64") -> "onnx.ModelProto":
    from onnx import TensorProto, helper, numpy_helper

    weights, dense = constants(op), [f"dense{d}" for d in range(op.dense_count)]
    kind = TensorProto.INT64 if ids == "int64" else TensorProto.INT32
    graph = helper.make_graph(
        [helper.make_node(NAME, ["ids", *weights, *dense], ["y"], domain=DOMAIN)],
        "interaction",
        [
            helper.make_tensor_value_info("ids", kind, ["rows", "columns"]),
            *(helper.make_tensor_value_info(d, TensorProto.FLOAT, ["rows", op.dim]) for d in dense),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", op.width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
