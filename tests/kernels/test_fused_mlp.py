"""FusedMlp on the CPU: the reference's answers in every format on every ISA, INT8's to the bit; alone, in company, in
ONNX Runtime."""

import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from redline import machine
from redline.errors import GraphError, MissingError, UsageError
from redline.kernels import build
from redline.kernels.common.formats import Precision
from redline.kernels.fused_mlp import graphs, native, operator, shapes
from redline.kernels.fused_mlp.operator import Activation
from redline.runtimes import engines

RUNNABLE = [isa for isa in build.isas() if not machine.weaker(machine.isa(), isa)]
every_isa = pytest.mark.parametrize("isa", RUNNABLE)
# "wide" has AVX-512's shapes and runs anywhere; ONNX Runtime and the engines never see it.
every_shape = pytest.mark.parametrize("isa", [*RUNNABLE, "wide"])
every_format = pytest.mark.parametrize("precision", get_args(Precision))
ALLOWED: dict[Precision, float] = {"int8": 2e-6, "bf16": 2e-2, "fp32": 1e-5}  # of the answers' scale; INT8: a sigmoid's


def rows_of(count: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, k)).astype(np.float32)


def save(folder: Path, model: onnx.ModelProto, *isas: str) -> Path:
    for isa in isas:
        shutil.copyfile(build.library(isa), folder / build.file_name(isa))
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


@cache
def wanted(widths: tuple[int, ...], last: Activation, precision: Precision, rows: int) -> NDArray[np.float32]:
    layers = shapes.chain(widths, last, precision=precision)
    return operator.reference(rows_of(rows, widths[0], rows), layers)


@every_shape
@every_format
@pytest.mark.parametrize("widths", [*shapes.WIDTHS, shapes.DLRM_TOP], ids=lambda w: "-".join(map(str, w)))
def test_answers_are_the_references(isa: str, precision: Precision, widths: tuple[int, ...]) -> None:
    library = build.library(isa)
    for last in get_args(Activation):
        mlp = native.FusedMlp(library, shapes.chain(widths, last, precision=precision))
        for rows in shapes.ROWS:
            have, want = mlp(rows_of(rows, widths[0], rows)), wanted(widths, last, precision, rows)
            if precision == "int8" and last != "sigmoid":  # its exp is the kernel's own
                np.testing.assert_array_equal(have, want)
            else:
                scale = float(np.abs(want).max(initial=0))
                np.testing.assert_allclose(have, want, rtol=0, atol=ALLOWED[precision] * scale)


@every_shape
def test_bf16_rounds_to_nearest_even(isa: str) -> None:
    """A weight of one and no bias: the answer is what entered."""
    one = operator.of_floats(np.ones((1, 1), np.float32), np.zeros(1, np.float32), "none", "bf16")
    bits = np.random.default_rng(0).integers(0, 1 << 32, 5000, np.uint64).astype(np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0xBF807FFF, 0xBF808001, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF])
    x = np.concatenate([bits, ties.astype(np.uint32)]).view(np.float32)
    x = x[~(np.abs(x) < 2e-38)][:, None]  # vdpbf16ps takes denormals for 0
    with np.errstate(invalid="ignore", over="ignore"):
        want = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert np.isnan(want).any() and np.isinf(want[~np.isinf(x)]).any()
    np.testing.assert_array_equal(native.FusedMlp(build.library(isa), [one])(x), want)


@every_shape
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("last", get_args(Activation))
def test_what_is_not_finite_stays_so_in_its_row(isa: str, precision: Precision, last: Activation) -> None:
    layers = shapes.chain((5, 7, 3), last, precision=precision)
    mlp, x = native.FusedMlp(build.library(isa), layers), rows_of(18, 5)
    clean = mlp(x)
    x[3, 1] = np.nan
    have = mlp(x)
    assert np.isnan(have[3]).all()
    np.testing.assert_array_equal(np.delete(have, 3, 0), np.delete(clean, 3, 0))
    minus = operator.of_floats(np.full((7, 5), -1, np.float32), np.zeros(7, np.float32), "relu", precision)
    x[3, 1] = np.inf  # ReLU makes 0 of what this gives, and odd widths have padding
    have = native.FusedMlp(build.library(isa), [minus, layers[1]])(x[3:4])
    np.testing.assert_array_equal(have, native.FusedMlp(build.library(isa), layers[1:])(np.zeros((1, 7), np.float32)))


