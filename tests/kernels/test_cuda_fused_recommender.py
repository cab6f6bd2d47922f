"""kernels/fused_recommender/kernel.cu against its reference: on the CPU always, on a GPU where there is one."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from redline.errors import GraphError, RequestError
from redline.kernels.check import on_host
from redline.kernels.embedding_interaction import shapes as interactions
from redline.kernels.embedding_interaction.cuda import refuse
from redline.kernels.fused_mlp import shapes as mlps
from redline.kernels.fused_recommender import cuda, shapes
from redline.kernels.fused_recommender.operator import Recommender, reference
from redline.kernels.host.run import ORDERS, Order
from redline.kernels.launch import launch

every_case = pytest.mark.parametrize("case", range(3))
either_format = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


def exact(op: Recommender) -> Recommender:
    """Without its last sigmoid, which alone may differ from NumPy's."""
    return replace(op, top=[*op.top[:-1], replace(op.top[-1], activation="none")])


def answer(op: Recommender, ids: Any, dense: Any, order: Order = "random", *, checked: bool = True) -> NDArray[Any]:
    kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
    y, _ = on_host(kernel, shape, args, order, checked=checked)
    refuse(args[-2], ids, op.interaction)
    return y


@pytest.mark.parametrize("order", ORDERS)
@either_format
@every_case
def test_answers_are_the_references(case: int, int8: bool, order: Order) -> None:
    """To the bit; in checked mode: no bug of any kind, either."""
    op = exact(shapes.cases(tables="int8" if int8 else "fp32")[case])
    for rows in (1, 3, 127) if len(op.interaction.vectors) < 9 else (3,):
        request = shapes.request(op, rows, seed=rows)
        np.testing.assert_array_equal(answer(op, *request, order), reference(*request, op))


@either_format
@every_case
def test_any_number_of_rows(case: int, int8: bool) -> None:
    op = shapes.cases(tables="int8" if int8 else "fp32")[case]
    for rows in shapes.ROWS:
        request = shapes.request(op, rows, seed=rows)
        have = answer(op, *request, checked=False)
        assert have.shape == ((rows,) if op.squeeze else (rows, 2))
        np.testing.assert_allclose(have, reference(*request, op), rtol=0, atol=cuda.TOLERANCE)


def test_a_dense_vector_as_it_is_before_one_with_layers() -> None:
    found = interactions.interaction(3)
    op = exact(shapes.of(found, [(), (13, 40, 17)], (33, 2)))
    request = shapes.request(op, 19)
    np.testing.assert_array_equal(answer(op, *request), reference(*request, op))


def test_26_tables() -> None:
    op = exact(shapes.dlrm())
    request = shapes.request(op, 19)
    np.testing.assert_array_equal(answer(op, *request), reference(*request, op))


def test_a_row_answers_the_same_in_any_company() -> None:
    op = shapes.cases()[1]
    ids, dense = shapes.request(op, 40)
    dense[0][30:] *= 1000
    whole = answer(op, ids, dense, "forward")
    for at in (slice(0, 1), slice(3, 6), slice(25, 40)):
        np.testing.assert_array_equal(answer(op, ids[at], [x[at] for x in dense], "forward"), whole[at])


def test_what_is_not_finite_counts_as_the_lowest_step() -> None:
    op = shapes.cases()[0]
    ids, (dense,) = shapes.request(op, 9)
    low = dense.copy()
    dense[2, 1], low[2, 1] = np.nan, -1e9
    np.testing.assert_array_equal(answer(op, ids, [dense]), answer(op, ids, [low]))


@either_format
def test_ids_that_no_table_has(int8: bool) -> None:
    op = exact(shapes.cases(tables="int8" if int8 else "fp32")[1])
    for value in (-1, 30, 2**40):
        ids, dense = shapes.request(op, 40)
        wanted = reference(ids, dense, op)
        ids[35, 1] = value
        kernel, shape, args = cuda.arguments(ids, dense, cuda.pack(op))
        y, _ = on_host(kernel, shape, args, "random")
        why = rf"^feature 1 \(column 1 of the ids\), row 35: id {value} is not in 0..29$"
        with pytest.raises(RequestError, match=why):
            refuse(args[-2], ids, op.interaction)
        np.testing.assert_array_equal(np.delete(y, 35, axis=0), np.delete(wanted, 35, axis=0))


def test_int32_ids_and_arrays_in_another_order() -> None:
    op = shapes.cases()[1]
    ids, dense = shapes.request(op, 5)
    other = [np.asfortranarray(dense[0]), np.repeat(dense[1], 2, axis=1)[:, ::2]]
    have = answer(op, np.asfortranarray(ids.astype(np.int32)), other, "forward")
    np.testing.assert_array_equal(have, answer(op, ids, dense, "forward"))


