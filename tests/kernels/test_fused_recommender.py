"""FusedRecommender: the bits of the nodes that it is made of, in ONNX Runtime and in the native engine."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from redline import machine
from redline.errors import GraphError, MissingError, RequestError, UsageError
from redline.kernels import build
from redline.kernels.common.formats import Precision
from redline.kernels.fused_mlp import shapes as mlps
from redline.kernels.fused_recommender import graphs, native, operator, pattern, shapes
from redline.runtimes import engines
from redline.tensors import Arrays

RUNNABLE = [isa for isa in build.isas() if not machine.weaker(machine.isa(), isa)]
every_isa = pytest.mark.parametrize("isa", RUNNABLE)
LIBRARY = build.library(RUNNABLE[-1])


def save(folder: Path, model: onnx.ModelProto, *isas: str) -> Path:
    folder.mkdir(exist_ok=True)
    for isa in isas or RUNNABLE[-1:]:
        shutil.copyfile(build.library(isa), folder / build.file_name(isa))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def inputs(ids: Any, dense: Any) -> Arrays:
    return {"ids": ids, **{f"dense{d}": x for d, x in enumerate(dense)}}


@every_isa
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("case", range(3))
def test_answers_are_the_references(isa: str, precision: Precision, case: int, tmp_path: Path) -> None:
    op = shapes.cases(precision)[case]
    allowed = {"int8": 2e-6, "bf16": 2e-2, "fp32": 1e-5}[precision]  # INT8: the sigmoid's exp
    path = save(tmp_path, graphs.fused(op), isa)
    node, alone = (engines.load(name, path, {"isa": isa}) for name in ("onnxruntime", "native"))
    parts = engines.load("onnxruntime", save(tmp_path / "parts", graphs.parts(op), isa), {})
    for rows in shapes.ROWS:
        request = shapes.request(op, rows, seed=rows)
        have = node.infer(inputs(*request))["y"]
        assert have.shape == ((rows,) if op.squeeze else (rows, 2))
        np.testing.assert_allclose(have, operator.reference(*request, op), rtol=0, atol=allowed)
        for other in (alone, parts):
            np.testing.assert_array_equal(have, other.infer(inputs(*request))["y"])


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_same_bits_in_any_company_on_any_thread_and_int8_on_every_isa(precision: Precision) -> None:
    op = shapes.cases(precision)[1]
    ids, dense = shapes.request(op, 513)
    dense[0][400:] *= 1000
    kernels = [native.FusedRecommender(build.library(isa), op) for isa in (*RUNNABLE, "wide")]
    want = kernels[0](ids, dense)
    for kernel in kernels:
        whole = kernel(ids, dense)
        near = slice(None if precision == "int8" else 400)  # outliers' sums differ by more than a sigmoid hides
        allowed = {"int8": 0, "bf16": 2e-2, "fp32": 1e-5}[precision]
        np.testing.assert_allclose(whole[near], want[near], rtol=0, atol=allowed)
        for at in (slice(0, 1), slice(3, 6), slice(390, 517)):
            np.testing.assert_array_equal(kernel(ids[at], [x[at] for x in dense]), whole[at])
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda _: kernels[-1](ids, dense), range(32)):
            np.testing.assert_array_equal(answer, whole)


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_every_thread_has_its_own_answer(engine: str, tmp_path: Path) -> None:
    """Eight at once on one engine, each with rows of its own; every fourth asks for what no table has in between."""
    op = shapes.cases()[1]
    running = engines.load(engine, save(tmp_path, graphs.fused(op)), {})
    requests = [inputs(*shapes.request(op, 40 * t + 7, seed=t)) for t in range(8)]
    wanted = [running.infer(request)["y"].copy() for request in requests]
    together = Barrier(8)

    def ask(t: int) -> int:
        together.wait()
        have = []
        for i in range(30):
            ids, last = requests[t]["ids"], len(requests[t]["ids"]) - 1
            if t % 4 == 0 and i % 2:
                wrong = np.concatenate([ids[:-1], ids[-1:] + 100 + t])
                with pytest.raises(Exception, match=f"row {last}: id {wrong[last, 0]} is not in"):
                    running.infer(requests[t] | {"ids": wrong})
            have.append(running.infer(requests[t])["y"])
        return sum(np.array_equal(y, wanted[t]) for y in have)  # all are kept until the end: none is another's memory

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [30] * 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(value: float, tmp_path: Path) -> None:
    """Of both dense inputs: one goes through a bottom MLP, one enters as it is."""
    op = shapes.cases()[1]
    running = engines.load("native", save(tmp_path, graphs.fused(op)), {})
    ids, dense = shapes.request(op, 9)
    clean = running.infer(inputs(ids, dense))["y"]
    for x, row in zip(dense, (2, 5), strict=True):
        x[row, 1] = value
    have = running.infer(inputs(ids, dense))["y"]
    others = np.setdiff1d(np.arange(9), (2, 5))
    np.testing.assert_array_equal(have[others], clean[others])
    assert np.isfinite(have).all()  # a bottom and the top count NaN as their lowest step


def test_what_is_not_finite_counts_as_the_lowest_step() -> None:
    op = shapes.cases()[0]
    ids, (dense,) = shapes.request(op, 9)
    kernel = native.FusedRecommender(LIBRARY, op)
    low = dense.copy()
    dense[2, 1], low[2, 1] = np.nan, -1e9
    np.testing.assert_array_equal(kernel(ids, [dense]), kernel(ids, [low]))


@pytest.mark.parametrize("engine", ["onnxruntime", "native"])
def test_ids_that_no_table_has(engine: str, tmp_path: Path) -> None:
    op = shapes.cases()[1]
    running = engines.load(engine, save(tmp_path, graphs.fused(op)), {})
    for value in (-1, 30, 2**40):
        ids, dense = shapes.request(op, 200)
        ids[150, 1] = value
        why = rf"feature 1 \(column 1 of the ids\), row 150: id {value} is not in 0..29"
        with pytest.raises(RequestError if engine == "native" else Exception, match=why):
            running.infer(inputs(ids, dense))
        ids[150, 1] = 0
        assert np.isfinite(running.infer(inputs(ids, dense))["y"]).all()


def test_requests_that_do_not_fit(tmp_path: Path) -> None:
    op = shapes.cases()[1]
    kernel = native.FusedRecommender(LIBRARY, op)
    ids, dense = shapes.request(op, 5)
    want = kernel(ids, dense)
    for wrong, why in (
        ((ids[:, :2], dense), r"ids: wanted int64 or int32 \[rows, 3\], got int64 \[5, 2\]"),
        ((ids.astype(np.float32), dense), "got float32"),
        ((ids, [dense[0][:4], dense[1]]), r"wanted float32 \[5, 13\], got float32 \[4, 13\]"),
        ((ids, [dense[0], dense[1].astype(np.float64)]), r"wanted float32 \[5, 17\], got float64"),
    ):
        with pytest.raises(RequestError, match=why):
            kernel(*wrong)
    with pytest.raises(RequestError, match=r"wanted inputs \['ids', 'dense0', 'dense1'\], got \['ids', 'dense0'\]"):
        engines.load("native", save(tmp_path, graphs.fused(op)), {}).infer(inputs(ids, dense[:1]))
    other = [np.asfortranarray(dense[0]), np.repeat(dense[1], 2, axis=1)[:, ::2]]
    np.testing.assert_array_equal(kernel(np.asfortranarray(ids.astype(np.int32)), other), want)


def test_parts_that_do_not_fit() -> None:
    op = shapes.cases("fp32")[0]
    for wrong, why in (
        (replace(op, top=mlps.chain((9, 1))), "the top MLP takes 9 numbers, the interaction gives 6"),
        (replace(op, bottoms=[mlps.chain((3, 4))]), "dense vector 0 is 4 wide, the tables are 5"),
    ):
        with pytest.raises(ValueError, match=f"FusedRecommender: {why}"):
            native.FusedRecommender(LIBRARY, wrong)


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("precision", get_args(Precision))
def test_parts_become_one_node(case: int, precision: Precision) -> None:
    op = shapes.cases(precision)[case]
    graph = ir.from_proto(graphs.parts(op)).graph
    ((one,), refusals) = pattern.find(graph)
    assert not refusals
    assert one.op.squeeze == op.squeeze
    have, want = operator.constants(one.op), operator.constants(op)
    assert have.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(have[name], array)
    pattern.replace(graph, one)
    assert graph.node("interaction.whole").op_type == operator.NAME


def used_elsewhere(value: str) -> Any:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Neg", [value], ["side"], name="side"))
        model.graph.output.append(helper.make_tensor_value_info("side", 1, None))

    return change


def another_top(model: onnx.ModelProto) -> None:
    top = next(n for n in model.graph.node if n.name == "top")
    top.op_type, top.domain = "Softmax", ""
    del top.input[1:]


@pytest.mark.parametrize(
    ("change", "found", "why"),
    [
        (used_elsewhere("interaction.y"), 0, r"does not go into one FusedMlp \(it is used elsewhere too\)"),
        (another_top, 0, r"does not go into one FusedMlp \(Softmax takes it\)"),
        (used_elsewhere("bottom0.y"), 1, "bottom0 stays outside: what it gives is used elsewhere too"),
    ],
)
def test_what_stays_outside_and_why(change: Any, found: int, why: str) -> None:
    model = graphs.parts(shapes.cases()[1])
    change(model)
    have, refusals = pattern.find(ir.from_proto(model).graph)
    assert len(have) == found
    with pytest.raises(AssertionError, match=why):
        raise AssertionError("; ".join(verdict.why for verdict in refusals))


def test_what_the_native_engine_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = shapes.cases()[0]
    parts = save(tmp_path / "parts", graphs.parts(op))
    with pytest.raises(GraphError, match=r"native takes a graph of one FusedRecommender node, model.onnx has 4 nodes"):
        engines.load("native", parts, {})
    whole = save(tmp_path / "whole", graphs.fused(op))
    with pytest.raises(UsageError, match="native: threads 2, wanted 1"):
        engines.load("native", whole, {"threads": 2})
    with pytest.raises(UsageError, match="isa 'sse9' is not one of"):
        engines.load("native", whole, {"isa": "sse9"})
    with monkeypatch.context() as patch, pytest.raises(MissingError, match="avx512_vnni was forced, this CPU has avx2"):
        patch.setattr(machine, "isa", lambda: "avx2")
        engines.load("native", whole, {"isa": "avx512_vnni"})
    (whole.parent / build.file_name(RUNNABLE[-1])).unlink()
    with pytest.raises(MissingError, match=r"no library of fused kernels lies beside it: wanted libredline_"):
        engines.load("native", whole, {})
    whole.write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"native (can't read|takes a graph)"):
        engines.load("native", whole, {})