def test_a_sigmoid_has_the_same_bits_on_every_isa() -> None:
    layers = shapes.chain((130, 33, 40), "sigmoid")
    x = rows_of(97, 130) * 30  # far into both tails
    answers = [native.FusedMlp(build.library(isa), layers)(x) for isa in [*RUNNABLE, "wide"]]
    assert answers[0].min() < 1e-4
    assert answers[0].max() > 1 - 1e-4
    for answer in answers:
        np.testing.assert_array_equal(answer, answers[0])


@every_shape
@pytest.mark.parametrize("k", [1, 3, 4, 1000, operator.MAX_K])
def test_sums_are_exact_at_the_extremes(isa: str, k: int) -> None:
    """Scales of one and no bias: the answer is the sum itself, rounded once."""
    rng = np.random.default_rng(k)
    weight = np.stack([np.full(k, -128), np.full(k, 127), rng.integers(-128, 128, k)]).astype(np.int8)
    one, none = np.ones(3, np.float32), np.zeros(3, np.float32)
    layer = operator.Layer(weight=weight, weight_scale=one, bias=none, input_scale=1.0, activation="none")
    x = np.stack([np.full(k, -128), np.full(k, 127), rng.integers(-128, 128, k)]).astype(np.float32)
    exact = x.astype(np.int64) @ weight.astype(np.int64).T
    np.testing.assert_array_equal(native.FusedMlp(build.library(isa), [layer])(x), exact.astype(np.float32))


@every_shape
@every_format
def test_a_row_answers_the_same_in_any_company(isa: str, precision: Precision) -> None:
    mlp = native.FusedMlp(build.library(isa), shapes.chain((68, 512, 256, 128, 1), "sigmoid", precision=precision))
    x = rows_of(513, 68)
    x[300:] *= 100  # outliers
    whole = mlp(x)
    for rows in (1, 3, 12, 13, 127):
        for start in (0, 200, 513 - rows):
            np.testing.assert_array_equal(mlp(x[start : start + rows]), whole[start : start + rows])


@every_isa
def test_nan_and_infinities_count_as_in_onnx_runtime(isa: str, tmp_path: Path) -> None:
    layers = shapes.chain((5, 7))
    x = rows_of(18, 5)
    x[:6, 1], x[6:12, 2], x[12:, 3] = np.nan, np.inf, -np.inf
    ours = native.FusedMlp(build.library(isa), layers)(x)
    theirs = engines.load("onnxruntime", save(tmp_path, graphs.quantized(layers)), {}).infer({"x": x})["y"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours, operator.reference(x, layers))
    low = x.copy()
    low[:6, 1] = -1e9
    np.testing.assert_array_equal(ours, native.FusedMlp(build.library(isa), layers)(low))


@pytest.mark.parametrize("widths", shapes.WIDTHS, ids=lambda w: "-".join(map(str, w)))
def test_it_is_what_onnx_runtime_makes_of_the_q_dq_graph(widths: tuple[int, ...], tmp_path: Path) -> None:
    """Theirs rounds biases to int32 steps, so a number here and there lands on the next step of its layer."""
    layers, x = shapes.chain(widths), rows_of(513, widths[0])
    graph = save(tmp_path, graphs.quantized(layers, rounds_products=False))
    theirs = engines.load("onnxruntime", graph, {}).infer({"x": x})["y"]
    gap = np.abs(native.FusedMlp(build.library(RUNNABLE[-1]), layers)(x) - theirs)
    if len(layers) == 1:
        np.testing.assert_allclose(gap, 0, atol=1e-5)
    steps = max(layer.input_scale for layer in layers)
    assert gap.max() <= 4 * steps
    assert gap.mean() <= 0.1 * steps


@every_isa
@every_format
def test_the_operator_inside_onnx_runtime(isa: str, precision: Precision, tmp_path: Path) -> None:
    layers = shapes.chain((13, 256, 33), "relu", precision=precision)
    session = engines.load("onnxruntime", save(tmp_path, graphs.fused(layers), *RUNNABLE), {"isa": isa})
    mlp = native.FusedMlp(build.library(isa), layers)
    for rows in (0, 1, 13, 513):
        x = rows_of(rows, 13)
        np.testing.assert_array_equal(session.infer({"x": x})["y"], mlp(x))


