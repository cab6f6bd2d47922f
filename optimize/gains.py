"""What hand tuning gained, operator by operator: each fused node beside the nodes whose place it took.

Both run in ONNX Runtime, on one thread, on what flows there when the job's own requests are asked; process CPU time,
rounds interleaved, medians. The roofline is the operator's multiply-adds at the rate of a loop of the dot instruction
on registers alone, in the same rounds.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.bench.stats import ratio_interval
from redline.errors import MeasurementError
from redline.kernels import operators
from redline.kernels.common.formats import Precision, precision_of
from redline.kernels.common.values import constant
from redline.kernels.fused_mlp.native import Peak
from redline.optimize.latency import measure
from redline.optimize.passes import FuseKernels
from redline.optimize.passes.fuse_kernels import fuse
from redline.runtimes import engines
from redline.runtimes.engines import Engine
from redline.runtimes.engines.libraries import needed_library
from redline.tensors import Arrays, largest_gap

if TYPE_CHECKING:
    import onnx_ir as ir

_ROUNDS = 40
_GAP = 0.05  # of the answers' scale: what a part may differ by; the libraries round once more before an activation


@dataclass(frozen=True, slots=True)
class Part:
    """A fused node, and the nodes it replaced, as two graphs of the same inputs and outputs."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    output: str
    operations: int  # a row
    precision: Precision  # of what it multiplies
    fused: "ir.Model"
    plain: "ir.Model"


def gains(before: Path, config: FuseKernels, fused: Path, requests: Mapping[int, list[Arrays]]) -> list[dict[str, Any]]:
    """before: the graph that FuseKernels took; fused: what it made of it, its libraries beside. → each fused node's
    figures at each number of rows.

    Raises:
        MissingError: no library that this CPU can run.
        MeasurementError: a node answers otherwise than those it replaced.
    """
    import onnx_ir as ir

    with TemporaryDirectory(prefix="redline-") as scratch:
        folder, library, untouched = Path(scratch), needed_library(fused, None), ir.load(before)
        shutil.copyfile(library, folder / library.name)

        def load(model: "ir.Model", name: str) -> Engine:
            ir.save(model, folder / f"{name}.onnx")
            return engines.load("onnxruntime", folder / f"{name}.onnx", {"threads": 1})

        found = []
        for i, part in enumerate(parts(before, config)):
            inner = [name for name in part.inputs if name not in next(iter(requests.values()))[0]]
            inside = load(_cut(untouched, [], inner), f"inputs{i}") if inner else None
            flowing = {rows: [_flowing(part, inside, request) for request in pool] for rows, pool in requests.items()}
            running = {"fused": load(part.fused, f"fused{i}"), "plain": load(part.plain, f"plain{i}")}
            _agree(part, running, flowing)
            peak = Peak(folder / library.name, part.precision)
            found.append(_figures(part, running, flowing, peak) | {"library": library.name})
        return found


def parts(before: Path, config: FuseKernels) -> Iterator[Part]:
    """Every node that a pattern put into the graph, in the order of the patterns."""
    import onnx_ir as ir

    model, untouched = ir.load(before), ir.load(before)
    known = set[str | None]()
    for _ in fuse(model, config):
        for node in [n for n in model.graph if n.domain == operators.DOMAIN and n.name not in known]:
            known.add(node.name)
            inputs = [value for value in node.inputs if value is not None and constant(value) is None]
            names, output = tuple(value.name or "" for value in inputs), node.outputs[0].name or ""
            yield Part(
                operator=node.op_type,
                name=node.name or "",
                inputs=names,
                output=output,
                operations=_operations(node),
                precision=_precision(node),
                fused=_cut(model, names, [output]),
                plain=_cut(untouched, names, [output]),
            )


def _constants(node: "ir.Node") -> "list[NDArray[Any]]":
    return [array for array in map(constant, node.inputs) if array is not None]


def _precision(node: "ir.Node") -> Precision:
    """Of its last matrix: a recommender's top layers, which are most of its work."""
    matrices = [array.dtype for array in _constants(node) if array.ndim == 2 and array.dtype != np.int64]
    return precision_of(matrices[-1]) if matrices else "fp32"


def _operations(node: "ir.Node") -> int:
    """0 where the operator doesn't say."""
    folder = next(name for name in operators.names() if node.op_type == _module(name).NAME)
    counted = getattr(_module(folder), "operations", None)
    return counted(_constants(node)) if counted else 0


def _module(folder: str) -> Any:
    return import_module(f"redline.kernels.{folder}.operator")


def _cut(model: "ir.Model", inputs: Sequence[str], outputs: Sequence[str]) -> "ir.Model":
    """The nodes between; without inputs: from the graph's own on."""
    import onnx_ir as ir

    graph = model.graph
    values = ir.convenience.create_value_mapping(graph)
    for name in (*inputs, *outputs):
        values[name].type = values[name].type or ir.TensorType(ir.DataType.FLOAT)
    own = [value for value in graph.inputs if value.name]
    cut = ir.convenience.extract(graph, list(inputs) or own, list(outputs))
    return ir.Model(cut, ir_version=model.ir_version)


def _flowing(part: Part, inside: Engine | None, request: Arrays) -> Arrays:
    answers = inside.infer(request) if inside else {}
    return {name: np.ascontiguousarray((request | answers)[name]) for name in part.inputs}


def _agree(part: Part, running: Mapping[str, Engine], flowing: Mapping[int, list[Arrays]]) -> None:
    for pool in flowing.values():
        for inputs in pool:
            have, want = (running[name].infer(inputs)[part.output] for name in ("fused", "plain"))
            allowed = _GAP * max(1.0, float(np.abs(want).max(initial=0)))
            gap = largest_gap(have, want) if have.shape == want.shape else np.inf
            if not gap <= allowed:
                raise MeasurementError(f"{part.name} is {gap:.2g} off the nodes it replaced (allowed {allowed:.2g})")


def _figures(part: Part, running: dict[str, Engine], flowing: Mapping[int, list[Arrays]], peak: Peak) -> dict[str, Any]:
    times = measure(running | {"peak": peak}, flowing, rounds=_ROUNDS)
    figures = {}
    for rows in flowing:
        ratio, low, high = ratio_interval(times["plain"][rows], times["fused"][rows])
        us = {name: float(np.median(times[name][rows])) / 1e3 for name in times}
        ideal_us = us["peak"] * part.operations * rows / max(1, peak.operations)
        figures[str(rows)] = {
            "fused_us": us["fused"], "plain_us": us["plain"], "ratio": ratio, "low": low, "high": high,
            "peak_share": ideal_us / us["fused"] if peak.operations and part.operations else None,
        }  # fmt: skip
    return {"operator": part.operator, "node": part.name, "operations_a_row": part.operations, "rows": figures}
