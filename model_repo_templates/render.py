"""Artifact → the text that a model server reads."""

import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from redline.artifact import Artifact
from redline.tensors import Tensor

_TYPES = {"float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}


def render_triton(artifact: Artifact, out: Path, *, python_paths: Sequence[str] = (), instances: int = 1) -> Path:
    """Write Triton's model repository for the artifact (Python backend, engines of this package) and return it.

    python_paths: where Triton's Python finds redline and the engine's library; by default where this one does.
    """
    manifest = artifact.manifest
    folder = out / manifest.name
    (folder / "1").mkdir(parents=True)
    (folder / "warmup").mkdir()
    templates = files("redline.model_repo_templates") / "triton"
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 (not HTML)
    config = environment.from_string((templates / "config.pbtxt.j2").read_text()).render(
        name=manifest.name,
        max_batch_size=max(manifest.max_rows, int(manifest.serving.get("max_batch_rows", 0))),
        inputs=[_tensor(t) for t in manifest.inputs],
        outputs=[_tensor(t) for t in manifest.outputs],
        instances=instances,
        batchable=manifest.batchable,
    )
    (folder / "config.pbtxt").write_text(config)
    (folder / "1" / "model.py").write_text((templates / "model.py").read_text())
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
    golden = artifact.golden()[0][0]
    for i, t in enumerate(manifest.inputs):  # a name may hold a slash
        (folder / "warmup" / str(i)).write_bytes(np.ascontiguousarray(golden[t.name][:1]).tobytes())
    return out


def _tensor(tensor: Tensor) -> dict[str, Any]:
    """Triton has no empty dims: a scalar per row travels as one column."""
    kind = _TYPES.get(tensor.dtype) or f"TYPE_{tensor.dtype.upper()}"
    return {"name": tensor.name, "type": kind, "dims": tensor.row_shape or (1,)}
