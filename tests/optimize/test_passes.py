"""Passes: what they do to a graph, what they refuse and why, and that recipes read back what they wrote."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from redline.errors import GraphError, UsageError
from redline.optimize.build import Cache, Source, build
from redline.optimize.passes import (
    ExportOnnx,
    FuseKernels,
    MergeEmbeddings,
    QuantizeDynamic,
    QuantizeStatic,
    TensorRT,
    apply,
)
from redline.optimize.recipe import AUTO, BASELINE, EXPERT, RETRAINED, Recipe, choose, recipe_from_json
from redline.runtimes import engines
from redline.tensors import Arrays, Tensor

SIZES = (10, 7, 5, 9)
IDS = Tensor(name="ids", dtype="int64", shape=("rows", 4), max=tuple(n - 1 for n in SIZES))
DENSE = Tensor(name="dense", dtype="float32", shape=("rows", 4))


class Graph:
    """Look-ups built by hand: tables of four columns unless told otherwise."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {"one": np.array([1])}
        self._rng = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{op}{len(self.nodes)}", **attributes))
        return out

    def table(self, size: int, width: int = 4) -> str:
        name = f"table{len(self.weights)}"
        self.weights[name] = self._rng.standard_normal((size, width)).astype(np.float32)
        return name

    def column(self, i: int, ids: str = "ids") -> str:
        self.weights[f"c{i}"] = np.array(i)
        return self.node("Gather", ids, f"c{i}", axis=1)

    def lookup(self, i: int, ids: str | None = None, *, stacked: bool = False, width: int = 4) -> str:
        rows = self.node("Gather", self.table(SIZES[i], width), ids or self.column(i), axis=0)
        return self.node("Unsqueeze", rows, "one") if stacked else rows

    def save(self, path: Path, out: str, inputs: tuple[Tensor, ...]) -> Path:
        kinds = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
        self.nodes.append(helper.make_node("Identity", [out], ["score"], name="last"))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info(t.name, kinds[t.dtype], t.shape) for t in inputs],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


def merge(graph: Path, out: Path, source: Source, inputs: tuple[Tensor, ...]) -> tuple[bool, str]:
    said = apply(MergeEmbeddings(), graph, Source(replace(source.job, inputs=inputs), source.job_file), out)
    return said.ok, said.why


def answer(graph: Path, inputs: Arrays) -> np.ndarray[Any, Any]:
    return engines.load("onnxruntime", graph, {}).infer(inputs)["score"]


def draw(inputs: tuple[Tensor, ...], rows: int) -> Arrays:
    """Random rows; the first and last id of every table among them."""
    rng, found = np.random.default_rng(rows), {}
    for t in inputs:
        if t.dtype == "float32":
            found[t.name] = rng.standard_normal((rows, *t.row_shape)).astype(np.float32)
            continue
        ids = rng.integers(0, np.asarray(t.max) + 1, (rows, *t.row_shape)).astype(t.dtype)
        ids[0], ids[-1] = 0, t.max
        found[t.name] = ids
    return found


def concatenated(g: Graph) -> str:
    return g.node("Concat", *[g.lookup(i) for i in range(4)], "dense", axis=1)


def stacked(g: Graph) -> str:
    last = g.node("Unsqueeze", "dense", "one")
    return g.node("Concat", *[g.lookup(i, stacked=True) for i in range(4)], last, axis=1)


def some_columns(g: Graph) -> str:
    return g.node("Concat", g.lookup(2), g.lookup(0), "dense", axis=1)


def two_concats(g: Graph) -> str:
    left, right = (g.node("Concat", *[g.lookup(i) for i in pair], axis=1) for pair in ((0, 1), (2, 3)))
    return g.node("Concat", left, "dense", right, axis=1)


def nameless(g: Graph) -> str:
    """What a name of the graph's own can't be taken from."""
    out = two_concats(g)
    for node in g.nodes:
        node.name = ""
    return out


def two_runs(g: Graph) -> str:
    return g.node("Concat", g.lookup(0), g.lookup(1), "dense", g.lookup(2), g.lookup(3), axis=1)


def runs_of_two_widths(g: Graph) -> str:
    narrow = [g.lookup(i, width=2) for i in (0, 1)]
    return g.node("Concat", *narrow, g.lookup(2), g.lookup(3), "dense", axis=1)


