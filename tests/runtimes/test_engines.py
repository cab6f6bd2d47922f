from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from redline.errors import GraphError, UsageError
from redline.kernels.fused_mlp import graphs
from redline.kernels.fused_mlp.operator import Layer
from redline.runtimes import engines


@pytest.fixture(scope="module")
def difference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a - b; both [rows, 64] float32, so that a freed copy of one would be overwritten by the other's."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 64]) for name in ("a", "b", "out")]
    node = helper.make_node("Sub", ["a", "b"], ["out"])
    graph = helper.make_graph([node], "difference", tensors[:2], tensors[2:])
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("rows", [1, 7, 500, 3])
def test_inputs_nobody_may_write_to(difference: Path, name: str, rows: int) -> None:
    """As they come from the wire: views of a request's body."""
    engine = engines.load(name, difference, {})
    rng = np.random.default_rng(rows)
    for _ in range(5):
        a, b = (np.frombuffer(rng.random((rows, 64), np.float32).tobytes(), np.float32).reshape(rows, 64) for _ in "ab")
        np.testing.assert_array_equal(engine.infer({"a": a, "b": b})["out"], a - b)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_an_answer_is_not_changed_by_the_next(difference: Path, name: str) -> None:
    engine = engines.load(name, difference, {})
    one, zero = np.ones((3, 64), np.float32), np.zeros((3, 64), np.float32)
    first = engine.infer({"a": one, "b": zero})["out"]
    engine.infer({"a": zero, "b": one})
    assert (first == 1).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("onnxruntime", {"thread": 1}, "unknown options ['thread']; known: ['isa', 'threads']"),
        ("openvino", {"precision": "int4"}, "'int4' is not one of fp32, bf16"),
        ("tensorflow", {}, "unknown engine 'tensorflow'; known: onnxruntime"),
    ],
)
def test_bad_options(difference: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        engines.load(name, difference, options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_graph(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(GraphError, match=r"can't load model\.onnx"):
        engines.load(name, path, {})


def test_int8_sums_do_not_overflow(tmp_path: Path) -> None:
    """ONNX Runtime's fast way on AVX2 without VNNI adds two products in 16 bits."""
    scale, none = np.full(3, 100 / (64 * 127 * 127), np.float32), np.zeros(3, np.float32)
    weight = np.full((3, 64), 127, np.int8)
    layer = Layer(weight=weight, weight_scale=scale, bias=none, input_scale=1.0, activation="relu")
    onnx.save(graphs.quantized([layer]), tmp_path / "model.onnx")
    answer = engines.load("onnxruntime", tmp_path / "model.onnx", {}).infer({"x": np.full((5, 64), 127, np.float32)})
    np.testing.assert_array_equal(answer["y"], np.full((5, 3), 100, np.float32))
