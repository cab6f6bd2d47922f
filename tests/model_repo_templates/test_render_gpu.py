"""What is rendered for NVIDIA's Triton image, read back by Triton's own schema: a misspelt field fails."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))  # the tiny artifact is theirs

from tiny_artifact import make_artifact

from redline import artifact as artifacts
from redline.errors import UsageError
from redline.model_repo_templates.render import render_triton, render_triton_gpu

# In a process of its own: tritonclient.grpc and kserve can't live in one (both register inference.*).
_PARSE = """
import sys
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2
config = text_format.Parse(open(sys.argv[1]).read(), model_config_pb2.ModelConfig())
print(json_format.MessageToJson(config, preserving_proto_field_name=True))
"""
_PROFILE = {
    "trt_profile_min_shapes": "ids:1x2,dense:1x3",
    "trt_profile_opt_shapes": "ids:20x2,dense:20x3",
    "trt_profile_max_shapes": "ids:512x2,dense:512x3",
}


def parse(config: Path) -> Any:
    command = [sys.executable, "-W", "ignore", "-c", _PARSE, str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def make(tmp_path: Path, **fields: Any) -> artifacts.Artifact:
    table = {"target": "cuda:sm_86", "sla": {"p99_ms": 50, "rows": 20}, **fields}
    return artifacts.load(make_artifact(tmp_path / "made", **table))


@pytest.mark.parametrize("batchable", [True, False])
def test_onnx_runtime_with_tensorrt(tmp_path: Path, batchable: bool) -> None:
    folder = render_triton_gpu(make(tmp_path, batchable=batchable), tmp_path / "repository") / "tiny"
    config = parse(folder / "config.pbtxt")
    assert (config["backend"], config["max_batch_size"]) == ("onnxruntime", 512)
    assert "platform" not in config
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    (accelerator,) = config["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert accelerator == {"name": "tensorrt", "parameters": _PROFILE}  # no precision_mode
    assert ("dynamic_batching" in config) == batchable
    assert not config.get("dynamic_batching")  # no queue policy, no delay
    assert config["output"] == [
        {"name": "score", "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}}  # [rows] in the graph
    ]
    assert [i["dims"] for i in config["input"]] == [["2"], ["3"]]
    assert all("reshape" not in i for i in config["input"])
    (warmup,) = config["model_warmup"]
    assert {n: i["input_data_file"] for n, i in warmup["inputs"].items()} == {"ids": "0", "dense": "1"}
    assert (folder / "1" / "model.onnx").read_bytes() == (tmp_path / "made" / "model" / "model.onnx").read_bytes()
    assert [p.name for p in (folder / "1").iterdir()] == ["model.onnx"]
    assert (folder / "warmup" / "0").stat().st_size == 2 * 8


def test_a_plan_of_tensorrt_itself(tmp_path: Path) -> None:
    plan = tmp_path / "built.plan"
    plan.write_bytes(b"ptrt and more")
    for target, capability in (("cuda:sm_86", "8.6"), ("cuda:sm_120", "12.0")):
        made = make(tmp_path / capability, target=target)
        folder = render_triton_gpu(made, tmp_path / capability / "repository", plan=plan) / "tiny"
        config = parse(folder / "config.pbtxt")
        assert config["platform"] == "tensorrt_plan"
        assert config["cc_model_filenames"] == {capability: f"model_{capability}.plan"}
        assert not config.keys() & {"backend", "optimization"}
        assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
        assert [p.name for p in (folder / "1").iterdir()] == [f"model_{capability}.plan"]  # and no model.plan
        assert (folder / "1" / f"model_{capability}.plan").read_bytes() == plan.read_bytes()


def test_what_nvidia_s_triton_can_not_have(tmp_path: Path) -> None:
    plan = tmp_path / "rtx.plan"
    plan.write_bytes(b"vtrt and more")
    made = make(tmp_path)
    with pytest.raises(UsageError, match=r"built by TensorRT for RTX.*docs/tensorrt\.md"):
        render_triton_gpu(made, tmp_path / "repository", plan=plan)
    cpu = artifacts.load(make_artifact(tmp_path / "cpu"))
    with pytest.raises(UsageError, match=r"onnx on cpu; .* --target cuda:sm_86"):
        render_triton_gpu(cpu, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_the_cpu_s_config_is_valid_too(tmp_path: Path) -> None:
    made = artifacts.load(make_artifact(tmp_path / "made"))
    folder = render_triton(made, tmp_path / "repository", python_paths=["/site"]) / "tiny"
    config = parse(folder / "config.pbtxt")
    assert (config["backend"], config["instance_group"]) == ("python", [{"count": 1, "kind": "KIND_CPU"}])
    assert "reshape" not in config["output"][0]  # model.py adds the column itself
    assert "optimization" not in config


def test_a_misspelt_field_fails(tmp_path: Path) -> None:
    folder = render_triton_gpu(make(tmp_path), tmp_path / "repository") / "tiny"
    wrong = tmp_path / "wrong.pbtxt"
    wrong.write_text(re.sub("execution_accelerators", "execution_accelerator", (folder / "config.pbtxt").read_text()))
    with pytest.raises(AssertionError, match='no field named "execution_accelerator"'):
        parse(wrong)
