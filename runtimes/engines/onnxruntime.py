"""ONNX Runtime on the CPU; with fused kernels where their libraries lie beside the graph."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # since 1.32 it reports to Microsoft and writes a file in $TMPDIR

import onnxruntime as ort

from redline import machine
from redline.errors import GraphError, MissingError, UsageError
from redline.kernels.build import file_name
from redline.runtimes.engines import refuse_unknown
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
    library = fused_library(path.parent, options.get("isa"))
    try:
        if library is not None:
            settings.register_custom_ops_library(str(library))
        return OnnxRuntime(ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"]))
    except Exception as e:  # the library raises a bare class of its own per status code
        if library is None and "ai.redline" in str(e):
            wanted = " or ".join(file_name(isa) for isa in _usable())
            raise MissingError(
                f"{path} has fused kernels (ai.redline), and no library for them lies beside it: wanted {wanted}; "
                "copy the whole model folder, or run `redline optimize` again"
            ) from e
        raise GraphError(f"ONNX Runtime can't load {path.name}: {e}") from e


def _usable() -> list[str]:
    """Instruction sets of this CPU, strongest first."""
    return [isa for isa in reversed(machine.ISAS) if not machine.weaker(machine.isa(), isa)]


def fused_library(folder: Path, isa: str | None) -> Path | None:
    """The fused kernels' library beside a graph: the strongest that this CPU can run, or the one forced.

    Raises:
        UsageError: a forced ISA that doesn't exist.
        MissingError: one that this CPU lacks, or whose library isn't there.
    """
    if isa is None:
        found = (folder / file_name(isa) for isa in _usable())
        return next((path for path in found if path.is_file()), None)
    if isa not in machine.ISAS:
        raise UsageError(f"onnxruntime: isa {isa!r} is not one of {', '.join(machine.ISAS)}")
    if machine.weaker(machine.isa(), isa):
        raise MissingError(f"onnxruntime: isa {isa} was forced, this CPU has {machine.isa()}")
    path = folder / file_name(isa)
    if not path.is_file():
        raise MissingError(f"onnxruntime: isa {isa} was forced, and {path} is missing")
    return path
