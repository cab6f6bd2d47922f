"""PyTorch → ONNX by torch.export, with a dynamic row axis that is verified, not believed."""

import io
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from redline.errors import JobError
from redline.optimize.passes import retrained
from redline.optimize.passes.graph import quiet
from redline.optimize.passes.registry import apply
from redline.tensors import Arrays
from redline.verdict import Verdict

if TYPE_CHECKING:
    from torch import nn

    from redline.optimize.build import Source

_TOLERANCE = 1e-4  # largest |ONNX - PyTorch|, relative to the answers' scale
_OPERATOR_LIKE = {"embedding", "cat", "concat", "add", "mul", "matmul", "linear", "relu", "sigmoid", "gather"}

_USER_LINE = re.compile(r'raised this error:\n\s+File "([^"]+)", line (\d+), in \w+\n\s+(.+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOnnx:
    """Export the source model, or what the passes before it made of its weights."""

    opset: int = 20

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise ValueError(f"opset {self.opset} is not in 18..23")


@apply.register(ExportOnnx)
def _(config: ExportOnnx, before: Path | None, source: "Source", out: Path) -> Verdict:
    job = source.job
    module = source.module if before is None else retrained.module_of(source, before, "ExportOnnx")
    if clash := {*(t.name for t in job.inputs), *job.outputs} & _OPERATOR_LIKE:
        raise JobError(f"input or output named like an operator makes an invalid graph: rename {sorted(clash)}")
    _export(config, module, source, out)
    rows = [n for n in (1, 64, 37) if n <= len(next(iter(source.calibration.values())))]
    worst = max(_difference(module, source, out, n) for n in rows)
    return Verdict(True, f"opset {config.opset}, same answers at {', '.join(map(str, rows))} rows within {worst:.1e}")


def _export(config: ExportOnnx, module: "nn.Module", source: "Source", out: Path) -> None:
    import torch

    job = source.job
    args = tuple(torch.from_numpy(source.calibration[t.name][:64]) for t in job.inputs)
    rows = torch.export.Dim("rows", min=1, max=2**20)
    sink = io.StringIO()  # a failed trace prints its whole graph
    try:
        with warnings.catch_warnings(), quiet(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                args,
                str(out),
                dynamo=True,
                input_names=[t.name for t in job.inputs],
                output_names=list(job.outputs),
                dynamic_shapes=tuple({0: rows} for _ in job.inputs),
                opset_version=config.opset,
                external_data=False,
                verbose=False,
            )
    except Exception as e:
        reason = str(e.__cause__ or e).strip().splitlines()[0]
        if line := _USER_LINE.search(str(e.__cause__)):
            reason = f"{Path(line[1]).name}:{line[2]}: {line[3]}: {reason}"
        raise JobError(f"torch.export can't trace job {job.name}'s model: {reason}") from e


def _difference(module: "nn.Module", source: "Source", graph: Path, rows: int) -> float:
    """Largest difference between graph and module at this many rows, relative to the answers' scale."""
    import torch

    from redline.runtimes import engines

    inputs: Arrays = {name: a[:rows] for name, a in source.calibration.items()}
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(inputs[t.name]) for t in source.job.inputs))
    wanted = [a.numpy() for a in (answer if isinstance(answer, tuple) else (answer,))]
    try:
        got = engines.load("onnxruntime", graph, {}).infer(inputs)
    except Exception as e:
        raise JobError(f"the exported graph fails at {rows} rows, so its batch axis is not dynamic: {e}") from e
    worst = 0.0
    for name, want in zip(source.job.outputs, wanted, strict=True):
        have = got[name]
        if have.shape != want.shape or have.shape[:1] != (rows,):
            raise JobError(
                f"output {name!r}: wrong batch axis: {rows} rows in, {want.shape} from PyTorch, {have.shape} from ONNX"
            )
        worst = max(worst, float(np.abs(have - want).max() / max(1.0, float(np.abs(want).max()))))
    if not worst <= _TOLERANCE:
        raise JobError(f"the exported graph differs from PyTorch by {worst:.2g} at {rows} rows (allowed {_TOLERANCE})")
    return worst
