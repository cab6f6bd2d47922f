"""FuseKernels: which chains become one node, which are left and why, and that answers stay what they were."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from redline import machine
from redline.errors import GraphError, MissingError
from redline.kernels import build
from redline.kernels.fused_mlp import graphs, pattern, shapes
from redline.kernels.fused_mlp.operator import reference
from redline.optimize import judge
from redline.optimize.build import Cache, Source
from redline.optimize.build import build as build_candidate
from redline.optimize.passes import FuseKernels, apply
from redline.optimize.passes.registry import built_with, code
from redline.optimize.recipe import EXPERT, choose, recipe_from_json
from redline.runtimes import engines

LAYERS = shapes.chain((5, 7, 6, 3), "sigmoid")
Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def put(name: str, array: Any) -> Change:
    """Another constant under this name."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return change


def fuse(folder: Path, model: onnx.ModelProto, source: Source) -> tuple[Path, bool, str]:
    before, after = folder / "before.onnx", folder / "fused" / "model.onnx"
    after.parent.mkdir()
    onnx.save(model, before)
    said = apply(FuseKernels(), before, source, after)
    return after, said.ok, said.why


def operators(path: Path) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(path).graph.node)


@pytest.mark.parametrize("rounds_products", [True, False])
def test_a_chain_becomes_one_node(rounds_products: bool, source: Source, tmp_path: Path) -> None:
    model = graphs.quantized(LAYERS, rounds_products=rounds_products)
    after, ok, why = fuse(tmp_path, model, source)
    assert ok
    assert why == "3 layers in 1 fused nodes (5-7-6-3)"
    assert operators(after) == {"FusedMlp": 1}
    assert {p.name for p in after.parent.iterdir()} == {"model.onnx", *map(build.file_name, build.isas())}
    assert {i.name.rpartition(".")[2][:6] for i in onnx.load(after).graph.initializer} == {
        "input_", "activa", "weight", "bias0", "bias1", "bias2"
    }  # fmt: skip
    x = np.random.default_rng(0).standard_normal((33, 5)).astype(np.float32)
    answer = engines.load("onnxruntime", after, {}).infer({"x": x})["y"]
    np.testing.assert_allclose(answer, reference(x, LAYERS), rtol=2e-6)


def matmul_and_add(model: onnx.ModelProto) -> None:
    """A Linear as MatMul of [k, n], rounded, Add: what an export of three axes gives."""
    gemm = node(model, "Gemm3")
    weight, bias = gemm.input[1], gemm.input[2]
    put("w0", LAYERS[0].weight.T.copy())(model)
    for n in model.graph.node:
        if weight in n.output:
            n.attribute[0].i = 1
    at = list(model.graph.node).index(gemm)
    gemm.op_type, gemm.name = "MatMul", "MatMul3"
    del gemm.attribute[:]
    del gemm.input[2]
    out = gemm.output[0]
    gemm.output[0] = "product"
    model.graph.node.insert(at + 1, helper.make_node("Add", ["product", bias], [out], name="Add"))


def gemm_of_k_by_n(model: onnx.ModelProto) -> None:
    put("w0", LAYERS[0].weight.T.copy())(model)
    gemm = node(model, "Gemm3")
    del gemm.attribute[:]
    for n in model.graph.node:
        if gemm.input[1] in n.output:
            n.attribute[0].i = 1


def constants_as_nodes(model: onnx.ModelProto) -> None:
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor, name=tensor.name))
    del model.graph.initializer[:]


@pytest.mark.parametrize("change", [matmul_and_add, gemm_of_k_by_n, constants_as_nodes])
def test_other_ways_to_write_a_linear(change: Change, source: Source, tmp_path: Path) -> None:
    model = graphs.quantized(LAYERS)
    change(model)
    after, ok, why = fuse(tmp_path, model, source)
    assert (ok, why) == (True, "3 layers in 1 fused nodes (5-7-6-3)")
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    answer = engines.load("onnxruntime", after, {}).infer({"x": x})["y"]
    np.testing.assert_allclose(answer, reference(x, LAYERS), rtol=2e-6)


def test_one_scale_for_a_whole_weight(source: Source, tmp_path: Path) -> None:
    layers = [replace(LAYERS[0], weight_scale=np.full(7, 0.01, np.float32)), *LAYERS[1:]]
    model = graphs.quantized(layers)
    put("ws0", np.float32(0.01))(model)
    after, _, why = fuse(tmp_path, model, source)
    assert why == "3 layers in 1 fused nodes (5-7-6-3)"
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    answer = engines.load("onnxruntime", after, {}).infer({"x": x})["y"]
    np.testing.assert_allclose(answer, reference(x, layers), rtol=2e-6)


