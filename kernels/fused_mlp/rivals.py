"""FusedMlp beside PyTorch: the same int8 steps in float32, which holds their sums exactly, and float16 without them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from redline.kernels.fused_mlp import cuda
from redline.kernels.fused_mlp.operator import Activation, Layer
from redline.kernels.fused_mlp.shapes import DLRM_TOP, chain
from redline.kernels.works import Subject, Work, queued

Net = Callable[[Tensor], Tensor]
ROWS = (1, 512, 8192, 65536)
STEPS_ALLOWED = 1e-2  # PyTorch may round a step the other way
FLOAT16_ALLOWED = 5e-2
_ACTIVATE: dict[Activation, Net] = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid}


def int8_steps(layers: Sequence[Layer], device: str) -> Net:
    weights = [torch.from_numpy(layer.weight).to(device).float() for layer in layers]
    scales = [torch.from_numpy(np.float32(layer.input_scale) * layer.weight_scale).to(device) for layer in layers]
    biases = [torch.from_numpy(layer.bias).to(device) for layer in layers]

    def net(x: Tensor) -> Tensor:
        for layer, weight, scale, bias in zip(layers, weights, scales, biases, strict=True):
            steps = (x / layer.input_scale).round().clamp(-128, 127)
            x = _ACTIVATE[layer.activation](linear(steps, weight) * scale + bias)
        return x

    return net


def floats(layers: Sequence[Layer], device: str, dtype: torch.dtype) -> Net:
    weights = [torch.from_numpy(x.weight * x.weight_scale[:, None]).to(device, dtype) for x in layers]
    biases = [torch.from_numpy(layer.bias).to(device, dtype) for layer in layers]

    def net(x: Tensor) -> Tensor:
        x = x.to(dtype)
        for layer, weight, bias in zip(layers, weights, biases, strict=True):
            x = _ACTIVATE[layer.activation](linear(x, weight, bias))
        return x

    return net


def work(rows: int, device: str = "cuda") -> Work:
    layers = chain(DLRM_TOP, "sigmoid")
    x = np.random.default_rng(0).standard_normal((rows, DLRM_TOP[0])).astype(np.float32)
    there, steps, half = torch.from_numpy(x).to(device), int8_steps(layers, device), floats(layers, device, torch.half)
    compiled, compiled_half = torch.compile(steps), torch.compile(half)
    wanted, wanted_half = steps(there), floats(layers, device, torch.float32)(there)
    weights = sum(k * n for k, n in pairwise(DLRM_TOP))
    return Work(
        f"fused_mlp int8 {'-'.join(map(str, DLRM_TOP))} rows {rows}",
        {
            "redline": Subject(queued(*cuda.arguments(x, cuda.pack(layers)), device), wanted, STEPS_ALLOWED),
            "torch.compile": Subject(lambda: compiled(there), wanted, STEPS_ALLOWED),
            "torch.compile, float16": Subject(lambda: compiled_half(there), wanted_half, FLOAT16_ALLOWED),
            "eager": Subject(lambda: steps(there), wanted, STEPS_ALLOWED),
            "eager, float16": Subject(lambda: half(there), wanted_half, FLOAT16_ALLOWED),
        },
        2 * rows * weights,
        weights + 4 * rows * (DLRM_TOP[0] + DLRM_TOP[-1]),
    )


def works() -> Iterator[Work]:
    yield from map(work, ROWS)
