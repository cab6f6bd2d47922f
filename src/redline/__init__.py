"""Redline: trained PyTorch model in, load-proven artifact out. Heavy libraries load only when a road needs them."""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redline.optimize.job import SLA, Gate, Job
    from redline.optimize.recipe import Recipe
from redline.tensors import Tensor
from redline.verdict import Verdict

if not (Path(__file__).parent / "optimize").is_dir():
    raise ImportError(
        "redline: src/redline has no room links (checked out without symlinks?); git config core.symlinks true"
    )

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would keep a database of its own use

_LAZY = {
    "SLA": "redline.optimize.job",
    "Gate": "redline.optimize.job",
    "Job": "redline.optimize.job",
    "Recipe": "redline.optimize.recipe",
}
__all__ = ["SLA", "Gate", "Job", "Recipe", "Tensor", "Verdict"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'redline' has no attribute {name!r}")
