"""FusedMlp through kernel.cu: layers packed as the kernel reads them, launched on any backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from redline.errors import GraphError
from redline.kernels.fused_mlp.operator import Activation, Layer
from redline.kernels.launch import Dimensions, Kernel

KERNEL = Kernel(Path(__file__).parent / "kernel.cu", "fused_mlp")
# As in kernel.cu.
_THREADS, _ROWS, _STEP = 256, 16, 16
_ACTIVATIONS = get_args(Activation)  # a number in the plan is a place in it
_SHARED_LIMIT_BYTES = 64 << 10  # what a block may have on every architecture from sm_75 on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    weights: NDArray[np.int8]  # a layer after the other: [padded k / 16, n, 16]
    weight_scales: NDArray[np.float32]  # [sum of n], times the layer's input scale
    biases: NDArray[np.float32]  # [sum of n]
    input_scales: NDArray[np.float32]  # [layers]
    plan: NDArray[np.int32]  # [layers, 3]: k, n, activation

    @property
    def stride(self) -> int:
        """Bytes of a row of activations in shared memory."""
        return max(-(-int(k) // _STEP) * _STEP for k in self.plan[:, 0])

    @property
    def shared_bytes(self) -> int:
        return 2 * _ROWS * self.stride


def pack(layers: Sequence[Layer]) -> Packed:
    """Raises GraphError where weights aren't int8, or a block's activations don't fit into shared memory."""
    if others := {str(layer.weight.dtype) for layer in layers} - {"int8"}:
        raise GraphError(f"FusedMlp on CUDA takes int8 weights, these are {', '.join(sorted(others))}")
    packed = Packed(
        weights=np.concatenate([_pack_weight(layer.weight).ravel() for layer in layers]),
        weight_scales=np.concatenate([np.float32(layer.input_scale) * layer.weight_scale for layer in layers]),
        biases=np.concatenate([layer.bias for layer in layers]),
        input_scales=np.array([layer.input_scale for layer in layers], np.float32),
        plan=np.array([_plan(layer) for layer in layers], np.int32),
    )
    if packed.shared_bytes > _SHARED_LIMIT_BYTES:
        raise GraphError(
            f"FusedMlp on CUDA keeps 2 x {_ROWS} rows of activations in {_SHARED_LIMIT_BYTES} bytes of shared memory: "
            f"at most {_SHARED_LIMIT_BYTES // 2 // _ROWS} wide, this chain is {packed.stride}"
        )
    return packed


def _plan(layer: Layer) -> tuple[int, int, int]:
    n, k = layer.weight.shape
    return k, n, _ACTIVATIONS.index(layer.activation)


def _pack_weight(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[n, k] → [padded k / 16, n, 16]: neighboring threads, which own neighboring columns, read neighboring bytes."""
    n, k = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -k % _STEP)))
    return np.ascontiguousarray(padded.reshape(n, -1, _STEP).transpose(1, 0, 2))


def arguments(x: NDArray[np.float32], packed: Packed) -> tuple[Dimensions, Dimensions, int, list[Any]]:
    """Grid, block, bytes of shared memory and arguments of a launch; the answer is the last argument."""
    rows, layers = len(x), len(packed.plan)
    y = np.empty((rows, int(packed.plan[-1, 1])), np.float32)
    inputs = [np.ascontiguousarray(x), packed.weights, packed.weight_scales, packed.biases, packed.input_scales]
    args = [*inputs, packed.plan, rows, layers, packed.stride, y]
    return (max(1, -(-rows // _ROWS)), 1, 1), (_THREADS, 1, 1), packed.shared_bytes, args
