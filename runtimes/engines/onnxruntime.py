"""ONNX Runtime on the CPU."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.32 it reports to Microsoft and writes a file in $TMPDIR

import onnxruntime as ort

from redline.errors import GraphError
from redline.runtimes.engines import refuse_unknown
from redline.tensors import Arrays


class OnnxRuntime:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._outputs = [o.name for o in session.get_outputs()]

    def infer(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


def load(path: Path, options: Mapping[str, Any]) -> OnnxRuntime:
    refuse_unknown("onnxruntime", options, {"threads"})
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.get("threads", 1)
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    try:
        return OnnxRuntime(ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]))
    except Exception as e:  # the library raises a bare class of its own per status code
        raise GraphError(f"ONNX Runtime can't load {path.name}: {e}") from e