@pytest.mark.parametrize(
    ("make", "merged", "gathers"),
    [
        (concatenated, 4, 1),
        (stacked, 4, 1),
        (some_columns, 2, 2),  # one picks the columns
        (two_concats, 4, 4),
        (nameless, 4, 4),
        (two_runs, 4, 4),
        (runs_of_two_widths, 4, 4),
    ],
)
def test_tables_are_merged_and_the_answers_stay_bit_identical(
    make: Any, merged: int, gathers: int, source: Source, tmp_path: Path
) -> None:
    g, inputs = Graph(), (IDS, DENSE)
    before = g.save(tmp_path / "before.onnx", make(g), inputs)
    after = tmp_path / "after.onnx"
    assert merge(before, after, source, inputs) == (True, f"{merged} tables in one")
    left = onnx.load(after).graph
    assert Counter(n.op_type for n in left.node)["Gather"] == gathers
    assert not [i.name for i in left.initializer if i.name in g.weights and i.name.startswith("table")]
    onnx.checker.check_model(onnx.load(after), full_check=True)
    for rows in (1, 2, 33):
        inputs_now = draw(inputs, rows)
        np.testing.assert_array_equal(answer(after, inputs_now), answer(before, inputs_now))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_tables_of_separate_inputs_are_merged(dtype: str, source: Source, tmp_path: Path) -> None:
    inputs = (*(Tensor(name=f"id{i}", dtype=dtype, shape=("rows",), max=SIZES[i] - 1) for i in range(3)), DENSE)
    g = Graph()
    out = g.node("Concat", *[g.lookup(i, f"id{i}") for i in range(3)], "dense", axis=1)
    before = g.save(tmp_path / "before.onnx", out, inputs)
    assert merge(before, tmp_path / "after.onnx", source, inputs) == (True, "3 tables in one")
    for rows in (1, 5):
        inputs_now = draw(inputs, rows)
        np.testing.assert_array_equal(answer(tmp_path / "after.onnx", inputs_now), answer(before, inputs_now))


def used_twice(g: Graph) -> str:
    pair = [g.lookup(0), g.lookup(1)]
    return g.node("Concat", *pair, g.node("Relu", pair[0]), g.node("Relu", pair[1]), axis=1)


def computed_ids(g: Graph) -> str:
    g.weights["mask"] = np.array(3)
    return g.node("Concat", *[g.lookup(i, g.node("Mod", g.column(i), "mask")) for i in (0, 1)], axis=1)


def interleaved(g: Graph) -> str:
    return g.node("Concat", g.lookup(0), "dense", g.lookup(1), axis=1)


@pytest.mark.parametrize(
    ("make", "ids", "why"),
    [
        (concatenated, replace(IDS, max=None), "input 'ids' declares no `max` below its table's 10 rows"),
        (concatenated, replace(IDS, max=SIZES), "input 'ids' declares no `max` below its table's 10 rows"),
        (used_twice, IDS, "its rows are used elsewhere too"),
        (computed_ids, IDS, "its ids are computed (Mod)"),
        (lambda g: g.node("Concat", g.lookup(0), "dense", axis=1), IDS, "fewer than two look-ups side by side"),
        (lambda g: g.node("Concat", g.lookup(0), g.lookup(1, width=3), axis=1), IDS, "fewer than two look-ups"),
        (interleaved, IDS, "fewer than two look-ups side by side"),
        (lambda g: g.node("Add", g.lookup(0), "dense"), IDS, "fewer than two look-ups side by side"),
    ],
)
def test_what_can_not_be_merged_is_left_with_a_reason(
    make: Any, ids: Tensor, why: str, source: Source, tmp_path: Path
) -> None:
    g = Graph()
    before = g.save(tmp_path / "before.onnx", make(g), (ids, DENSE))
    ok, said = merge(before, tmp_path / "after.onnx", source, (ids, DENSE))
    assert not ok
    assert said.startswith("left as it was: ")
    assert why in said
    inputs = draw((IDS, DENSE), 9)
    np.testing.assert_array_equal(answer(tmp_path / "after.onnx", inputs), answer(before, inputs))


STATIC = Recipe(name="static", passes=(ExportOnnx(), MergeEmbeddings(), QuantizeStatic()), engine="onnxruntime")


