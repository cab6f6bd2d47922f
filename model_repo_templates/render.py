"""Artifact → the text that a model server reads."""

import json
import shutil
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from redline.artifact import Artifact
from redline.errors import UsageError
from redline.runtimes.engines.table import device
from redline.runtimes.engines.tensorrt import is_rtx_plan
from redline.tensors import Tensor

_TYPES = {"float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}
_TEMPLATES = files("redline.model_repo_templates") / "triton"


def render_triton(artifact: Artifact, out: Path, *, python_paths: Sequence[str] = (), instances: int = 1) -> Path:
    """Write Triton's model repository for the artifact (Python backend, engines of this package) and return it.

    python_paths: where Triton's Python finds redline and the engine's library; by default where this one does.
    """
    manifest = artifact.manifest
    rows = max(manifest.max_rows, int(manifest.serving.get("max_batch_rows", 0)))
    folder = _render(artifact, out, backend="python", max_batch_size=rows, instances=instances)
    (folder / "1" / "model.py").write_text((_TEMPLATES / "model.py").read_text())
    settings = {
        "python_paths": list(python_paths) or [p for p in sys.path if p and Path(p).is_dir()],
        "engine": manifest.engine,
        "engine_options": manifest.engine_options,
        "model": str(artifact.model.resolve()),
        "inputs": {t.name: t.row_shape for t in manifest.inputs},
        "outputs": {t.name: t.dtype for t in manifest.outputs},
        "batchable": manifest.batchable,
    }
    (folder / "1" / "settings.json").write_text(json.dumps(settings, indent=2))
    return out


def render_triton_gpu(artifact: Artifact, out: Path, *, plan: Path | None = None) -> Path:
    """Write a whole model repository for NVIDIA's Triton image and return it: nothing in it needs redline.

    ONNX Runtime with the TensorRT accelerator, from the artifact's graph; with `plan`, one that TensorRT itself built
    on the target from that graph, Triton's own TensorRT backend.

    Raises:
        UsageError: the artifact is not for a GPU, or the plan is for TensorRT for RTX, which Triton can't load.
    """
    manifest = artifact.manifest
    if device(manifest.target) != "cuda" or manifest.kind not in ("onnx", "tensorrt"):
        raise UsageError(
            f"{artifact.path}: {manifest.kind} on {manifest.target}; a repository for NVIDIA's Triton wants what "
            "`redline optimize JOB --target cuda:sm_86` writes"
        )
    if plan is not None:
        if is_rtx_plan(plan):
            raise UsageError(f"{plan}: built by TensorRT for RTX, Triton loads TensorRT's own; see docs/tensorrt.md")
        digits = manifest.target.rpartition("_")[2]  # 86, 120
        capability = f"{digits[:-1]}.{digits[-1]}"
        file = f"model_{capability}.plan"  # never model.plan: old servers fall back to it on any device
        how: dict[str, Any] = {"backend": "", "plans": {capability: file}}
        source = plan
    else:
        how = {"backend": "onnxruntime", "profile": _profile(artifact)}
        source, file = artifact.model.with_name("model.onnx"), "model.onnx"
    folder = _render(artifact, out, max_batch_size=manifest.max_rows, instances=1, fixed_shapes=True, **how)
    shutil.copyfile(source, folder / "1" / file)
    return out


def _profile(artifact: Artifact) -> dict[str, str]:
    """TensorRT's shapes: min, opt, max → "ids:1x7,dense:1x6"."""
    manifest = artifact.manifest
    rows = {"min": 1, "opt": min(int(manifest.sla.get("rows", 1)), manifest.max_rows), "max": manifest.max_rows}
    return {
        limit: ",".join(f"{t.name}:{'x'.join(map(str, (n, *t.row_shape)))}" for t in manifest.inputs)
        for limit, n in rows.items()
    }


def _render(artifact: Artifact, out: Path, *, fixed_shapes: bool = False, **values: Any) -> Path:
    """out/NAME with config.pbtxt, the warm-up's data and an empty version 1."""
    manifest = artifact.manifest
    folder = out / manifest.name
    (folder / "1").mkdir(parents=True)
    (folder / "warmup").mkdir()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 (not HTML)
    config = environment.from_string((_TEMPLATES / "config.pbtxt.j2").read_text()).render(
        {"plans": {}, "profile": {}} | values,
        name=manifest.name,
        inputs=[_tensor(t, fixed_shapes) for t in manifest.inputs],
        outputs=[_tensor(t, fixed_shapes) for t in manifest.outputs],
        batchable=manifest.batchable,
    )
    (folder / "config.pbtxt").write_text(config)
    golden = artifact.golden()[0][0]
    for i, t in enumerate(manifest.inputs):  # a name may hold a slash
        (folder / "warmup" / str(i)).write_bytes(np.ascontiguousarray(golden[t.name][:1]).tobytes())
    return folder


def _tensor(tensor: Tensor, fixed_shapes: bool) -> dict[str, Any]:
    """Triton has no empty dims: a scalar per row travels as one column.

    fixed_shapes: the backend takes the graph's own shape, [rows], so the column is taken off before it.
    """
    kind = _TYPES.get(tensor.dtype) or f"TYPE_{tensor.dtype.upper()}"
    dims = tensor.row_shape or (1,)
    return {"name": tensor.name, "type": kind, "dims": dims, "reshape": fixed_shapes and not tensor.row_shape}
