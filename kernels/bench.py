"""FusedMlp beside its rivals on the layers of a DLRM's top MLP, `python -m redline.kernels.bench`.

Process CPU time of one thread, rounds interleaved, medians; every subject answers the timed inputs rightly before its
row counts. The peak is a loop of the dot instruction on registers alone, interleaved with the rest.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redline import machine
from redline.bench.goals import Figure, judge_goals, read_goals
from redline.bench.stats import ratio_interval
from redline.errors import MeasurementError, RedlineError
from redline.kernels import build
from redline.kernels.fused_mlp import graphs, native, operator, shapes
from redline.optimize.latency import Times, measure
from redline.runtimes import engines
from redline.runtimes.engines import Engine
from redline.tensors import Arrays

_ROWS = (1, 12, 100, 512)
_LAYERS = shapes.chain(shapes.DLRM_TOP, "sigmoid")
_BF16 = shapes.chain(shapes.DLRM_TOP, "sigmoid", precision="bf16")
_FP32 = shapes.chain(shapes.DLRM_TOP, "sigmoid", precision="fp32")
_OPERATIONS = 2 * sum(layer.weight.size for layer in _LAYERS)  # a row
# What a fused answer may differ by is its own exp; the rivals round biases and, before a ReLU, once more.
_ALLOWED = {"fused": 1e-6, "kernel": 1e-6, "onnxruntime": 0.05, "onnxruntime, lean": 0.05, "openvino": 0.05}
# Of the same weights in floats, from the fp32 reference.
_FLOATS_ALLOWED = {
    "fused, bf16": 2e-2,
    "openvino, bf16": 2e-2,
    "fused, fp32": 1e-5,
    "onnxruntime, fp32": 1e-5,
    "openvino, fp32": 1e-5,
}

# figure, ours, the rivals of which the quickest counts
_COMPARED = (
    ("fused_mlp_over_onnxruntime", "fused", ("onnxruntime", "onnxruntime, lean")),
    ("fused_mlp_over_openvino", "fused", ("openvino",)),
    ("fused_mlp_bf16_over_openvino", "fused, bf16", ("openvino, bf16",)),
    ("fused_mlp_fp32_over_openvino", "fused, fp32", ("openvino, fp32",)),
    ("fused_mlp_fp32_over_onnxruntime", "fused, fp32", ("onnxruntime, fp32",)),
)


class _Kernel:
    """The C entry alone."""

    def __init__(self, library: Path) -> None:
        self._mlp = native.FusedMlp(library, _LAYERS)

    def infer(self, inputs: Arrays) -> Arrays:
        return {"y": self._mlp(inputs["x"])}


class _Call(_Kernel):
    """The same with no rows: what calling it from Python costs."""

    def infer(self, inputs: Arrays) -> Arrays:
        return super().infer({"x": inputs["x"][:0]})


def subjects(folder: Path, library: Path) -> dict[str, Engine]:
    """`lean` is the Q/DQ graph without the rounding between product and ReLU, which spares a rival three nodes."""
    import onnx

    def saved(name: str, model: onnx.ModelProto) -> Path:
        onnx.save(model, folder / name)
        return folder / name

    (folder / library.name).write_bytes(library.read_bytes())
    one = {"threads": 1}
    found = {
        "fused": engines.load("onnxruntime", saved("fused.onnx", graphs.fused(_LAYERS)), one),
        "onnxruntime": engines.load("onnxruntime", saved("plain.onnx", graphs.quantized(_LAYERS)), one),
    }
    lean = saved("lean.onnx", graphs.quantized(_LAYERS, rounds_products=False))
    found["onnxruntime, lean"] = engines.load("onnxruntime", lean, one)
    found["openvino"] = engines.load("openvino", lean, one)
    found["fused, bf16"] = engines.load("onnxruntime", saved("bf16.onnx", graphs.fused(_BF16)), one)
    found["fused, fp32"] = engines.load("onnxruntime", saved("fp32.onnx", graphs.fused(_FP32)), one)
    floats = saved("floats.onnx", graphs.plain(_FP32))
    found["onnxruntime, fp32"] = engines.load("onnxruntime", floats, one)
    found["openvino, fp32"] = engines.load("openvino", floats, one)
    if machine.isa().endswith("bf16"):  # elsewhere it has none
        found["openvino, bf16"] = engines.load("openvino", floats, one | {"precision": "bf16"})
    return found | {"kernel": _Kernel(library), "call": _Call(library), "peak": native.Peak(library)}


def verify(running: Mapping[str, Engine], requests: Mapping[int, list[Arrays]]) -> list[str]:
    """Names the rivals that don't answer the timed inputs as the reference does: they are not compared.

    Raises:
        MeasurementError: ours don't.
    """
    refused = dict[str, str]()
    for pool in requests.values():
        for request in pool:
            for layers, allowed in ((_LAYERS, _ALLOWED), (_FP32, _FLOATS_ALLOWED)):
                want = operator.reference(request["x"], layers)
                for name in (name for name in allowed if name in running):
                    if why := _off(running[name].infer(request)["y"], want, allowed[name]):
                        refused[name] = why
    if ours := [name for name in refused if name.startswith(("fused", "kernel"))]:
        raise MeasurementError(f"{ours[0]} at {refused[ours[0]]}")
    for name, why in refused.items():
        print(f"{name} is not compared, at {why}")
    return list(refused)


def _off(have: NDArray[np.float32], want: NDArray[np.float32], allowed: float) -> str:
    gap = float(np.abs(have - want).max()) if have.shape == want.shape else np.inf
    right = f"{len(want)} rows: {list(have.shape)}, {gap:.2g} off the reference (allowed {allowed:g})"
    return "" if gap <= allowed else right


def figures_of(times: Mapping[str, Times], peak_operations: int) -> dict[str, Figure]:
    found = {}
    for rows in _ROWS:
        for label, ours, rivals in _COMPARED:
            if there := [times[name][rows] for name in rivals if name in times]:
                found[f"{label}_{rows}"] = Figure(*ratio_interval(min(there, key=np.median), times[ours][rows]))
        if peak_operations:
            alone = np.maximum(times["kernel"][rows] - int(np.median(times["call"][rows])), 1)
            # Peak time for the row's operations, over the kernel's time.
            share, low, high = ratio_interval(times["peak"][rows], alone)
            per = _OPERATIONS * rows / peak_operations
            found[f"fused_mlp_peak_share_{rows}"] = Figure(share * per, low * per, high * per)
    return found


def table(times: Mapping[str, Times], peak_operations: int) -> str:
    lines = [f"{'us (GOP/s)':20}" + "".join(f"{rows:>8} rows   " for rows in _ROWS)]
    for name in (name for name in (*_ALLOWED, *_FLOATS_ALLOWED, "call") if name in times):
        us = [float(np.median(times[name][rows])) / 1e3 for rows in _ROWS]
        work = ["" if name == "call" else f"({_OPERATIONS * r / u / 1e3:.0f})" for r, u in zip(_ROWS, us, strict=True)]
        lines.append(f"{name:20}" + "".join(f"{u:8.1f} {w:7}" for u, w in zip(us, work, strict=True)))
    if peak_operations:
        peak = [peak_operations / float(np.median(times["peak"][rows])) for rows in _ROWS]
        lines.append(f"{'peak':20}" + "".join(f"{'':8} {f'({p:.0f})':7}" for p in peak))
    return "\n".join(lines)


def main() -> int:
    try:
        isa = build.strongest()
        rng = np.random.default_rng(0)
        requests: dict[int, list[Arrays]] = {
            rows: [{"x": rng.standard_normal((rows, shapes.DLRM_TOP[0])).astype(np.float32)} for _ in range(4)]
            for rows in _ROWS
        }
        with tempfile.TemporaryDirectory() as folder:
            running = subjects(Path(folder), build.library(isa))
            for name in verify(running, requests):
                del running[name]
            times = measure(running, requests, rounds=200)
        peak = running["peak"]
        operations = peak.operations if isinstance(peak, native.Peak) else 0
        here = machine.conditions()
        widths = "-".join(map(str, shapes.DLRM_TOP))
        print(f"FusedMlp {widths}, INT8 unless said, {isa}; {here['cpu']}; one thread, CPU time")
        print(table(times, operations))
        return judge_goals(figures_of(times, operations), read_goals(suite="kernels"))
    except RedlineError as e:
        print(f"kernels: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