def test_bytes_moved_are_those_of_the_roofline() -> None:
    """Ids, tables' rows, dense inputs and y once, nothing in between; weights once a block and group of rows."""
    op, rows = shapes.dlrm(), 19
    request = shapes.request(op, rows)
    _, counts = on_host(*cuda.arguments(*request, cuda.pack(op)), "forward")
    assert counts.read_bytes[:3] == (rows * 26 * 8, rows * 26 * 32, rows * 26 * 4)
    chains = ((13, 256, 128, 32), (383, 512, 256, 128, 1))
    weights = sum(-(-k // 16) * 16 * n for widths in chains for k, n in pairwise(widths))
    assert counts.read_bytes[5:7] == (rows * 13 * 4, weights * 2 * 4)
    assert counts.written_bytes[-2:] == (0, rows * 4)
    assert sum(counts.written_bytes) == rows * 4


def test_parts_that_do_not_fit() -> None:
    op = shapes.cases(tables="fp32")[0]
    for wrong, why in (
        (replace(op, top=mlps.chain((9, 1))), "the top MLP takes 9 numbers, the interaction gives 6"),
        (replace(op, bottoms=[mlps.chain((3, 4))]), "dense vector 0 is 4 wide, the tables are 5"),
        (replace(op, bottoms=[]), "0 bottoms for 1 dense vectors"),
        (replace(op, top=[op.top[0], *op.top]), "layer 1: takes 6 numbers, the layer before gives 7"),
    ):
        with pytest.raises(GraphError, match=f"^Fused(Mlp|Recommender): {why}"):
            cuda.pack(wrong)
    with pytest.raises(RequestError, match=r"wanted float32 \[5, 3\], got float32 \[5, 5\]"):
        cuda.arguments(*interactions.request(op.interaction, 5), cuda.pack(op))


def test_what_does_not_fit_into_shared_memory() -> None:
    """Fewer warps take the rows before it is refused, and the refusal has the figures."""
    dense, sparse = (-1, *range(26)), (10,) * 26
    narrow, wide, too_wide = (
        shapes.of(interactions.of(sparse, dim, dense, (0,)), [(13, dim)], (64, 1), tables="fp32")
        for dim in (32, 128, 512)
    )
    assert (cuda.pack(narrow).slots, cuda.pack(wide).slots) == (8, 3)
    request = shapes.request(wide, 17)
    have = answer(exact(wide), *request, "forward", checked=False)
    np.testing.assert_array_equal(have, reference(*request, exact(wide)))
    why = r"has 65536 .* 16 rows of two layers' inputs take 14848, of 1 dense vectors 32768, a row's 27 vectors 560\d\d"
    with pytest.raises(GraphError, match=why):
        cuda.pack(too_wide)


# A bug planted in the kernel itself; what must be said of it, and what stands in a line that is named.
BUGS = [
    ("__syncwarp();  // every lane", "// every lane", "race|uninitialized", r"found\["),
    (
        "__syncthreads();  // what pads the top's",
        "// what pads the top's",
        "race|uninitialized",
        r"\[place\]|to\[r \* dim",
    ),
    ("__syncthreads();                           // the tile", "// the tile", "race|uninitialized", "tiles."),
    ("i < ROWS * tiles.from_stride / 16", "i < 0", "uninitialized", "= dot16"),
    ("warp < slots && r < here", "warp < slots && r < ROWS", "out of bounds", r"wide \?"),
    ("    x += inputs;\n", "", "wrong", ""),
]


@pytest.mark.parametrize(("old", "new", "kind", "where"), BUGS)
def test_a_bug_planted_in_the_kernel_is_found(
    old: str, new: str, kind: str, where: str, planted: Callable[..., list[str]]
) -> None:
    op = exact(shapes.cases()[1])
    request = shapes.request(op, 19)
    launched = cuda.arguments(*request, cuda.pack(op))
    said = planted(*launched, old, new, lambda y: np.array_equal(y, reference(*request, op)))
    assert all(re.match(kind, found) and re.search(where, found) for found in said), said


@pytest.mark.gpu
@either_format
@every_case
def test_answers_are_the_references_on_a_gpu(case: int, int8: bool, gpu: None) -> None:
    op = exact(shapes.cases(tables="int8" if int8 else "fp32")[case])
    for rows in shapes.ROWS:
        request = shapes.request(op, rows, seed=rows)
        kernel, shape, args = cuda.arguments(*request, cuda.pack(op))
        launch(kernel, shape.grid, shape.block, shape.smem, args, backend="cuda.core")
        refuse(args[-2], request[0], op.interaction)
        np.testing.assert_array_equal(args[-1], reference(*request, op))
