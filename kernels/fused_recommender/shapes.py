"""Recommenders that tests and benchmark share."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from redline.kernels.common.formats import Precision
from redline.kernels.embedding_interaction import shapes as interactions
from redline.kernels.embedding_interaction.operator import Interaction, stored
from redline.kernels.fused_mlp import shapes as mlps
from redline.kernels.fused_recommender.operator import Recommender

ROWS = (0, 1, 3, 96, 127, 513)


def of(
    found: Interaction,
    bottoms: Sequence[tuple[int, ...]],
    hidden: tuple[int, ...],
    *,
    precision: Precision = "int8",
    tables: Precision | None = None,
) -> Recommender:
    """bottoms: widths of each dense vector's layers, () where it enters as it is; hidden: of the top's layers; tables:
    where they are stored in another precision."""
    return Recommender(
        interaction=stored(found, tables or precision),
        bottoms=[mlps.chain(widths, "relu", precision=precision) if widths else [] for widths in bottoms],
        top=mlps.chain((found.width, *hidden), "sigmoid", precision=precision),
        squeeze=hidden[-1] == 1,
    )


def cases(precision: Precision = "int8", tables: Precision | None = None) -> list[Recommender]:
    one = interactions.interaction(1)  # one table
    two = interactions.interaction(3)  # two dense vectors
    plain = interactions.interaction(8)  # tables only
    return [
        of(one, [(3, 5)], (7, 1), precision=precision, tables=tables),
        of(two, [(13, 40, 17), ()], (33, 2), precision=precision, tables=tables),
        of(plain, [], (65, 1), precision=precision, tables=tables),
    ]


def dlrm(precision: Precision = "int8") -> Recommender:
    """26 tables of 10,000 rows, 13 dense features: as job.py's, with random weights of its own."""
    found = interactions.of((10_000,) * 26, 32, (-1, *range(26)), (0,), std=0.2)
    return of(found, [(13, 256, 128, 32)], (512, 256, 128, 1), precision=precision)


def request(op: Recommender, rows: int, *, seed: int = 0) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    ids, _ = interactions.request(op.interaction, rows, seed=seed)
    rng = np.random.default_rng(seed)
    return ids, [rng.standard_normal((rows, width)).astype(np.float32) for width in op.dense_widths]
