"""EmbeddingInteraction on the CPU: the reference's answers on every ISA, INT8's to the bit, in any company; ids that no
table has."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest

from redline import machine
from redline.errors import GraphError
from redline.kernels import build
from redline.kernels.common.formats import Precision
from redline.kernels.embedding_interaction import graphs, operator, shapes
from redline.runtimes import engines
from redline.runtimes.engines import Engine
from redline.tensors import Arrays

RUNNABLE = [isa for isa in build.isas() if not machine.weaker(machine.isa(), isa)]
every_isa = pytest.mark.parametrize("isa", RUNNABLE)
every_shape = pytest.mark.parametrize("isa", [*RUNNABLE, "wide"])
every_format = pytest.mark.parametrize("precision", get_args(Precision))


def load(folder: Path, op: operator.Interaction, isa: str = RUNNABLE[-1], *, ids: str = "int64") -> Engine:
    name = "portable" if isa == "wide" else isa  # the engine knows no library of tests
    if not (folder / build.file_name(name)).exists():  # it may be loaded
        shutil.copyfile(build.library(isa), folder / build.file_name(name))
    onnx.save(graphs.fused(op, ids=ids), folder / "model.onnx")
    return engines.load("onnxruntime", folder / "model.onnx", {"isa": name})


def inputs(ids: Any, dense: Any) -> Arrays:
    return {"ids": ids, **{f"dense{d}": x for d, x in enumerate(dense)}}


def assert_close(have: Any, want: Any, op: operator.Interaction) -> None:
    """int8 to the bit, so every ISA gives the same; the others sum in their own way."""
    near = 0 if op.row_scale.size else 1e-5 * float(np.abs(want).max(initial=0))
    np.testing.assert_allclose(have, want, rtol=0, atol=near)


@every_shape
@pytest.mark.parametrize("case", range(len(shapes.CASES)))
@every_format
def test_answers_are_the_references(isa: str, case: int, precision: Precision, tmp_path: Path) -> None:
    op = operator.stored(shapes.interaction(case), precision)
    engine = load(tmp_path, op, isa)
    for rows in shapes.ROWS:
        ids, dense = shapes.request(op, rows, seed=rows)
        assert_close(engine.infer(inputs(ids, dense))["y"], operator.reference(ids, dense, op), op)


def test_the_reference_is_what_numpy_says() -> None:
    """In any order of sums, near enough; int8 within its steps."""
    op = shapes.interaction(6)
    ids, (dense,) = shapes.request(op, 33)
    vectors = np.concatenate([dense[:, None], op.table[op.tables[:, 1] + ids]], axis=1)
    dots = np.einsum("rid,rjd->rij", vectors, vectors).reshape(33, -1)[:, op.pairs]
    want = np.concatenate([dense, dots], axis=1)
    np.testing.assert_allclose(operator.reference(ids, [dense], op), want, rtol=1e-5, atol=1e-5)
    assert np.abs(operator.reference(ids, [dense], operator.stored(op, "int8")) - want).max() < 0.4


@every_shape
@every_format
def test_a_row_answers_the_same_in_any_company(isa: str, precision: Precision, tmp_path: Path) -> None:
    op = operator.stored(shapes.interaction(4), precision)
    engine = load(tmp_path, op, isa)
    ids, (dense,) = shapes.request(op, 200)
    dense[150:] *= 1000
    whole = engine.infer(inputs(ids, [dense]))["y"]
    for at in (slice(0, 1), slice(3, 67), slice(140, 160)):
        np.testing.assert_array_equal(engine.infer(inputs(ids[at], [dense[at]]))["y"], whole[at])


@every_isa
def test_pairs_in_another_order(isa: str, tmp_path: Path) -> None:
    """Upper triangle, some only, none at all; written either way round."""
    n = len(shapes.CASES[3][2])
    row, column = np.triu_indices(n, 1)
    for pairs in ((row * n + column), (column * n + row)[::-2], np.zeros(0)):
        op = replace(shapes.interaction(3), pairs=np.asarray(pairs, np.int64))
        ids, dense = shapes.request(op, 9)
        assert_close(load(tmp_path, op, isa).infer(inputs(ids, dense))["y"], operator.reference(ids, dense, op), op)


def test_int32_ids_and_a_vector_of_them(tmp_path: Path) -> None:
    op = shapes.interaction(1)
    ids, dense = shapes.request(op, 9)
    want = operator.reference(ids, dense, op)
    engine = load(tmp_path, op, ids="int32")
    assert_close(engine.infer(inputs(ids.astype(np.int32), dense))["y"], want, op)


@pytest.mark.parametrize("value", [-1, 20, 2**40, -(2**63)])
@pytest.mark.parametrize("row", [0, 99])
def test_an_id_that_no_table_has(value: int, row: int, tmp_path: Path) -> None:
    op = shapes.interaction(3)
    ids, dense = shapes.request(op, 100)
    ids[row, 2] = value
    engine = load(tmp_path, op)
    why = rf"EmbeddingInteraction: feature 2 \(column 2 of the ids\), row {row}: id {value} is not in 0..19"
    with pytest.raises(Exception, match=why):
        engine.infer(inputs(ids, dense))
    with pytest.raises(ValueError, match=f"feature 2, row {row}: id {value} is not in 0..19"):
        operator.reference(ids, dense, op)
    ids[row, 2] = 0
    assert np.isfinite(engine.infer(inputs(ids, dense))["y"]).all()  # the kernel is none the worse


def test_what_is_not_finite_stays_in_its_row(tmp_path: Path) -> None:
    for precision in get_args(Precision):
        op = operator.stored(shapes.interaction(4), precision)
        engine = load(tmp_path, op)
        ids, (dense,) = shapes.request(op, 12)
        clean = engine.infer(inputs(ids, [dense]))["y"]
        dense[3, 5], dense[7, 0], dense[8, 31] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore"):
            want = operator.reference(ids, [dense], op)
        have = engine.infer(inputs(ids, [dense]))["y"]
        same = np.setdiff1d(np.arange(12), [3, 7, 8])
        np.testing.assert_array_equal(have[same], clean[same])
        np.testing.assert_array_equal(np.isnan(have[3]), np.isnan(want[3]))
        assert_close(np.nan_to_num(have[3]), np.nan_to_num(want[3]), op)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tables": np.array([[0, 0, 8]])}, "table 0: rows 0 to 8 of 7"),
        ({"tables": np.array([[-1, 0, 7]])}, "table 0: rows"),
        ({"tables": np.array([[0, 2**62, 2**62]])}, "table 0: rows"),
        ({"tables": np.array([0, 0, 7])}, r"tables \[3\], wanted \[n, 3\]"),
        ({"vectors": np.array([-1, 1])}, "vector 1 is of table 1"),
        ({"lead": np.array([2])}, "lead 2 is no vector"),
        ({"pairs": np.array([0])}, "pair 0 is none of two vectors"),
        ({"pairs": np.array([4])}, "pair 4 is none of two vectors"),
        ({"table": np.zeros((7, 5), np.int8)}, "row_scale: 0 numbers, wanted one a row"),
        ({"table": np.zeros((7, 5), np.float64)}, "table of element type 11, wanted int8, bfloat16 or float"),
    ],
)
def test_bad_constants_are_refused_with_our_words(change: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=f"EmbeddingInteraction: {why}"):
        load(tmp_path, _changed(shapes.interaction(1), change))


def _changed(op: operator.Interaction, change: Any) -> operator.Interaction:
    return replace(op, **{k: v.astype(np.int64) if k not in ("table", "row_scale") else v for k, v in change.items()})


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    op = shapes.interaction(3)
    model = graphs.fused(op)
    for value in model.graph.input[1:]:
        value.type.tensor_type.shape.dim[1].dim_param = value.name
        value.type.tensor_type.shape.dim[0].dim_param = f"{value.name} rows"
    shutil.copyfile(build.library(RUNNABLE[-1]), tmp_path / build.file_name(RUNNABLE[-1]))
    onnx.save(model, tmp_path / "model.onnx")
    engine = engines.load("onnxruntime", tmp_path / "model.onnx", {})
    ids, dense = shapes.request(op, 5)
    with pytest.raises(Exception, match=r"ids \[5, 2\], wanted \[rows, 3\]"):
        engine.infer(inputs(ids[:, :2], dense))
    with pytest.raises(Exception, match=r"\[5, 16\], wanted \[5, 17\]"):
        engine.infer(inputs(ids, [dense[0][:, :16], dense[1]]))
    with pytest.raises(Exception, match=r"\[4, 17\], wanted \[5, 17\]"):
        engine.infer(inputs(ids, [dense[0], dense[1][:4]]))


@pytest.mark.parametrize("shape", [(), (5, 1, 1)])
def test_ids_of_too_few_or_too_many_axes(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Where no table asks for a column, either."""
    vectors = np.array([-1, -2], np.int64)
    op = replace(shapes.interaction(1), tables=np.zeros((0, 3), np.int64), vectors=vectors)
    model = graphs.fused(op)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    shutil.copyfile(build.library(RUNNABLE[-1]), tmp_path / build.file_name(RUNNABLE[-1]))
    onnx.save(model, tmp_path / "model.onnx")
    engine = engines.load("onnxruntime", tmp_path / "model.onnx", {})
    dense = [np.ones((5, 5), np.float32)] * 2
    np.testing.assert_array_equal(engine.infer(inputs(np.zeros((5, 0), np.int64), dense))["y"][:, -1], 5)
    with pytest.raises(Exception, match=re.escape(f"ids {list(shape)}, wanted [rows, 0]")):
        engine.infer(inputs(np.zeros(shape, np.int64), dense))