def test_static_int8_is_one_dialect_that_every_engine_takes(source: Source, steps: Path) -> None:
    candidate = build(STATIC, source, Cache(steps / "steps"))
    assert candidate.notes[1:] == (
        "MergeEmbeddings: 3 tables in one",
        "QuantizeStatic: 2 Gemm/MatMul/Conv of weights, ranges from 4,000 rows",
    )
    graph = onnx.load(candidate.model).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    marks = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [weights[n.input[2]] for n in marks]
    assert {z.dtype for z in zeros} == {np.dtype(np.int8)}  # so no int32 bias
    assert not any(z.any() for z in zeros)
    made = {out: n for n in graph.node for out in n.output}
    heavy = [n for n in graph.node if n.op_type in ("Gemm", "MatMul", "Conv")]
    assert len(heavy) == 2
    scales = 0
    for node in heavy:
        activation, weight = (made[name] for name in node.input[:2])
        assert (activation.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert weights[weight.input[0]].dtype == np.int8
        scales += weights[weight.input[1]].size
    assert scales == 32 + 1  # one scale for each output channel
    for gather in [n for n in graph.node if n.op_type == "Gather"]:
        assert not any(made[o].op_type == "DequantizeLinear" for o in gather.input if o in made)


@pytest.mark.parametrize("before", [None, Path("model.safetensors")])
@pytest.mark.parametrize(
    "config",
    [
        MergeEmbeddings(),
        QuantizeStatic(),
        QuantizeDynamic(),
        FuseKernels(),
        TensorRT(target="cuda:sm_86", rows=1, max_rows=2),
    ],
    ids=lambda c: type(c).__name__,
)
def test_a_pass_over_graphs_needs_one(config: Any, before: Path | None, source: Source, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="put ExportOnnx before it"):
        apply(config, before, source, tmp_path / "x.onnx")


def test_export_comes_first(source: Source, tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="ExportOnnx takes the model, not a graph"):
        apply(ExportOnnx(), tmp_path / "some.onnx", source, tmp_path / "x.onnx")


@pytest.mark.parametrize("config", [QuantizeStatic(), QuantizeDynamic()])
def test_nothing_to_quantize_is_said(config: Any, source: Source, tmp_path: Path) -> None:
    g = Graph()
    graph = g.save(tmp_path / "g.onnx", concatenated(g), (IDS, DENSE))
    with pytest.raises(GraphError, match="no Gemm, MatMul or Conv with a weight among"):
        apply(config, graph, source, tmp_path / "x.onnx")


@pytest.mark.parametrize("recipe", [BASELINE, *AUTO, *RETRAINED, STATIC], ids=lambda r: r.name)
def test_a_recipe_reads_back_what_it_wrote(recipe: Recipe) -> None:
    assert recipe_from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speed": 9}, r"recipe: unknown keys \['speed'\]"),
        ({"passes": [{"pass": "Magic"}]}, "unknown pass 'Magic'; known: .*'ExportOnnx'"),
        ({"passes": [{}]}, "unknown pass None"),
        ({"passes": [{"pass": "ExportOnnx", "opsett": 20}]}, r"ExportOnnx: unknown keys \['opsett'\]"),
    ],
)
def test_an_unknown_key_in_a_recipe_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_from_json(STATIC.to_json() | change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExportOnnx(opset=17), "opset 17 is not in 18..23"),
        (lambda: ExportOnnx(opset=24), "opset 24"),
        (lambda: QuantizeStatic(rows=0), "rows must be above 0"),
    ],
)
def test_bounds_of_a_pass(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_choosing_recipes() -> None:
    own = (STATIC,)
    assert choose("auto", own) == AUTO
    assert choose("all", own) == (*AUTO, *EXPERT, STATIC)
    assert choose("all", own, finetune=True) == (*AUTO, *EXPERT, *RETRAINED, STATIC)
    assert choose("openvino-int8-qat", own) == (RETRAINED[-1],)
    assert [r.name for r in choose(" static, openvino-fp32 ", own)] == ["static", "openvino-fp32"]
    for name in ("pytorch-eager", "openvino-fp32", "static"):
        with pytest.raises(UsageError, match="names of their own"):
            choose("auto", (STATIC, replace(STATIC, name=name)))
    for bad in ("fast", "static,fast", "", ","):
        with pytest.raises(UsageError, match="--recipes: no recipe"):
            choose(bad, own)


def test_an_unregistered_pass_is_a_bug() -> None:
    with pytest.raises(TypeError, match="int is not a pass"):
        apply(cast(Any, 3), None, cast(Any, None), Path("x"))
