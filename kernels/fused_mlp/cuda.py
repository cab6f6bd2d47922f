"""FusedMlp through kernel.cu: layers packed as the kernel reads them, launched on any backend."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import GraphError, RequestError
from redline.kernels.cases import Case
from redline.kernels.fused_mlp.operator import ACTIVATIONS, Activation, Layer, reference
from redline.kernels.fused_mlp.shapes import DLRM_TOP, WIDTHS, chain
from redline.kernels.launch import SHARED_LIMIT_BYTES, Kernel, Shape

KERNEL = Kernel(Path(__file__).parent / "kernel.cu", "fused_mlp")
# As in chain.cuh.
THREADS, ROWS, _STEP = 256, 16, 16
CASES: tuple[tuple[tuple[int, ...], Activation], ...] = (*((w, "none") for w in WIDTHS), (DLRM_TOP, "sigmoid"))
TOLERANCE = {"none": 0.0, "sigmoid": 1e-5}  # NumPy's exp and C's differ in the last place, all else must not


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    weights: NDArray[np.int8]  # a layer after the other: [padded k / 16, n, 16]
    weight_scales: NDArray[np.float32]  # [sum of n], times the layer's input scale
    biases: NDArray[np.float32]  # [sum of n]
    input_scales: NDArray[np.float32]  # [layers]
    plan: NDArray[np.int32]  # [layers, 3]: k, n, activation

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """As a kernel takes them: `Layers` in chain.cuh."""
        return [self.weights, self.weight_scales, self.biases, self.input_scales, self.plan]

    @property
    def strides(self) -> tuple[int, int]:
        """Bytes of a row of activations in either tile of shared memory; layers take turns."""
        widths = [-(-int(k) // _STEP) * _STEP for k in self.plan[:, 0]]
        return max(widths[::2]), max(widths[1::2], default=0)

    @property
    def shared_bytes(self) -> int:
        return ROWS * sum(self.strides)


def pack(layers: Sequence[Layer]) -> Packed:
    """Raises GraphError where layers don't fit each other, or a block's two tiles of them into shared memory."""
    packed = laid_out(layers)
    if packed.shared_bytes > SHARED_LIMIT_BYTES:
        raise GraphError(
            f"FusedMlp on CUDA keeps {ROWS} rows of two layers' inputs in {SHARED_LIMIT_BYTES} bytes of shared memory, "
            f"together {SHARED_LIMIT_BYTES // ROWS} wide, this chain's are {packed.strides[0]} and {packed.strides[1]}"
        )
    return packed


def laid_out(*chains: Sequence[Layer]) -> Packed:
    """Chains after each other. Raises GraphError where one's layers don't fit: on a GPU nobody else would look."""
    for each in chains:
        _check(each)
    layers = [layer for each in chains for layer in each]
    return Packed(
        weights=np.concatenate([_pack_weight(layer.weight).ravel() for layer in layers]),
        weight_scales=np.concatenate([np.float32(layer.input_scale) * layer.weight_scale for layer in layers]),
        biases=np.concatenate([layer.bias for layer in layers]),
        input_scales=np.array([layer.input_scale for layer in layers], np.float32),
        plan=np.array([_plan(layer) for layer in layers], np.int32),
    )


def _check(layers: Sequence[Layer]) -> None:
    why = [] if layers else ["no layers"]
    for i, layer in enumerate(layers):
        shape, others = layer.weight.shape, (layer.weight_scale, layer.bias)
        if layer.weight.dtype != np.int8:
            why.append(f"layer {i}: weight of {layer.weight.dtype}, on CUDA it must be int8")
        if len(shape) != 2 or 0 in shape or any(a.shape != shape[:1] or a.dtype != np.float32 for a in others):
            found = ", ".join(f"{a.dtype} {list(a.shape)}" for a in (layer.weight, *others))
            why.append(f"layer {i}: wanted int8 weight [n, k], float32 weight_scale [n], bias [n], got {found}")
        elif i > 0 and shape[1] != len(layers[i - 1].weight):
            why.append(f"layer {i}: takes {shape[1]} numbers, the layer before gives {len(layers[i - 1].weight)}")
        if not 0 < layer.input_scale < np.inf:
            why.append(f"layer {i}: input scale must be finite and above 0, got {layer.input_scale}")
        if layer.activation == "sigmoid" and i + 1 < len(layers):
            why.append(f"layer {i}: activation sigmoid (a sigmoid ends a chain)")
    if why:
        raise GraphError(f"FusedMlp: {why[0]}")


def _plan(layer: Layer) -> tuple[int, int, int]:
    n, k = layer.weight.shape
    return k, n, ACTIVATIONS.index(layer.activation)


def _pack_weight(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """[n, k] → [padded k / 16, n, 16]: neighboring threads, which own neighboring columns, read neighboring bytes."""
    n, k = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -k % _STEP)))
    return np.ascontiguousarray(padded.reshape(n, -1, _STEP).transpose(1, 0, 2))


def arguments(x: NDArray[np.float32], packed: Packed) -> tuple[Kernel, Shape, list[Any]]:
    """Kernel, launch and its arguments, of which the last is the answer.

    Raises:
        RequestError: a wrong dtype or shape.
    """
    k, layers = int(packed.plan[0, 0]), len(packed.plan)
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != k:
        raise RequestError(f"x: wanted float32 [rows, {k}], got {x.dtype} {list(x.shape)}")
    rows = len(x)
    y = np.empty((rows, int(packed.plan[-1, 1])), np.float32)
    args = [np.ascontiguousarray(x), *packed.arrays, rows, layers, *packed.strides, y]
    return KERNEL, Shape((max(1, -(-rows // ROWS)), 1, 1), (THREADS, 1, 1), packed.shared_bytes), args


def cases() -> Iterator[Case]:
    rows = ROWS + 3  # a tile and a tail
    for widths, last in CASES:
        layers, x = chain(widths, last), np.random.default_rng(1).normal(size=(rows, widths[0])).astype(np.float32)
        label = f"{rows} x {'-'.join(map(str, widths))}"
        yield Case(label, *arguments(x, pack(layers)), reference(x, layers), TOLERANCE[last])
