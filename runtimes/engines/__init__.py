"""In-process engines: what `optimize` measures is what the predictor serves.

An engine module has one function, `load(path, options) -> Engine`; options are JSON values, unknown ones are refused.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from redline.errors import UsageError, missing_extra
from redline.tensors import Arrays

# name → (module, the extra that installs it). A plain table: nothing heavy is imported before it is asked for.
_ENGINES = {
    "onnxruntime": ("redline.runtimes.engines.onnxruntime", "serve"),
    "openvino": ("redline.runtimes.engines.openvino", "openvino"),
    "torch_eager": ("redline.runtimes.engines.torch_eager", "optimize"),
    "native": ("redline.runtimes.engines.native", "native"),
    "tensorrt": ("redline.runtimes.engines.tensorrt", "gpu"),
}
NAMES = tuple(_ENGINES)


class Engine(Protocol):
    def infer(self, inputs: Arrays) -> Arrays:
        """Answers for inputs {name: [rows, ...]}; safe to call from several threads."""
        ...


def load(name: str, path: Path, options: Mapping[str, Any]) -> Engine:
    """Load the model at path into the named engine.

    Raises:
        UsageError: unknown engine or option.
        MissingError: the engine's library is not installed; the message has the pip line.
    """
    if name not in _ENGINES:
        raise UsageError(f"unknown engine {name!r}; known: {', '.join(NAMES)}")
    module, extra = _ENGINES[name]
    try:
        return cast(Engine, import_module(module).load(path, options))
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("redline"):
            raise
        raise missing_extra(extra, f"engine {name!r}") from e


def refuse_unknown(engine: str, options: Mapping[str, Any], known: set[str]) -> None:
    if unknown := options.keys() - known:
        raise UsageError(f"{engine}: unknown options {sorted(unknown)}; known: {sorted(known)}")
