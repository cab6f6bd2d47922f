"""A new operator is a new folder and nothing else: the example in docs/kernels.md, built and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from redline.kernels import operators

ROOT = Path(__file__).parents[2]
LINES = 64  # "about 60"; empty ones and those that name the file aside

RUN = """
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from redline.kernels import build, operators
from redline.kernels.standardize import operator
from redline.optimize.passes import FuseKernels, apply
from redline.runtimes import engines

build.isas = lambda: ("portable",)  # one is enough here
assert "kernels/standardize/pattern.py" in FuseKernels.CODE
k = 13
rng = np.random.default_rng(0)
x, mean = (rng.standard_normal(shape).astype(np.float32) for shape in ((33, k), k))
constants = {"mean": mean, "deviation": np.full(k, 0.5, np.float32), "low": np.float32(-2), "high": np.float32(2)}
nodes = [
    helper.make_node("Sub", ["x", "mean"], ["centered"], name="Sub"),
    helper.make_node("Div", ["centered", "deviation"], ["z"], name="Div"),
    helper.make_node("Clip", ["z", "low", "high"], ["y"], name="Clip"),
]
ends = [[helper.make_tensor_value_info(name, 1, ["rows", k])] for name in "xy"]
weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
opset = [helper.make_opsetid("", 20)]
model = helper.make_model(helper.make_graph(nodes, "g", *ends, weights), opset_imports=opset, ir_version=10)
folder = Path(sys.argv[1])
before, after = folder / "before.onnx", folder / "fused" / "model.onnx"
after.parent.mkdir()
onnx.save(model, before)
print(apply(FuseKernels(), before, None, after).why)
onnx.defs.register_schema(operator.schema())
onnx.checker.check_model(onnx.load(after))
assert [node.op_type for node in onnx.load(after).graph.node] == [operator.NAME]
answer = engines.load("onnxruntime", after, {"isa": "portable"}).infer({"x": x})["y"]
wanted = operator.reference(x, mean, constants["deviation"], np.array([-2, 2], np.float32))
np.testing.assert_array_equal(answer, wanted)
assert (abs(answer) == 2).any() and (abs(answer) < 2).any()

node = next(node for node in model.graph.node if node.name == "Clip")
del node.input[2]
onnx.save(model, before)
print(apply(FuseKernels(), before, None, after).why)
"""


def example() -> dict[str, str]:
    """File → text: the blocks of docs/kernels.md whose first line names a file."""
    text = (ROOT / "docs" / "kernels.md").read_text()
    return dict(re.findall(r"^```\w+\n(?:#|//) (kernels/\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


def test_patterns_come_after_those_they_build_on() -> None:
    order = [pattern.__name__.split(".")[-2] for pattern in operators.patterns()]  # type: ignore[attr-defined]
    assert order == ["fused_mlp", "embedding_interaction", "fused_recommender"]


def test_the_example_is_a_folder_of_some_60_lines() -> None:
    files = example()
    assert {Path(name).parent for name in files} == {Path("kernels/standardize")}
    assert sum(bool(line.strip()) for text in files.values() for line in text.splitlines()) <= LINES


def test_the_example_is_an_operator_like_ours(tmp_path: Path) -> None:
    package = tmp_path / "redline"
    shutil.copytree(ROOT / "src" / "redline", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in example().items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    run = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "Sub, Div and Clip in one node",
        "left as it was: Clip: wanted float32 [..., k] by constants [k], two limits",
    ]
