"""kernels/embedding_interaction/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from redline.errors import GraphError, RequestError
from redline.kernels.check import on_host
from redline.kernels.embedding_interaction import cuda, shapes
from redline.kernels.embedding_interaction.operator import Interaction, reference, stored
from redline.kernels.host.run import ORDERS, Order
from redline.kernels.launch import launch

every_case = pytest.mark.parametrize("case", range(len(shapes.CASES)))
either_format = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


def made(case: int, int8: bool) -> Interaction:
    op = shapes.interaction(case)
    return stored(op, "int8") if int8 else op


def answer(op: Interaction, ids: Any, dense: Any, order: Order = "random", *, checked: bool = True) -> NDArray[Any]:
    kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
    y, _ = on_host(kernel, shape, args, order, checked=checked)
    cuda.refuse(args[-2], ids, op)
    return y


@pytest.mark.parametrize("order", ORDERS)
@either_format
@every_case
def test_answers_are_the_references(case: int, int8: bool, order: Order) -> None:
    """To the bit; in checked mode: no bug of any kind, either."""
    op = made(case, int8)
    for rows in (1, 3, 127) if len(op.vectors) < 9 else (1, 3):
        ids, dense = shapes.request(op, rows, seed=rows)
        np.testing.assert_array_equal(answer(op, ids, dense, order), reference(ids, dense, op))


@either_format
@every_case
def test_any_number_of_rows(case: int, int8: bool) -> None:
    op = made(case, int8)
    for rows in shapes.ROWS:
        ids, dense = shapes.request(op, rows, seed=rows)
        np.testing.assert_array_equal(answer(op, ids, dense, checked=False), reference(ids, dense, op))


@either_format
def test_pairs_and_leads_in_another_order(int8: bool) -> None:
    """Upper triangle, some only, none at all; written either way round; a table's row goes out as well."""
    n = len(shapes.CASES[3][2])
    row, column = np.triu_indices(n, 1)
    for pairs in ((row * n + column), (column * n + row)[::-2], np.zeros(0)):
        op = replace(made(3, int8), pairs=np.asarray(pairs, np.int64), lead=np.array([2, 1, 1], np.int64))
        ids, dense = shapes.request(op, 9)
        np.testing.assert_array_equal(answer(op, ids, dense), reference(ids, dense, op))


def test_columns_shared_and_skipped_and_a_table_that_no_vector_is_of() -> None:
    op = made(3, True)
    op = replace(op, tables=op.tables[[2, 0, 1, 0]] * [2, 1, 1] + [1, 0, 0], vectors=np.array([2, -1, 0, -2, 1]))
    _, dense = shapes.request(op, 9)
    ids = np.random.default_rng(2).integers(0, 20, (9, 7)).astype(np.int32)
    np.testing.assert_array_equal(answer(op, ids, dense), reference(ids, dense, op))


def test_int32_ids_and_a_vector_of_them() -> None:
    op = made(1, False)
    ids, dense = shapes.request(op, 9)
    for same in (ids.astype(np.int32), ids[:, 0], np.asfortranarray(ids)):
        np.testing.assert_array_equal(answer(op, same, dense), reference(ids, dense, op))


@pytest.mark.parametrize("value", [-1, 20, 2**40, -(2**63), 2**32])
@pytest.mark.parametrize("row", [0, 99])
@either_format
def test_an_id_that_no_table_has(value: int, row: int, int8: bool) -> None:
    """The words are the CPU's, the reads stay in the table, and other rows answer as before."""
    op = made(3, int8)
    ids, dense = shapes.request(op, 100)
    wanted = reference(ids, dense, op)
    ids[row, 2] = value
    kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
    y, _ = on_host(kernel, shape, args, "random")
    why = rf"^feature 2 \(column 2 of the ids\), row {row}: id {value} is not in 0..19$"
    with pytest.raises(RequestError, match=why):
        cuda.refuse(args[-2], ids, op)
    others = np.arange(100) != row
    np.testing.assert_array_equal(y[others], wanted[others])


@pytest.mark.parametrize("order", ORDERS)
def test_the_first_of_many_bad_ids_is_told(order: Order) -> None:
    op = made(6, True)
    ids, dense = shapes.request(op, 40)
    ids[37] = 50
    ids[20, 9:] = -1
    with pytest.raises(RequestError, match=r"^feature 9 \(column 9 of the ids\), row 20: id -1 is not in 0..49$"):
        answer(op, ids, dense, order)


@either_format
@pytest.mark.parametrize("case", [4, 7])  # a number a lane; and more: the first lane sees the first and the last
def test_what_is_not_finite_stays_in_its_row(case: int, int8: bool) -> None:
    op = made(case, int8)
    ids, (dense,) = shapes.request(op, 12)
    clean = answer(op, ids, [dense])
    dense[3, 0], dense[3, -1], dense[7, 0], dense[8, 31] = np.nan, 9, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = reference(ids, [dense], op)
    have, same = answer(op, ids, [dense]), np.setdiff1d(np.arange(12), [3, 7, 8])
    np.testing.assert_array_equal(have[same], clean[same])
    np.testing.assert_array_equal(have[3], wanted[3])