def test_the_strongest_library_for_this_cpu_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redline.runtimes.engines.libraries import fused_library

    for isa in build.isas():
        (tmp_path / build.file_name(isa)).touch()
    for here, taken in (("avx512_vnni_bf16", "avx512_vnni_bf16"), ("avx512", "avx2"), ("portable", "portable")):
        monkeypatch.setattr(machine, "isa", lambda here=here: here)
        if taken in build.isas():
            assert fused_library(tmp_path, None) == tmp_path / build.file_name(taken)
    with pytest.raises(MissingError, match="isa avx512_vnni was forced, this CPU has portable"):
        fused_library(tmp_path, "avx512_vnni")
    with pytest.raises(UsageError, match="isa 'sse9' is not one of portable"):
        fused_library(tmp_path, "sse9")
    (tmp_path / build.file_name("portable")).unlink()
    with pytest.raises(MissingError, match=r"forced, and .*libredline_portable.so is missing"):
        fused_library(tmp_path, "portable")


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    graph = save(tmp_path, graphs.fused(shapes.chain((5, 7))))
    with pytest.raises(MissingError, match=r"libredline_\w+.so.*copy the whole model folder") as error:
        engines.load("onnxruntime", graph, {})
    assert error.value.exit_code == 3
    assert "libredline_portable.so" in str(error.value)


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda n: {"weight1": np.zeros((3, 8), np.int8)}, "layer 1: takes 8 numbers, the layer before gives 7"),
        (lambda n: {"bias0": np.zeros(6, np.float32)}, r"layer 0: wanted weight \[n, k\]"),
        (lambda n: {"weight0": np.zeros((7, 5))}, "layer 0: weight of element type 11, wanted int8, bfloat16 or float"),
        (lambda n: {"weight0": np.zeros((7, 5), np.float32)}, r"layer 0: .*weight_scale \[n\] \(of int8, else \[0\]\)"),
        (
            lambda n: {"weight1": np.zeros((3, 7), np.float32), "weight_scale1": np.zeros(0, np.float32)},
            "layer 1: number format 2, wanted one for all layers: 0 int8, 1 bf16, 2 fp32",
        ),
        (lambda n: {"input_scales": np.zeros(2, np.float32)}, "input scale must be finite and above 0"),
        (lambda n: {"activations": np.array([2, 0])}, "a sigmoid ends a chain"),
        (lambda n: {"activations": np.array([1])}, "as long as there are layers"),
    ],
)
def test_bad_constants_are_refused_with_our_words(break_it: Any, why: str, tmp_path: Path) -> None:
    model = graphs.fused(shapes.chain((5, 7, 3)))
    for name, array in break_it(model).items():
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    with pytest.raises(GraphError, match=f"FusedMlp: .*{why}"):
        engines.load("onnxruntime", save(tmp_path, model, RUNNABLE[-1]), {})


def test_a_computed_weight_and_a_wrong_width_are_refused(tmp_path: Path) -> None:
    model = graphs.fused(shapes.chain((5, 7)))
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.shape.dim.add()
    model.graph.input[0].type.tensor_type.shape.dim.add()
    session = engines.load("onnxruntime", save(tmp_path, model, RUNNABLE[-1]), {})
    with pytest.raises(Exception, match=r"FusedMlp: x \[..., 4\], wanted \[..., 5\]"):
        session.infer({"x": rows_of(3, 4)})
    del model.graph.initializer[4]  # bias0
    model.graph.input.append(onnx.helper.make_tensor_value_info("bias0", onnx.TensorProto.FLOAT, [7]))
    with pytest.raises(GraphError, match="FusedMlp: input 5 must be a constant"):
        engines.load("onnxruntime", save(tmp_path, model), {})  # never over a library that is loaded


def test_more_axes_than_two(tmp_path: Path) -> None:
    layers = shapes.chain((5, 7))
    model = graphs.fused(layers)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim.insert(0, onnx.TensorShapeProto.Dimension(dim_param="batch"))
    session = engines.load("onnxruntime", save(tmp_path, model, RUNNABLE[-1]), {})
    x = rows_of(12, 5)
    answer = session.infer({"x": x.reshape(3, 4, 5)})["y"]
    np.testing.assert_array_equal(answer, operator.reference(x, layers).reshape(3, 4, 7))


