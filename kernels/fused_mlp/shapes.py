"""Chains that tests and benchmark share: odd widths, and the layers of a DLRM's top MLP."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from redline.kernels.common.formats import Precision
from redline.kernels.fused_mlp.operator import Activation, Layer, of_floats

DLRM_TOP = (383, 512, 256, 128, 1)  # 26 tables: 32 + 351 pairwise dots enter
WIDTHS: tuple[tuple[int, ...], ...] = (
    (1, 1),
    (5, 7, 3),
    (13, 256, 128, 32),
    (130, 33, 65, 17),
    (3, 1, 1, 40),
    (68, 512, 256, 128, 1),
)
ROWS = (0, 1, 2, 3, 4, 12, 13, 96, 97, 127, 513)


def chain(
    widths: Sequence[int], last: Activation = "none", *, precision: Precision = "int8", seed: int = 0
) -> list[Layer]:
    """Random layers whose answers neither vanish nor all saturate; ReLU between them."""
    rng = np.random.default_rng(seed)
    layers = []
    for i, (k, n) in enumerate(pairwise(widths)):
        layer = Layer(
            weight=rng.integers(-127, 128, (n, k), np.int8),
            weight_scale=rng.uniform(0.01, 0.03, n).astype(np.float32) / np.float32(np.sqrt(k)),
            bias=rng.normal(0, 0.1, n).astype(np.float32),
            input_scale=0.02 + 0.01 * i,
            activation=last if i + 2 == len(widths) else "relu",
        )
        weight = layer.weight * layer.weight_scale[:, None]
        layers.append(layer if precision == "int8" else of_floats(weight, layer.bias, layer.activation, precision))
    return layers