def test_an_answer_used_elsewhere_too_cuts_the_chain(source: Source, tmp_path: Path) -> None:
    model = graphs.quantized(LAYERS)
    relu = next(n for n in model.graph.node if n.op_type == "Relu").output[0]
    model.graph.node.append(helper.make_node("Neg", [relu], ["side"], name="side"))
    model.graph.output.append(helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, ["rows", 7]))
    after, ok, why = fuse(tmp_path, model, source)
    assert ok
    assert why.startswith("3 layers in 2 fused nodes (5-7, 7-6-3); ")
    assert why.endswith("what Gemm3 gives is used elsewhere too")
    assert operators(after) == {"FusedMlp": 2, "Neg": 1}
    x = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float32)
    answers = engines.load("onnxruntime", after, {}).infer({"x": x})
    np.testing.assert_allclose(answers["y"], reference(x, LAYERS), rtol=2e-6)
    np.testing.assert_array_equal(answers["side"], -reference(x, LAYERS[:1]))


def alpha(model: onnx.ModelProto) -> None:
    node(model, "Gemm3").attribute.append(helper.make_attribute("alpha", 0.5))


def computed_bias(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Neg", ["b0"], ["bias"], name="bias"))
    node(model, "Gemm3").input[2] = "bias"


def computed_weight(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Identity", ["w0"], ["weight"], name="weight"))
    next(n for n in model.graph.node if "w0" in n.input and n.op_type == "DequantizeLinear").input[0] = "weight"


def replaceable_weight(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w0", onnx.TensorProto.INT8, [7, 5]))


def bias_a_row(model: onnx.ModelProto) -> None:
    put("b0", np.zeros((7, 1), np.float32))(model)


def added_a_row(model: onnx.ModelProto) -> None:
    matmul_and_add(model)
    bias_a_row(model)
    node(model, "MatMul3").name = "Gemm3"


def unquantized_input(model: onnx.ModelProto) -> None:
    node(model, "Gemm3").input[0] = "x"


def zeros_of(dtype: Any) -> Change:
    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array(dtype(3)), "other"))
        for n in list(model.graph.node)[:3]:
            if "s0" in n.input:
                n.input[2] = "other"

    return change


def no_zero_point(model: onnx.ModelProto) -> None:
    for n in model.graph.node:
        if "s0" in n.input:
            del n.input[2]


def two_scales(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.float32(0.5)), "other"))
    next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "s0" in n.input).input[1] = "other"


def scales_along_k(model: onnx.ModelProto) -> None:
    put("ws0", np.full(5, 0.01, np.float32))(model)
    next(n for n in model.graph.node if "ws0" in n.input).attribute[0].i = 1


def too_wide(model: onnx.ModelProto) -> None:
    put("w0", np.zeros((7, 131_072), np.int8))(model)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (alpha, "Gemm3: alpha, beta or transA differ"),
        (computed_bias, "Gemm3: its bias is no float32 constant"),
        (computed_weight, "Gemm3: its weight is not a quantized constant"),
        (replaceable_weight, "Gemm3: its weight is not a quantized constant"),
        (bias_a_row, "Gemm3: its bias is no float32 constant, one a channel"),
        (added_a_row, r"Gemm3: what is added to it is \[7, 1\], wanted \[7\]"),
        (unquantized_input, "Gemm3: its input is not quantized"),
        (zeros_of(np.uint8), "Gemm3: its input is uint8, wanted int8"),
        (zeros_of(np.int8), r"Gemm3: its input's zero point is 3, wanted 0 \(symmetric\)"),
        (no_zero_point, "Gemm3: its input is uint8, wanted int8"),
        (two_scales, "Gemm3: its input's scales are"),
        (put("s0", np.float64(0.1)), "Gemm3: its input's scale is not one float32 constant"),
        (scales_along_k, "Gemm3: its weight's scales run along k, wanted one an output channel"),
        (put("s0", np.float32(0)), "wanted one finite scale above 0"),
        (put("w0", np.zeros((7, 5), np.uint8)), r"Gemm3: its weight is uint8 \[7, 5\], wanted symmetric int8"),
        (put("ws0", np.zeros((7, 1), np.float32)), "Gemm3: its weight's scale is not a float32 constant"),
        (too_wide, "Gemm3: k = 131,072 may overflow int32, at most 131,071"),
    ],
)
def test_what_is_left_and_why(change: Change, why: str) -> None:
    model = graphs.quantized(LAYERS)
    change(model)
    chains, refusals = pattern.find(ir.from_proto(model).graph)
    assert [[len(link.layer.weight) for link in chain] for chain in chains] == [[6, 3]]  # the others still fuse
    with pytest.raises(AssertionError, match=why):
        raise AssertionError("; ".join(verdict.why for verdict in refusals))


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(3), None])
def test_only_a_symmetric_int8_rounding_before_an_activation_vanishes(zero: Any) -> None:
    """Of uint8 with zero point 0 it is a ReLU of its own."""
    model = graphs.quantized(LAYERS)
    model.graph.initializer.append(numpy_helper.from_array(np.array(zero or 0, getattr(zero, "dtype", None)), "other"))
    for n in model.graph.node:
        if "o2" in n.input:  # before the sigmoid
            del n.input[2]
            n.input.extend([] if zero is None else ["other"])
    chains, _ = pattern.find(ir.from_proto(model).graph)
    assert [[link.layer.activation for link in chain] for chain in chains] == [["relu", "relu", "none"]]