def test_one_session_under_many_threads(tmp_path: Path) -> None:
    layers = shapes.chain((68, 512, 256, 1), "sigmoid")
    session = engines.load("onnxruntime", save(tmp_path, graphs.fused(layers), RUNNABLE[-1]), {})
    requests = [rows_of(rows, 68, rows) for rows in (1, 5, 100, 300)]
    wanted = [session.infer({"x": x})["y"] for x in requests]

    def ask(i: int) -> bool:
        return bool(np.array_equal(session.infer({"x": requests[i % 4]})["y"], wanted[i % 4]))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(400)))


def test_the_schema_tells_shapes() -> None:
    schema = operator.schema()
    onnx.defs.register_schema(schema)
    try:
        model = graphs.fused(shapes.chain((5, 7, 3)))
        onnx.checker.check_model(model, full_check=True)
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type
        assert [d.dim_param or d.dim_value for d in inferred.shape.dim] == ["rows", 3]
    finally:
        onnx.defs.deregister_schema(schema.name, schema.since_version, schema.domain)


def test_layers_that_do_not_fit_are_refused() -> None:
    layers = shapes.chain((5, 7, 3))
    with pytest.raises(ValueError, match="layer 1: takes 7 numbers, the layer before gives 5"):
        native.FusedMlp(build.library("portable"), [replace(layers[0], weight=layers[0].weight[:5]), layers[1]])


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    for compiler, said in (
        ("no-such-g++", r"need a C\+\+ compiler, no 'no-such-g.+apt-get install"),
        ("false", "can't build"),
    ):
        monkeypatch.setenv("CXX", compiler)
        run = subprocess.run(
            [sys.executable, "-m", "redline.kernels.build"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 3
        assert re.search(said, run.stderr), run.stderr
        assert not list(tmp_path.rglob("*.so"))  # nothing half-built is left


def test_a_built_library_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    first = build.library("portable")
    stamp = first.stat().st_mtime_ns
    assert build.library("portable") == first
    assert first.stat().st_mtime_ns == stamp
    assert [p.name for p in first.parent.iterdir()] == ["libredline_portable.so"]


def hot_loops(library: Path, instruction: str) -> list[list[str]]:
    """Bodies of the innermost loops that read memory (the peak's doesn't) and contain the instruction."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    )
    lines = [line for line in listing.stdout.splitlines() if re.match(r"\s+[0-9a-f]+:\t", line)]
    where = {int(line.split(":")[0], 16): i for i, line in enumerate(lines)}
    loops = []
    for i, line in enumerate(lines):
        jump = re.search(r"\tj\w+\s+([0-9a-f]+)", line)
        start = where.get(int(jump.group(1), 16), i) if jump else i
        body = lines[start : i + 1]
        text = "".join(body)
        inner = start < i and i - start < 200 and not any("\tj" in b for b in body[:-1])
        if inner and instruction in text and "(%r" in text:
            loops.append(body)
    return loops


@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump (binutils)")
@pytest.mark.skipif("avx2" not in build.isas(), reason="needs an x86-64 compiler")
@pytest.mark.parametrize(
    ("isa", "instruction", "tiles"),
    [
        ("avx2", "vpmaddwd", {12}),
        ("avx2", "vfmadd", {12, 16}),  # FP32: 6 rows by 2 vectors; BF16, both halves: 4 by 2 by 2
        ("avx512_vnni", "vpdpbusd", {24}),  # 12 rows by 2 vectors
        ("avx512_vnni", "vfmadd", {24, 48}),
        ("avx512_vnni_bf16", "vpdpbusd", {24}),
        ("avx512_vnni_bf16", "vdpbf16ps", {24}),
        ("avx512_vnni_bf16", "vfmadd", {24}),
    ],
)
def test_accumulators_stay_in_registers(isa: str, instruction: str, tiles: set[int]) -> None:
    """A spilled accumulator halves the speed, and nothing else would show it."""
    loops = hot_loops(build.library(isa), instruction)
    assert tiles <= {sum(instruction in line for line in loop) for loop in loops}
    for loop in loops:
        assert not [line for line in loop if "(%rsp" in line or "(%rbp" in line or ",%rsp," in line]
