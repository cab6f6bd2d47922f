"""How a pass is applied: the type of its config selects the function (functools.singledispatch)."""

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from redline.verdict import Verdict

if TYPE_CHECKING:
    from dataclasses import Field

    from redline.optimize.build import Source


class Pass(Protocol):
    """A frozen, keyword-only dataclass of JSON values."""

    __dataclass_fields__: "ClassVar[dict[str, Field[Any]]]"


def writes(config: Pass) -> str:
    """The name of the file that the pass leaves: `model.onnx`, unless its class says otherwise in `WRITES`."""
    return str(getattr(type(config), "WRITES", "model.onnx"))


def retrains(config: Pass) -> bool:
    """Whether the pass trains the model on (`RETRAINS = True`), so that its answers are meant to differ."""
    return bool(getattr(type(config), "RETRAINS", False))


def code(config: Pass) -> tuple[str, ...]:
    """What else of Redline's own code the pass's result depends on (`CODE`), beside `optimize/passes`."""
    return tuple(getattr(type(config), "CODE", ()))


def built_with(config: Pass) -> dict[str, str]:
    """What its result depends on beside code and the step before: tools, say; if its class tells (`built_with`)."""
    tell: Callable[[], dict[str, str]] = getattr(config, "built_with", dict)
    return tell()


@singledispatch
def apply(config: Pass, before: Path | None, source: "Source", out: Path) -> Verdict:
    """Write to `out` what the pass makes of the file at `before` (None: of the source model itself).

    A pass may put more files beside `out`: all of them go into the artifact's model folder. Most passes take an ONNX
    graph; those that retrain leave weights (`model.safetensors`) that ExportOnnx takes.

    Returns what the pass did, or why it left the graph as it was.

    Raises:
        GraphError: the graph can't be taken; the message names the node.
        JobError: the model can't be taken.
    """
    raise TypeError(f"{type(config).__name__} is not a pass")