@either_format
def test_bytes_read_are_those_of_the_roofline(int8: bool) -> None:
    """Ids, a row of each table and its scale once; y once."""
    op, rows = made(6, int8), 21
    ids, dense = shapes.request(op, rows)
    _, counts = on_host(*cuda.arguments(ids, dense, cuda.pack(op)), "forward")
    looked_up = rows * len(op.tables)
    assert counts.read_bytes[:3] == (looked_up * 8, looked_up * op.dim * (1 if int8 else 4), looked_up * 4 * int8)
    assert counts.written_bytes[-2:] == (0, rows * op.width * 4)


def test_rows_too_wide_for_shared_memory_are_refused() -> None:
    wide = shapes.of((3, 3), 9000, (0, 1), ())
    ids, dense = shapes.request(wide, 2)
    with pytest.raises(GraphError, match=r"in 65536 bytes of shared memory, 2 of 9000 numbers take 720\d\d"):
        cuda.arguments(ids, dense, cuda.pack(wide))
    fewer = shapes.of((3, 3), 2000, (0, 1), ())  # four rows a block
    assert cuda.arguments(ids, dense, cuda.pack(fewer))[1].block == (128, 1, 1)
    np.testing.assert_array_equal(answer(fewer, ids, dense), reference(ids, dense, fewer))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tables": np.array([[0, 0, 8]])}, "table 0: rows 0 to 8 of 7"),
        ({"tables": np.array([[-1, 0, 7]])}, "table 0: rows"),
        ({"tables": np.array([[0, 0, 0]])}, "table 0: rows"),
        ({"vectors": np.array([-1, 1])}, "vector 1 is of table 1"),
        ({"lead": np.array([2])}, "lead 2 is no vector"),
        ({"pairs": np.array([0])}, "pair 0 is none of two vectors"),
        ({"pairs": np.array([4])}, "pair 4 is none of two vectors"),
        ({"table": np.zeros((7, 5), np.int8)}, "a table of int8 with 0 scales"),
        ({"row_scale": np.zeros(6, np.float32)}, "a table of float32 with 6 scales"),
    ],
)
def test_bad_constants_are_refused(change: Any, why: str) -> None:
    with pytest.raises(GraphError, match=f"EmbeddingInteraction: {why}"):
        cuda.pack(replace(made(1, False), **change))


def test_requests_that_do_not_fit() -> None:
    op = made(3, False)
    ids, dense = shapes.request(op, 5)
    for wrong, why in (
        ((ids[:, :2], dense), r"ids: wanted int64 or int32 \[rows, 3\], got int64 \[5, 2\]"),
        ((ids.astype(np.float32), dense), "got float32"),
        ((ids, [dense[0][:4], dense[1]]), r"wanted float32 \[5, 17\], got float32 \[4, 17\]"),
        ((ids, [dense[0], dense[1].astype(np.float64)]), r"wanted float32 \[5, 17\], got float64"),
    ):
        with pytest.raises(RequestError, match=why):
            cuda.arguments(*wrong, cuda.pack(op))


# A bug planted in the kernel itself; what must be said of it, and what stands in a line that is named.
BUGS = [
    ("__syncwarp();  // every lane", "// every lane", "race|uninitialized", r"found\["),
    ("__syncwarp();  // the vectors", "// the vectors", "race|uninitialized", "staged"),
    ("shared + warp * scratch_chunks", "shared", "race", r"found\[t\] ="),
    ("  if (row >= rows) return;\n", "", "out of bounds", r"wide \?"),
    ("id < tables[3 * t + 2]", "id <= tables[3 * t + 2]", "out of bounds", "place.x"),
    ("atomicMin(fault, ", "*fault = (", "race", r"\*fault = "),
    (
        "leads * dim + p, Format::value",
        "leads * dim + p + 1, Format::value",
        "race|out of bounds",
        r"to\[place\] = value",
    ),
    ("to[k] = k < dim ?", "to[k + 1] = k < dim ?", "uninitialized", "staged"),
]


@pytest.mark.parametrize(("old", "new", "kind", "where"), BUGS)
def test_a_bug_planted_in_the_kernel_is_found(
    old: str, new: str, kind: str, where: str, planted: Callable[..., list[str]]
) -> None:
    op = made(4, True)
    ids, dense = shapes.request(op, 12)
    right, wanted = np.setdiff1d(np.arange(12), [3, 5]), reference(ids, dense, op)
    ids[3, 6:], ids[5, 7] = 11, 11  # in no table; of the last table, behind all rows
    launched = cuda.arguments(ids, dense, cuda.pack(op))
    said = planted(*launched, old, new, lambda y: np.array_equal(y[right], wanted[right]))
    assert all(re.match(kind, found) and re.search(where, found) for found in said), said


@pytest.mark.gpu
@either_format
@every_case
def test_answers_are_the_references_on_a_gpu(case: int, int8: bool, gpu: None) -> None:
    op = made(case, int8)
    for rows in shapes.ROWS:
        ids, dense = shapes.request(op, rows, seed=rows)
        kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
        launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
        cuda.refuse(args[-2], ids, op)
        np.testing.assert_array_equal(args[-1], reference(ids, dense, op))


@pytest.mark.gpu
def test_an_id_that_no_table_has_on_a_gpu(gpu: None) -> None:
    op = made(6, True)
    ids, dense = shapes.request(op, 513)
    ids[400, 3:], ids[511] = -1, 2**40
    kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
    launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
    with pytest.raises(RequestError, match=r"^feature 3 \(column 3 of the ids\), row 400: id -1 is not in 0..49$"):
        cuda.refuse(args[-2], ids, op)
