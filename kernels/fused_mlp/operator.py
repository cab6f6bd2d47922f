"""ai.redline::FusedMlp: a chain of Linear + bias + ReLU (or sigmoid) in INT8, kept in cache or registers.

    x [rows, k] float32 → quantize → (int8 by int8 → int32 → scale, bias, activation → quantize) a layer → [rows, n]

Scales are static (from calibration), one per tensor for what flows and one per channel for weights, so a row's answer
does not depend on its neighbors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Activation = Literal["none", "relu", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    weight: NDArray[np.int8]  # [n, k]
    weight_scale: NDArray[np.float32]  # [n]
    bias: NDArray[np.float32]  # [n]
    input_scale: float  # of the int8 numbers that enter; zero points are 0
    activation: Activation


def quantize(x: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """ONNX QuantizeLinear with zero point 0: round half to even, saturate."""
    steps: NDArray[np.float32] = np.clip(np.rint(x / np.float32(scale)), -128, 127)
    return steps.astype(np.int8)


def reference(x: NDArray[np.float32], layers: Sequence[Layer]) -> NDArray[np.float32]:
    """What every implementation must give. x: [rows, k of the first layer] → [rows, n of the last]."""
    for layer in layers:
        entered = quantize(x, layer.input_scale).astype(np.int32)
        accumulated = entered @ layer.weight.astype(np.int32).T  # exact in int32 up to k = 131,072
        x = accumulated.astype(np.float32) * (np.float32(layer.input_scale) * layer.weight_scale) + layer.bias
        if layer.activation == "relu":
            x = np.maximum(x, np.float32(0))
        elif layer.activation == "sigmoid":
            x = np.float32(1) / (np.float32(1) + np.exp(-x))
    return x
