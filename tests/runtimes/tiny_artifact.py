"""A tiny real artifact: ids int64 [rows, 2] and dense float32 [rows, 3] → score float32 [rows]."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from redline import artifact
from redline.tensors import Arrays, Tensor

INPUTS = (
    Tensor(name="ids", dtype="int64", shape=("rows", 2), max=(9, 99), columns=("user", "item")),
    Tensor(name="dense", dtype="float32", shape=("rows", 3)),
)
OUTPUTS = (Tensor(name="score", dtype="float32", shape=("rows",)),)


def make_model(path: Path, work: int = 1) -> None:
    """`work`: how many times a row goes through the middle layer; more is slower."""
    rng = np.random.default_rng(7)
    weights = {
        "table": rng.standard_normal((100, 4)).astype(np.float32),
        "mix": rng.standard_normal((11, 64)).astype(np.float32) / 3,
        "middle": rng.standard_normal((64, 64)).astype(np.float32) / 8,
        "last": rng.standard_normal((64,)).astype(np.float32),
        "flat": np.array([-1, 8], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows_of"], axis=0),
        helper.make_node("Reshape", ["rows_of", "flat"], ["sparse"]),
        helper.make_node("Concat", ["sparse", "dense"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "mix"], ["h0"]),
    ]
    for i in range(work):
        nodes.append(helper.make_node("MatMul", [f"h{i}", "middle"], [f"m{i}"]))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"h{i + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"h{work}", "last"], ["logit"]))
    nodes.append(helper.make_node("Sigmoid", ["logit"], ["score"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", 2]),
            helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["rows", 3]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def request(rows: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, (10, 100), (rows, 2), np.int64)
    return {"ids": ids, "dense": rng.standard_normal((rows, 3)).astype(np.float32)}


def make_artifact(out: Path, *, name: str = "tiny", work: int = 1, off: float = 0.0, **fields: Any) -> Path:
    """`off`: added to the golden answers, as if the model had changed since."""
    with artifact.writing(out) as folder:
        (folder / "model").mkdir()
        make_model(folder / "model" / "model.onnx", work)
        session = ort.InferenceSession(folder / "model" / "model.onnx", providers=["CPUExecutionProvider"])
        cases = []
        for rows in (1, 5, 32):
            inputs = request(rows, rows)
            score = session.run(["score"], inputs)[0]
            cases.append((inputs, {"score": score + np.float32(off)}, {"score": score}))
        artifact.save_golden(folder / "golden.npz", cases)
        artifact.seal(folder, manifest(name=name, **fields))
    return out


def manifest(**fields: Any) -> artifact.Manifest:
    table: dict[str, Any] = {
        "name": "tiny",
        "engine": "onnxruntime",
        "model": "model/model.onnx",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "recipe": {"name": "test"},
        "batchable": True,
        "batchable_why": "rows do not mix",
        "replay_tolerance": 1e-5,
        "source_tolerance": 1e-3,
        "max_rows": 512,
        "sla": {"p99_ms": 50},
        "proof": "unproven",
        "proof_why": "a test",
    }
    return artifact.Manifest(**table | fields)
