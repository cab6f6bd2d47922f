"""Interactions that tests and benchmark share: few and many tables, odd widths, every order of what comes out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.embedding_interaction.operator import Interaction, lower_triangle

# sizes of the tables, dim, vectors (a table, or -1 - d for dense vector d), vectors that go out as they are
CASES: tuple[tuple[tuple[int, ...], int, tuple[int, ...], tuple[int, ...]], ...] = (
    ((7,), 1, (0,), (0,)),
    ((7,), 5, (-1, 0), (0,)),
    ((3, 1, 9), 8, (0, 1, 2), ()),
    ((40, 30, 20), 17, (1, -1, 0, -2, 2), (3, 0)),
    ((11,) * 8, 32, (-1, *range(8)), (0,)),
    ((5,) * 15, 4, (-1, *range(15)), (0,)),
    ((50,) * 26, 32, (-1, *range(26)), (0,)),
    ((6,) * 34, 33, (*range(34), -1), (34,)),
    ((4,) * 70, 12, tuple(range(70)), ()),
)
ROWS = (0, 1, 3, 64, 127, 513)


def interaction(case: int, *, seed: int = 0) -> Interaction:
    sizes, dim, vectors, lead = CASES[case]
    return of(sizes, dim, vectors, lead, seed=seed)


def of(
    sizes: Sequence[int], dim: int, vectors: Sequence[int], lead: Sequence[int], *, std: float = 1.0, seed: int = 0
) -> Interaction:
    rng = np.random.default_rng(seed)
    begin = np.cumsum([0, *sizes[:-1]])
    return Interaction(
        table=rng.normal(0, std, (sum(sizes), dim)).astype(np.float32),
        row_scale=np.zeros(0, np.float32),
        tables=np.stack([np.arange(len(sizes)), begin, np.array(sizes)], axis=1).astype(np.int64),
        vectors=np.array(vectors, np.int64),
        lead=np.array(lead, np.int64),
        pairs=lower_triangle(len(vectors)),
    )


def request(op: Interaction, rows: int, *, seed: int = 0) -> tuple[NDArray[np.int64], list[NDArray[np.float32]]]:
    """Ids of all rows, the first row's and the last row's at both ends of every table; dense vectors."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, op.tables[:, 2], (rows, len(op.tables)), np.int64)
    ids[:1], ids[1:2] = 0, op.tables[:, 2] - 1
    dense: list[Any] = [rng.standard_normal((rows, op.dim)).astype(np.float32) for _ in range(op.dense_count)]
    return ids, dense
