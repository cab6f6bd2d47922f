"""Runs in a process of its own (some failures of TensorRT end it): ONNX graph → engine for a GPU that need not be here.

    python -m redline.optimize.passes.tensorrt_build '{"graph": …, "plan": …, "capability": "SM86", "profile": …}' OUT

OUT gets {"layers": […], "warnings": […]}, or {"unsupported": [{node, operator, why}]}, or {"errors": [text]}.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

_NOISE = "catchCudaError"  # it looks for a driver; none is needed to build
_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>\[.*?\]), Constants: (?P<constants>\[.*?\]), "
    r"Outputs: (?P<outputs>\[.*?\]), TacticName: .*?, StreamId: \d+, Metadata: (?P<nodes>.*)$",
    re.MULTILINE,
)
_OPERAND = re.compile(r"Dimensions: (\[[^\]]*\]).*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*)\]")  # several are split by the ASCII unit separator


def parse_layers(message: str) -> list[dict[str, Any]]:
    """TensorRT's layer table, which only its verbose log tells where no device is."""
    return [
        {
            "name": found["name"],
            "type": found["type"],
            **{
                part: [f"{kind} {shape}" for shape, kind in _OPERAND.findall(found[part])]
                for part in ("inputs", "constants", "outputs")
            },
            "nodes": [node for part in found["nodes"].split("\x1f") for node in _NODE.findall(part)],
        }
        for found in _LAYER.finditer(message)
    ]


def build(graph: Path, plan: Path, capability: str, profile: dict[str, list[list[int]]]) -> dict[str, Any]:
    """profile: input → [smallest, best, largest] shape."""
    import tensorrt_rtx_bindings as trt

    said: list[str] = []
    layers: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.startswith("Layers:"):
                layers.append(message)
            elif severity <= trt.ILogger.WARNING and _NOISE not in message:
                said.append(message)

    log = Log()  # one for all: a second is ignored while a builder lives
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.read_bytes()):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        return {"unsupported": [{"node": e.node_name(), "operator": e.node_operator(), "why": e.desc()} for e in found]}
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    if inputs != profile.keys():  # TensorRT takes an unknown name in silence
        return {"errors": [f"the profile names inputs {sorted(profile)}, the graph has {sorted(inputs)}"]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    shapes = builder.create_optimization_profile()
    for name, (smallest, best, largest) in profile.items():
        shapes.set_shape(name, smallest, best, largest)
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"errors": said or ["TensorRT gave no engine and no reason"]}
    plan.write_bytes(memoryview(engine))
    return {"layers": parse_layers("\n".join(layers)), "warnings": said}


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    answer = build(Path(asked["graph"]), Path(asked["plan"]), asked["capability"], asked["profile"])
    Path(sys.argv[2]).write_text(json.dumps(answer))
