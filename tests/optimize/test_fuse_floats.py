"""FuseKernels in bf16 and fp32: Linear layers of float weights, without any Q/DQ; and a DLRM from job to artifact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from tiny_job import write_job

from redline import artifact
from redline.cli import main
from redline.kernels.common.formats import Precision
from redline.kernels.fused_mlp import graphs, pattern, shapes
from redline.kernels.fused_mlp.operator import reference
from redline.optimize.build import Source
from redline.optimize.passes import FuseKernels, apply
from redline.optimize.recipe import EXPERT, recipe_from_json
from redline.runtimes import engines

Change = Callable[[onnx.ModelProto], None]
LAYERS = shapes.chain((5, 7, 6, 3), "sigmoid", precision="fp32")
both = pytest.mark.parametrize("precision", ["bf16", "fp32"])


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def put(name: str, array: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return change


def as_it_is(model: onnx.ModelProto) -> None:
    pass


def matmul_and_add(model: onnx.ModelProto) -> None:
    put("w0", LAYERS[0].weight.T.copy())(model)
    gemm = node(model, "Gemm0")
    gemm.op_type, gemm.output[0] = "MatMul", "product"
    del gemm.attribute[:], gemm.input[2]
    model.graph.node.insert(1, helper.make_node("Add", ["b0", "product"], ["v0"], name="Add"))


def gemm_of_k_by_n(model: onnx.ModelProto) -> None:
    put("w0", LAYERS[0].weight.T.copy())(model)
    del node(model, "Gemm0").attribute[:]


@both
@pytest.mark.parametrize("change", [as_it_is, matmul_and_add, gemm_of_k_by_n])
def test_a_chain_becomes_one_node(precision: Precision, change: Change, source: Source, tmp_path: Path) -> None:
    model = graphs.plain(LAYERS)
    change(model)
    onnx.save(model, tmp_path / "before.onnx")
    after = tmp_path / "fused" / "model.onnx"
    after.parent.mkdir()
    said = apply(FuseKernels(precision=precision), tmp_path / "before.onnx", source, after)
    assert (said.ok, said.why) == (True, "3 layers in 1 fused nodes (5-7-6-3)")
    assert [n.op_type for n in onnx.load(after).graph.node] == ["FusedMlp"]
    x = np.random.default_rng(0).standard_normal((33, 5)).astype(np.float32)
    answer = engines.load("onnxruntime", after, {}).infer({"x": x})["y"]
    want = reference(x, shapes.chain((5, 7, 6, 3), "sigmoid", precision=precision))
    np.testing.assert_allclose(answer, want, rtol=0, atol={"bf16": 2e-2, "fp32": 1e-5}[precision])


def alpha(model: onnx.ModelProto) -> None:
    node(model, "Gemm0").attribute.append(helper.make_attribute("alpha", 0.5))


def computed_bias(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Neg", ["b0"], ["bias"], name="bias"))
    node(model, "Gemm0").input[2] = "bias"


def computed_weight(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Neg", ["w0"], ["weight"], name="weight"))
    node(model, "Gemm0").input[1] = "weight"


def used_elsewhere(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["a0"], ["side"], name="side"))
    model.graph.output.append(helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, ["rows", 7]))


@pytest.mark.parametrize(
    ("change", "chains", "why"),
    [
        (alpha, [[6, 3]], "Gemm0: alpha, beta or transA differ"),
        (computed_bias, [[6, 3]], "Gemm0: its bias is no float32 constant"),
        (put("w0", np.zeros((7, 5))), [[6, 3]], r"Gemm0: its weight is float64 \[7, 5\], wanted float32"),
        (put("w0", np.zeros((1, 7, 5), np.float32)), [[6, 3]], r"Gemm0: its weight is float32 \[1, 7, 5\]"),
        (computed_weight, [[6, 3]], "^$"),  # a product of two activations is none of ours
        (used_elsewhere, [[7], [6, 3]], "Gemm1 starts a chain of its own: what Gemm0 gives is used elsewhere too"),
    ],
)
def test_what_is_left_and_why(change: Change, chains: list[list[int]], why: str) -> None:
    model = graphs.plain(LAYERS)
    change(model)
    found, refusals = pattern.find(ir.from_proto(model).graph, "fp32")
    assert [[len(link.layer.weight) for link in chain] for chain in found] == chains
    with pytest.raises(AssertionError, match=why):
        raise AssertionError("; ".join(verdict.why for verdict in refusals))


def test_each_format_leaves_the_others_graph(source: Source, tmp_path: Path) -> None:
    for config, model, why in (
        (FuseKernels(), graphs.plain(LAYERS), "no quantized Gemm or MatMul (QuantizeStatic first)"),
        (FuseKernels(precision="bf16"), graphs.fused(LAYERS), "no Gemm or MatMul"),
    ):
        onnx.save(model, tmp_path / "before.onnx")
        said = apply(config, tmp_path / "before.onnx", source, tmp_path / "model.onnx")
        assert (said.ok, said.why) == (False, f"left as it was: {why}")
    with pytest.raises(ValueError, match="precision 'fp16' is not one of int8, bf16, fp32"):
        FuseKernels(precision="fp16")  # type: ignore[arg-type]


def test_the_recipes() -> None:
    recipes = {r.name: r for r in EXPERT}
    for precision in ("bf16", "fp32"):
        recipe = recipes[f"native-{precision}-fused"]
        assert (recipe.engine, recipe.kind, recipe.precision) == ("native", "fused", precision)
        assert recipe_from_json(recipe.to_json()) == recipe


DLRM = (
    (
        "self.body = nn.Sequential(nn.Linear(28, 32), nn.ReLU(), nn.Linear(32, 1))",
        "self.bottom = nn.Linear(4, 8)\n"
        "        self.body = nn.Sequential(nn.Linear(14, 32), nn.ReLU(), nn.Linear(32, 1))\n"
        "        row, column = torch.tril_indices(4, 4, offset=-1)\n"
        "        self.register_buffer('pairs', row * 4 + column, persistent=False)",
    ),
    (
        "return torch.sigmoid(self.body(torch.cat([*rows, dense], dim=1)).squeeze(1))",
        "bottom = torch.relu(self.bottom(dense))\n"
        "        v = torch.stack([bottom, *rows], dim=1)\n"
        "        dots = torch.bmm(v, v.transpose(1, 2)).flatten(1).index_select(1, self.pairs)\n"
        "        return torch.sigmoid(self.body(torch.cat([bottom, dots], dim=1))).squeeze(1)",
    ),
)


@both
def test_a_dlrm_from_job_to_artifact(
    precision: Precision, clean_process: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gate, batch invariance to the bit, and the artifact's golden requests on the engine that serves them."""
    write_job(clean_process, *DLRM)
    name = f"native-{precision}-fused"
    assert main(["optimize", "job.py", "--recipes", name, "--no-prove", "--json", "--out", "made"]) == 0
    board = json.loads(capsys.readouterr().out)
    (entry,) = board["candidates"]
    assert board["winner"] == name
    assert entry["verdicts"]["invariance"]["worst"] == 0.0
    assert (entry["verdicts"]["parity"]["worst"] > 1e-5) == (precision == "bf16")  # which rounds
    said = entry["notes"][-1]
    assert f"6 dots of 4 vectors (3 tables, {precision}) in one node" in said
    assert said.endswith("the whole recommender in one node")
    assert artifact.load(Path("made")).manifest.engine == "native"
    assert main(["inspect", "made", "--replay"]) == 0
