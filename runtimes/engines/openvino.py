"""OpenVINO on the CPU; precision is fp32 or bf16 (bf16 needs a CPU that has it)."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from redline import machine
from redline.errors import GraphError, MissingError, UsageError
from redline.runtimes.engines import refuse_unknown
from redline.tensors import Arrays

_PRECISION = {"fp32": "f32", "bf16": "bf16"}


class OpenVino:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._outputs = [o.any_name for o in compiled.outputs]
        self._local = threading.local()  # an infer request serves one thread at a time

    def infer(self, inputs: Arrays) -> Arrays:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        # A seventh quicker at one row than infer(inputs). Shared memory takes no read-only array, and the request keeps
        # none alive: `held` must outlive infer().
        held = {name: np.require(array, requirements=["C", "W"]) for name, array in inputs.items()}
        for name, array in held.items():
            request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        request.infer()
        return {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(self._outputs)}


def load(path: Path, options: Mapping[str, Any]) -> OpenVino:
    refuse_unknown("openvino", options, {"threads", "precision"})
    precision = options.get("precision", "fp32")
    if precision not in _PRECISION:
        raise UsageError(f"openvino: precision {precision!r} is not one of {', '.join(_PRECISION)}")
    if precision == "bf16" and not machine.isa().endswith("bf16"):
        raise MissingError(f"openvino: bf16 needs a CPU with AVX512_BF16, this one has {machine.isa()}")
    config = {
        "INFERENCE_NUM_THREADS": str(options.get("threads", 1)),
        "NUM_STREAMS": "1",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISION[precision],
        "ENABLE_CPU_PINNING": "NO",
    }
    try:
        core = ov.Core()
        return OpenVino(core.compile_model(core.read_model(path), "CPU", config))
    except RuntimeError as e:
        raise GraphError(f"OpenVINO can't load {path.name}: {e}") from e
