"""ONNX Runtime on the CPU; with fused kernels where their libraries lie beside the graph."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.32 it reports to Microsoft and writes a file in $TMPDIR

import onnxruntime as ort

from redline.errors import GraphError, MissingError
from redline.runtimes.engines import refuse_unknown
from redline.runtimes.engines.libraries import fused_library, usable
from redline.tensors import Arrays


class OnnxRuntime:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def infer(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


def load(path: Path, options: Mapping[str, Any]) -> OnnxRuntime:
    """Options: threads; isa, which forces the fused kernels' instruction set."""
    refuse_unknown("onnxruntime", options, {"threads", "isa"})
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.get("threads", 1)
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.x64quantprecision", "1")  # else INT8 sums overflow on AVX2 without VNNI
    library = fused_library(path.parent, options.get("isa"))
    try:
        if library is not None:
            settings.register_custom_ops_library(str(library))
        return OnnxRuntime(ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]))
    except Exception as e:  # the library raises a bare class of its own per status code
        if library is None and "ai.redline" in str(e):
            raise MissingError(
                f"{path} has fused kernels (ai.redline), and no library for them lies beside it: wanted "
                f"{' or '.join(usable())}; copy the whole model folder, or run `redline optimize` again"
            ) from e
        raise GraphError(f"ONNX Runtime can't load {path.name}: {e}") from e
