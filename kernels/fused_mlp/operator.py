"""ai.redline::FusedMlp: a chain of Linear + bias + ReLU (or sigmoid) in one number format, kept in cache or registers.

    x [rows, k] float32 → quantize → (int8 by int8 → int32 → scale, bias, activation → quantize) a layer → [rows, n]
    x [rows, k] float32 → (bf16 or fp32 products, fp32 sums from the bias on, activation) a layer → [rows, n]

The node's inputs: x [..., k], input_scales [layers], activations [layers] (0 none, 1 ReLU, 2 sigmoid), then for each
layer weight [n, k] (int8, bfloat16 or float; one type in all layers), weight_scale [n], bias [n]; all but x are
constants. Scales mean something to int8 only: weight_scale is [0] elsewhere.
int8: scales are static (from calibration), one per tensor for what flows and one per channel for weights. NaN counts as
the lowest step, -128, as in ONNX Runtime's QuantizeLinear; infinities saturate.
bfloat16: what enters a layer is rounded to it. NaN stays NaN, as in fp32.
A row's answer does not depend on its neighbors, to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from redline.kernels import operators
from redline.kernels.common.formats import Precision, dtype_of

if TYPE_CHECKING:
    import onnx

NAME = "FusedMlp"
MAX_K = 131_071  # 128 * 128 * k stays in int32
Activation = Literal["none", "relu", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)  # one's number, here and in the kernels, is its place


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    weight: NDArray[Any]  # [n, k]: int8, bfloat16 or float32
    weight_scale: NDArray[np.float32]  # [n], of int8, else [0]
    bias: NDArray[np.float32]  # [n]
    input_scale: float  # of the int8 numbers that enter; zero points are 0
    activation: Activation


def of_floats(
    weight: NDArray[np.float32], bias: NDArray[np.float32], activation: Activation, precision: Precision
) -> Layer:
    """A layer that needs no scales: bf16 or fp32. weight: [n, k]"""
    return Layer(
        weight=weight.astype(dtype_of(precision)),
        weight_scale=np.zeros(0, np.float32),
        bias=bias.astype(np.float32),
        input_scale=1.0,
        activation=activation,
    )


def quantize(x: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """ONNX QuantizeLinear with zero point 0: round half to even, saturate."""
    steps: NDArray[np.float32] = np.fmin(np.fmax(np.rint(x / np.float32(scale)), -128), 127)
    return steps.astype(np.int8)


def reference(x: NDArray[np.float32], layers: Sequence[Layer]) -> NDArray[np.float32]:
    """What every implementation must give: of int8 its bits, else within 1e-5 (fp32) or 2e-2 (bf16) of the answers'
    scale. x: [rows, k of the first layer] → [rows, n of the last]."""
    for layer in layers:
        if layer.weight.dtype == np.int8:
            entered = quantize(x, layer.input_scale).astype(np.int32)
            accumulated = entered @ layer.weight.astype(np.int32).T  # exact in int32 up to MAX_K
            x = accumulated.astype(np.float32) * (np.float32(layer.input_scale) * layer.weight_scale) + layer.bias
        else:
            x = x.astype(layer.weight.dtype).astype(np.float32) @ layer.weight.astype(np.float32).T + layer.bias
        if layer.activation == "relu":
            x = np.maximum(x, np.float32(0))
        elif layer.activation == "sigmoid":
            x = np.float32(1) / (np.float32(1) + np.exp(-x))
    return x


def constants(layers: Sequence[Layer]) -> dict[str, NDArray[Any]]:
    """The node's inputs after x, in order."""
    found: dict[str, NDArray[Any]] = {
        "input_scales": np.array([layer.input_scale for layer in layers], np.float32),
        "activations": np.array([ACTIVATIONS.index(layer.activation) for layer in layers], np.int64),
    }
    for i, layer in enumerate(layers):
        found |= {
            f"weight{i}": np.ascontiguousarray(layer.weight),
            f"weight_scale{i}": layer.weight_scale,
            f"bias{i}": layer.bias,
        }
    return found


def operations(constants: Sequence[NDArray[Any]]) -> int:
    """A row's, a multiply-add being two; constants: as above."""
    return 2 * sum(array.size for array in constants if array.ndim == 2)


def schema() -> "onnx.defs.OpSchema":
    def infer(context: "onnx.shape_inference.InferenceContext") -> None:
        x, weight = (context.get_input_type(i).tensor_type for i in (0, context.get_num_inputs() - 3))
        y = context.get_output_type(0)
        y.tensor_type.elem_type = x.elem_type
        y.tensor_type.shape.CopyFrom(x.shape)
        y.tensor_type.shape.dim[-1].CopyFrom(weight.shape.dim[0])
        context.set_output_type(0, y)

    return operators.schema(NAME, __doc__, infer=infer)
