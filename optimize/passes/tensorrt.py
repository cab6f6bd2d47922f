"""ONNX graph → TensorRT engine for a GPU that need not be here, with its layer table as the proof of what runs in INT8.

TensorRT for RTX builds without a device. Its plan is for its own runtime: Triton's `tensorrt_plan` is built from the
graph, which lies beside the plan, on the GPU machine (docs/tensorrt.md).
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from redline.errors import GraphError, missing_extra
from redline.optimize.passes.graph import graph_before
from redline.optimize.passes.lint_qdq import ADVICE, Graph, int8_products, lint
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    from redline.optimize.build import Source

TARGETS = {f"cuda:sm_{n}": f"SM{n}" for n in (75, 80, 86, 89, 120)}  # as TensorRT for RTX 1.7 names them
_TIMEOUT_S = 600
# In a layer of these kinds a product, if any, may be computed in float behind a fused dequantization.
_NO_PROOF = {"kgen", "runtime_fusion", "shape_call"}
_OURS = "ai.redline"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """Build an engine for the target; the graph must be the pass's input, quantized or not."""

    WRITES: ClassVar[str] = "model.plan"
    KIND: ClassVar[str] = "tensorrt"

    target: str  # a key of TARGETS
    rows: int  # that the engine is tuned for
    max_rows: int  # in one request

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"target {self.target!r} is not one of {', '.join(TARGETS)}")
        if not 1 <= self.rows <= self.max_rows:
            raise ValueError(f"wanted 1 <= rows <= max_rows, got {self.rows} and {self.max_rows}")


def require_library() -> None:
    """Raises:
    MissingError: TensorRT for RTX is not installed; the pip line.
    """
    if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        raise missing_extra("rtx", "a TensorRT engine")


@apply.register(TensorRT)
def _(config: TensorRT, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "TensorRT")
    require_library()
    import onnx

    graph = Graph(onnx.load(before))
    advice = _check(graph)
    shutil.copyfile(before, out.with_name("model.onnx"))
    profile = {
        t.name: [[n, *t.row_shape] for n in (1, config.rows, config.max_rows)] for t in source.job.inputs
    }  # smallest, best, largest
    started = time.monotonic()
    said = build(before, out, config.target, profile)
    took_s = time.monotonic() - started
    wanted = [(n.name, n.op_type) for n in int8_products(graph)]
    prove_int8(said["layers"], wanted)
    summary = f"INT8 {len(wanted)}/{len(wanted)} products" if wanted else "no INT8 asked for"
    summary += f", {len(said['layers'])} layers, plan {out.stat().st_size / 2**20:.1f} MiB for {config.target}"
    table = {"summary": summary, "int8": [name for name, _ in wanted], "advice": advice, **said}
    (out.parent / "layers.json").write_text(json.dumps(table, indent=1))
    return Verdict(True, "; ".join([f"{summary}, built in {took_s:.1f} s", *advice]))


def _check(graph: Graph) -> list[str]:
    """What may be better, one line a rule.

    Raises:
        GraphError: what TensorRT would not take, or would take without INT8; every node.
    """
    if ours := [f"{n.name} ({n.op_type})" for n in graph.nodes if n.domain == _OURS]:
        raise GraphError(
            f"TensorRT takes no fused nodes of {_OURS}, give it the plain graph (no FuseKernels): {', '.join(ours)}"
        )
    if nameless := [n.op_type for n in graph.nodes if not n.name]:
        raise GraphError(f"{len(nameless)} nodes have no name (first: {nameless[0]}), so no layer can be told apart")
    found = lint(graph)
    if fatal := [f"{t} [{rule.evidence}]" for rule, texts in found.items() if rule.evidence != ADVICE for t in texts]:
        raise GraphError("Q/DQ that TensorRT can't use: " + "; ".join(fatal))
    return [f"{len(texts)} x {rule.name}: {texts[0]} ({rule.evidence})" for rule, texts in found.items()]


def build(graph: Path, plan: Path, target: str, profile: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Write the plan; gives {"layers", "warnings"}. In a process of its own: some failures end it.

    Raises:
        GraphError: every node that the parser can't take, or TensorRT's own reason.
    """
    asked = {"graph": str(graph), "plan": str(plan), "capability": TARGETS[target], "profile": profile}
    with tempfile.TemporaryDirectory(prefix="redline-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-P", "-m", "redline.optimize.passes.tensorrt_build", json.dumps(asked), str(answer)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as e:
            raise GraphError(f"TensorRT for {target}: no engine after {_TIMEOUT_S} s") from e
        if not answer.exists():
            last = (done.stderr.strip() or "no last words").splitlines()[-1]
            raise GraphError(f"TensorRT for {target} ended with code {done.returncode} while building: {last}")
        said: dict[str, Any] = json.loads(answer.read_text())
    if nodes := said.get("unsupported"):
        named = [f"{n['node'] or 'the graph'} ({n['operator']}): {_reason(n['why'])}" for n in nodes]
        raise GraphError("TensorRT can't take: " + "; ".join(named))
    if errors := said.get("errors"):
        raise GraphError(f"TensorRT for {target}: " + "; ".join(errors))
    return said


def _reason(why: str) -> str:
    """The parser says `false` where it knows no such operator, and appends what its driver check said."""
    lines = [line for line in why.splitlines() if "catchCudaError" not in line]
    return "unsupported operator" if lines == ["false"] else " ".join(lines)


def prove_int8(layers: list[dict[str, Any]], wanted: list[tuple[str, str]]) -> None:
    """Raises:
    GraphError: a product that was to run in INT8 and has no layer that multiplies INT8 by INT8.
    """
    lost = []
    for name, operator in wanted:
        its = [layer for layer in layers if name in layer["nodes"] and layer["type"] != "shape_call"]
        operands = [(layer["inputs"] + layer["constants"])[:2] for layer in its if layer["type"] not in _NO_PROOF]
        if not any(len(pair) == 2 and all(o.startswith("Int8") for o in pair) for pair in operands):
            kinds = ", ".join(f"{layer['type']}{layer['inputs']}" for layer in its) or "no layer of its own"
            lost.append(f"{name} ({operator}) became {kinds}")
    if lost:
        raise GraphError("TensorRT did not build in INT8 what was quantized: " + "; ".join(lost))