def test_a_product_of_two_activations_is_none_of_ours() -> None:
    model = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"], name="bmm")],
        "g",
        [helper.make_tensor_value_info("x", 1, [3, 3])],
        [helper.make_tensor_value_info("y", 1, [3, 3])],
    )
    assert pattern.find(ir.from_proto(helper.make_model(model)).graph) == ([], [])


def test_nothing_to_fuse_leaves_the_graph(source: Source, tmp_path: Path) -> None:
    after, ok, why = fuse(tmp_path, graphs.fused(LAYERS), source)
    assert (ok, why) == (False, "left as it was: no quantized Gemm or MatMul (QuantizeStatic first)")
    assert [p.name for p in after.parent.iterdir()] == ["model.onnx"]
    with pytest.raises(GraphError, match="put ExportOnnx before it"):
        apply(FuseKernels(), None, source, after)


def test_without_a_compiler_the_recipe_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingError, match="apt-get install"):
        fuse(tmp_path, graphs.quantized(LAYERS), source)


def test_the_expert_recipe(source: Source, steps: Path) -> None:
    """Built from the source model: fused whole, near the Q/DQ graph's answers, batch invariant to the bit."""
    recipe, native, *_ = EXPERT
    assert recipe in choose("all", ())
    assert recipe not in choose("auto", ())
    assert (recipe.track, recipe.kind, recipe.precision) == ("expert", "fused", "int8")
    assert (native.engine, native.passes) == ("native", recipe.passes)  # one build, two engines
    assert recipe_from_json(recipe.to_json()) == recipe
    (static,) = choose("onnxruntime-int8-static", ())
    cache = Cache(steps / "steps")
    fused, plain = build_candidate(recipe, source, cache), build_candidate(static, source, cache)
    assert fused.notes[-1] == "FuseKernels: 2 layers in 1 fused nodes (28-32-1)"
    assert "Gemm" not in operators(fused.model)
    inputs = source.calibration
    answers = [engines.load("onnxruntime", c.model, {}).infer(inputs)["score"] for c in (fused, plain)]
    assert np.abs(answers[0] - answers[1]).max() < 0.03
    assert np.abs(answers[0] - answers[1]).mean() < 0.005
    found = judge.invariance(engines.load("onnxruntime", fused.model, {}), "int8", inputs)
    assert found.figures["worst"] == 0.0


def test_changed_kernels_are_built_anew(source: Source, steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, cache = machine.code_sha256, Cache(steps / "steps")
    before = build_candidate(EXPERT[0], source, cache).model
    assert build_candidate(EXPERT[0], source, cache).model == before
    with monkeypatch.context() as patch:
        patch.setattr(machine, "code_sha256", lambda *rooms: real(*rooms) + "changed" * ("kernels/common" in rooms))
        assert build_candidate(EXPERT[0], source, cache).model != before
    monkeypatch.setattr(FuseKernels, "built_with", lambda _: {"avx2": "another compiler's"})
    assert build_candidate(EXPERT[0], source, cache).model != before


@pytest.mark.parametrize("edited", ["pattern.py", "kernel.cpp", "layer.h"])
def test_what_the_pass_reads_is_in_its_key(edited: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key() != _key_with(edited, monkeypatch)


@pytest.mark.parametrize("edited", ["rivals.py", "cuda.py", "native.py", "shapes.py", "kernel.cu"])
def test_what_it_does_not_read_builds_nothing_anew(edited: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key() == _key_with(edited, monkeypatch)


def test_another_compiler_or_machine_builds_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their libraries would be others: a newer g++ of the same name, and an arm machine on the same cache."""
    keys = [key()]
    compiler = tmp_path / "c++"
    for version in ("g++ 12", "g++ 13"):
        compiler.write_text(f"#!/bin/sh\necho {version}\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        build._compiler_version.cache_clear()
        keys.append(key())
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    keys.append(key())
    assert len(set(map(str, keys))) == 4
    assert list(keys[-1][1]) == ["portable"]
    build._compiler_version.cache_clear()


def key() -> tuple[str, dict[str, str]]:
    """What of FuseKernels stands in a step's key."""
    return machine.code_sha256(*code(FuseKernels())), built_with(FuseKernels())


def _key_with(edited: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, str]]:
    """With this file of fused_mlp edited."""
    read = Path.read_bytes

    def edit(path: Path) -> bytes:
        return read(path) + b" " * (path.parts[-2:] == ("fused_mlp", edited))

    monkeypatch.setattr(Path, "read_bytes", edit)
    return key()
