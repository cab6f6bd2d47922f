"""Engines for a GPU that is not here, built for real by TensorRT for RTX: the lint, the layer table, the road."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_job import write_job

from redline import artifact
from redline.cli import main
from redline.errors import GraphError, MissingError, UsageError
from redline.optimize.build import Source
from redline.optimize.job import SLA
from redline.optimize.passes import TensorRT, apply, tensorrt
from redline.optimize.passes.lint_qdq import ADVICE, FAILS, LOST, RULES, Graph, int8_products, lint
from redline.optimize.recipe import AUTO, Recipe, auto_recipes, choose, recipe_from_json
from redline.tensors import Tensor

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed ([rtx])"
)
SHAPES = {"x": [[1, 32], [64, 32], [1024, 32]]}
DQ = "DequantizeLinear"


class Net:
    """A graph built by hand over x, float [rows, 32]."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}
        self._rng = np.random.default_rng(0)

    def __call__(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def pair(self, value: str, scale: float = 0.05, zero: Any = 0) -> str:
        s, z = self.constant(np.float32(scale)), self.constant(np.int8(0) if zero == 0 else zero)
        return self(DQ, self("QuantizeLinear", value, s, z), s, z)

    def weight(self, n: int = 32, *, axis: int = 1, dtype: Any = np.float32) -> str:
        w = self._rng.standard_normal((32, n)).astype(np.float32)
        scale = np.abs(w).max(1 - axis, keepdims=True) / 127
        codes = self.constant(np.round(w / scale).astype(np.int8))
        zeros = self.constant(np.zeros(scale.size, np.int8))
        return self(DQ, codes, self.constant(scale.astype(dtype).ravel()), zeros, axis=axis)

    def product(self, a: str, b: str) -> str:
        return self("MatMul", a, b, name="product")

    def save(self, path: Path, out: str) -> Path:
        self("Identity", out, name="last")
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
            [helper.make_tensor_value_info("last_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path


def good(net: Net) -> str:
    return net.product(net.pair("x"), net.weight())


def int32_bias(net: Net) -> str:
    scale, zeros = net.constant(np.full(32, 0.01, np.float32)), net.constant(np.zeros(32, np.int32))
    bias = net(DQ, net.constant(np.arange(32, dtype=np.int32)), scale, zeros, axis=0, name="bias")
    return net("Gemm", net.pair("x"), net.weight(), bias, name="product")


def lone_quantize(net: Net) -> str:
    codes = net("QuantizeLinear", "x", net.constant(np.float32(0.1)), net.constant(np.int8(0)))
    return net("Cast", net.product(codes, net.constant(np.ones((32, 32), np.int8))), to=TensorProto.FLOAT)


def runtime_scale(net: Net) -> str:
    largest = net("ReduceMax", net("Abs", "x"), keepdims=0)
    scale, zero = net("Div", largest, net.constant(np.float32(127))), net.constant(np.int8(0))
    return net.product(net(DQ, net("QuantizeLinear", "x", scale, zero), scale, zero), net.weight())


def gemm_over_k(net: Net) -> str:
    return net("Gemm", net.pair("x"), net.weight(), name="product", transB=1)


# rule → graphs that break it, each with the node that the reason must name
PLANTED: dict[str, list[tuple[Callable[[Net], str], str]]] = {
    "zero point": [
        (lambda n: n.product(n.pair("x", zero=np.int8(3)), n.weight()), "QuantizeLinear0 "),
        (lambda n: n.product(n.pair("x", zero=np.uint8(128)), n.weight()), "QuantizeLinear0 "),
    ],
    "scale": [
        (lambda n: n.product(n.pair("x", scale=0), n.weight()), "QuantizeLinear0 "),
        (lambda n: n.product(n.pair("x", scale=-1), n.weight()), "QuantizeLinear0 "),
    ],
    "int32 bias": [(int32_bias, "bias ")],
    "mixed scales": [(lambda n: n.product(n.pair("x"), n.weight(dtype=np.float16)), "product ")],
    "lone QuantizeLinear": [(lone_quantize, "QuantizeLinear0 ")],
    "channel axis": [
        (lambda n: n.product(n.pair("x"), n.weight(axis=0)), "product "),
        (gemm_over_k, "product "),
    ],
    "weight left out": [
        (lambda n: n.product(n.pair("x"), n.constant(np.ones((32, 32), np.float32))), "product "),
        (lambda n: n.product(n.pair("x"), n("Cast", n.weight(dtype=np.float16), to=TensorProto.FLOAT)), "product "),
    ],
    "activation left out": [(lambda n: n.product("x", n.weight()), "product ")],
    "scale at run time": [(runtime_scale, "QuantizeLinear3 ")],
    "pair in between": [(lambda n: n("Relu", n.pair(good(n))), "product ")],
    "double pair": [(lambda n: n.product(n.pair(n.pair("x")), n.weight()), "QuantizeLinear2 ")],
    "output pair": [],  # below: the graph's output must be the pair's
    "residual branch": [(lambda n: n("Add", n.pair(good(n)), "x", name="sum"), "sum ")],
    "small product": [(lambda n: n.product(n.pair("x"), n.weight(8)), "product ")],
}
CASES = [(rule, i) for rule, cases in PLANTED.items() for i in range(len(cases))]


def build(graph: Path, tmp_path: Path) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = tensorrt.build(graph, tmp_path / "plan", "cuda:sm_86", SHAPES)["layers"]
    return layers


@rtx
@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{rule} {i}" for rule, i in CASES])
def test_a_planted_violation_is_named_and_is_as_bad_as_it_says(name: str, case: int, tmp_path: Path) -> None:
    net = Net()
    plant, node = PLANTED[name][case]
    path = net.save(tmp_path / "model.onnx", plant(net))
    found = {rule.name: (rule.evidence, texts) for rule, texts in lint(Graph(onnx.load(path))).items()}
    evidence, texts = found[name]
    assert any(text.startswith(node) for text in texts), texts
    if evidence is FAILS:
        with pytest.raises(GraphError, match=r"^TensorRT (can't take: |for cuda:sm_86: )"):
            build(path, tmp_path)
        return
    layers = build(path, tmp_path)
    if evidence is LOST:
        with pytest.raises(GraphError, match="product"):
            tensorrt.prove_int8(layers, [("product", "MatMul")])
    else:
        assert evidence is ADVICE
        tensorrt.prove_int8(layers, [("product", "MatMul")])


def test_every_rule_is_planted() -> None:
    assert list(PLANTED) == [rule.name for rule in RULES]


def test_a_pair_at_the_output(tmp_path: Path) -> None:
    net = Net()
    model = onnx.load(net.save(tmp_path / "model.onnx", net.pair(good(net))))
    model.graph.output[0].name = model.graph.node[-2].output[0]
    assert "output pair" in {rule.name for rule in lint(Graph(model))}


@rtx
def test_a_good_graph(tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "model.onnx", good(net))
    graph = Graph(onnx.load(path))
    assert lint(graph) == {}
    assert [n.name for n in int8_products(graph)] == ["product"]
    layers = build(path, tmp_path)
    tensorrt.prove_int8(layers, [("product", "MatMul")])
    product = next(layer for layer in layers if layer["type"] == "gemm")
    assert product["inputs"] == ["Int8 [-1,32]"]
    assert product["constants"][0] == "Int8 [32,32]"
    assert product["nodes"][0] == "product"
    assert (tmp_path / "plan").read_bytes()[:4] == b"vtrt"


@rtx
def test_a_convolution(tmp_path: Path) -> None:
    net = Net()
    image = net.pair(net("Reshape", "x", net.constant(np.array([-1, 8, 2, 2]))))
    codes = net.constant(np.full((16, 8, 3, 3), 7, np.int8))
    scale, zeros = net.constant(np.linspace(0.01, 0.02, 16, dtype=np.float32)), net.constant(np.zeros(16, np.int8))
    out = net("Conv", image, net(DQ, codes, scale, zeros, axis=0), name="product", pads=[1, 1, 1, 1])
    path = net.save(tmp_path / "model.onnx", out)
    assert lint(Graph(onnx.load(path))) == {}
    layers = build(path, tmp_path)
    tensorrt.prove_int8(layers, [("product", "Conv")])
    assert "correlation" in {layer["type"] for layer in layers}


def test_int8_that_did_not_come_is_named() -> None:
    layers = [
        {"type": "runtime_fusion", "inputs": ["Int8 [-1,32]"], "constants": ["Int8 [32,32]"], "nodes": ["a"]},
        {"type": "gemm", "inputs": ["Int8 [-1,32]"], "constants": ["Int8 [32,32]", "Float [1]"], "nodes": ["b", "dq"]},
        {"type": "gemm", "inputs": ["Int8 [-1,8]"], "constants": ["Float [8,8]"], "nodes": ["c"]},
    ]
    tensorrt.prove_int8(layers, [("b", "Gemm")])
    with pytest.raises(GraphError) as caught:
        tensorrt.prove_int8(layers, [("a", "Gemm"), ("b", "Gemm"), ("c", "MatMul"), ("d", "Conv")])
    said = str(caught.value)
    assert "a (Gemm) became runtime_fusion['Int8 [-1,32]']; c (MatMul) became gemm" in said
    assert said.endswith("d (Conv) became no layer of its own")


@rtx
def test_unsupported_operators_are_all_named(tmp_path: Path) -> None:
    net = Net()
    random = net("Bernoulli", net("Sigmoid", "x"), name="coin")
    path = net.save(tmp_path / "model.onnx", net("Add", random, net("Bernoulli", "x", name="other")))
    with pytest.raises(GraphError) as caught:
        build(path, tmp_path)
    assert str(caught.value) == (
        "TensorRT can't take: coin (Bernoulli): unsupported operator; other (Bernoulli): unsupported operator"
    )


@rtx
@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({**SHAPES, "y": [[1], [1], [1]]}, r"the profile names inputs \['x', 'y'\], the graph has \['x'\]"),
        ({"z": SHAPES["x"]}, r"the profile names inputs \['z'\], the graph has \['x'\]"),
        ({"x": [[64, 32], [1, 32], [64, 32]]}, r"TensorRT for cuda:sm_86"),
    ],
)
def test_a_profile_that_does_not_fit(profile: dict[str, list[list[int]]], message: str, tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "model.onnx", good(net))
    with pytest.raises(GraphError, match=message):
        tensorrt.build(path, tmp_path / "plan", "cuda:sm_86", profile)


def test_a_builder_that_dies_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho last words >&2\nkill -ABRT $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(GraphError, match="cuda:sm_86 ended with code -6 while building: last words"):
        tensorrt.build(tmp_path / "model.onnx", tmp_path / "plan", "cuda:sm_86", SHAPES)
    program.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(tensorrt, "_TIMEOUT_S", 0.2)
    with pytest.raises(GraphError, match=r"no engine after 0\.2 s"):
        tensorrt.build(tmp_path / "model.onnx", tmp_path / "plan", "cuda:sm_86", SHAPES)


def run_pass(path: Path, source: Source, out: Path) -> Any:
    job = replace(source.job, inputs=(Tensor(name="x", dtype="float32", shape=("rows", 32)),))
    out.parent.mkdir(exist_ok=True)
    return apply(TensorRT(target="cuda:sm_86", rows=64, max_rows=1024), path, Source(job, source.job_file), out)


@rtx
def test_the_pass_leaves_plan_graph_and_table(source: Source, tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "model.onnx", net("Relu", net.pair(good(net))))
    said = run_pass(path, source, tmp_path / "made" / "model.plan")
    assert said.ok
    assert said.why.startswith("INT8 1/1 products, ")
    assert "1 x pair in between: product (MatMul): a Q/DQ pair stands before its Relu" in said.why
    assert (tmp_path / "made" / "model.onnx").read_bytes() == path.read_bytes()
    table = json.loads((tmp_path / "made" / "layers.json").read_text())
    assert table["int8"] == ["product"]
    assert "gemm" in {layer["type"] for layer in table["layers"]}


@rtx
def test_the_pass_refuses(source: Source, tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "model.onnx", net("FusedMlp", "x", name="ours", domain="ai.redline"))
    with pytest.raises(GraphError, match=r"no fused nodes of ai\.redline.*: ours \(FusedMlp\)$"):
        run_pass(path, source, tmp_path / "made" / "model.plan")
    net = Net()
    path = net.save(tmp_path / "model.onnx", net.product("x", net.weight()))
    with pytest.raises(GraphError, match=r"product \(MatMul\): its weight is quantized.*\[INT8 is silently lost\]"):
        run_pass(path, source, tmp_path / "made" / "model.plan")


def test_recipes_for_a_target() -> None:
    sla = SLA(rows=500)
    recipes = auto_recipes("cuda:sm_86", sla)
    assert [r.name for r in recipes] == ["tensorrt-int8", "tensorrt-fp32"]
    for recipe in recipes:
        assert (recipe.target, recipe.kind, recipe.track) == ("cuda:sm_86", "tensorrt", "auto")
        assert recipe_from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
        assert recipe.to_json()["passes"][-1] == {
            "pass": "TensorRT", "target": "cuda:sm_86", "rows": 500, "max_rows": 2000
        }  # fmt: skip
    assert auto_recipes("cpu", sla) == AUTO
    with pytest.raises(UsageError, match="no 'cuda:sm_90'; known: cpu, cuda:sm_75, cuda:sm_80, cuda:sm_86, cuda:sm_89"):
        auto_recipes("cuda:sm_90", sla)
    mine = (
        Recipe(name="mine", passes=recipes[0].passes, engine="tensorrt", options={}),
        Recipe(name="cpu", passes=(), engine="onnxruntime"),
    )
    assert [r.name for r in choose("all", mine, recipes)] == ["tensorrt-int8", "tensorrt-fp32", "mine"]
    assert {"cpu", "mine"} & {r.name for r in choose("all", mine)} == {"cpu"}
    for wrong in ({"target": "cuda:sm_90"}, {"rows": 0}, {"rows": 3000}):
        with pytest.raises(ValueError, match=r"wanted|not one of"):
            replace(recipes[0].passes[-1], **wrong)  # type: ignore[type-var]


@rtx
def test_the_road_to_a_gpu(clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(clean_process)
    assert main(["optimize", "job.py", "--target", "cuda:sm_86", "--out", "made", "--baseline", "plain"]) == 0
    said = capsys.readouterr().out
    assert "engine        TensorRT: INT8 2/2 products, " in said
    assert "speed-up      not measured; tensorrt-int8 is the first recipe for cuda:sm_86 that keeps the gate" in said
    assert "proof         unproven: built, not measured: no cuda:sm_86 device here" in said
    found = artifact.load(clean_process / "made", here="portable")  # the machine's own ISA says nothing of a GPU
    manifest = found.manifest
    assert (manifest.kind, manifest.target, manifest.engine) == ("tensorrt", "cuda:sm_86", "tensorrt")
    assert (manifest.proof, manifest.proof_why) == ("unproven", "built, not measured: no cuda:sm_86 device here")
    assert set(manifest.files) == {
        "evidence/layers.json", "evidence/leaderboard.json", "golden.npz", "model/model.onnx", "model/model.plan",
        "report.html",
    }  # fmt: skip
    assert found.evidence("layers")["summary"].startswith("INT8 2/2 products")
    board = found.evidence("leaderboard")
    assert (board["winner"], board["speedup"], board["target"]) == ("tensorrt-int8", {}, "cuda:sm_86")
    for entry in board["candidates"]:
        assert list(entry["verdicts"]) == ["build", "parity", "invariance", "accuracy"]
        assert entry["alive"]
        assert entry["latency_ms"] == {}
    page = (found.path / "report.html").read_text()
    assert "built, not measured: no cuda:sm_86 device here" in page
    assert "not measured" in page
    assert "no load test was asked for" not in page

    assert main(["inspect", "made"]) == 0
    said = capsys.readouterr().out
    assert "INT8 2/2 products" in said
    assert "unproven: built, not measured: no cuda:sm_86 device here" in said
    assert "on ONNX Runtime's CPU" in said

    assert main(["optimize", "job.py", "--target", "cuda:sm_86", "--out", "again", "--json"]) == 0
    board = json.loads(capsys.readouterr().out)
    assert {c["verdicts"]["build"]["why"] for c in board["candidates"]} == {"cached"}
    assert main(["optimize", "job.py", "--target", "cuda:sm_86", "--rows", "8", "--out", "rows", "--json"]) == 0
    board = json.loads(capsys.readouterr().out)  # another profile is another plan
    assert {c["verdicts"]["build"]["why"] for c in board["candidates"]} == {"built"}


@rtx
def test_what_turing_can_not_do(clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(clean_process)
    assert main(["optimize", "job.py", "--target", "cuda:sm_75", "--recipes", "tensorrt-fp32", "--out", "made"]) == 1
    said = capsys.readouterr()
    assert "Turing (SM75): FP32 GEMM is not supported" in " ".join(said.out.split())
    assert (clean_process / "made.rejected" / "report.html").is_file()


def test_no_such_target_and_no_library(
    clean_process: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_job(clean_process)
    assert main(["optimize", "job.py", "--target", "gpu", "--out", "made"]) == 2
    assert "no 'gpu'; known: cpu, cuda:sm_75" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError):
        tensorrt.require_library()
    assert main(["optimize", "job.py", "--target", "cuda:sm_86", "--out", "made"]) == 3
    assert "a TensorRT engine needs `pip install 'redline[rtx]'`" in capsys.readouterr().err
    assert not (clean_process / "made").exists()
