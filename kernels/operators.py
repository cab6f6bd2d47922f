"""What all operators share: where they are found, the domain ai.redline, and their form in ONNX.

A folder here with an `op.cpp` is an operator that ONNX Runtime can run. Its `pattern.py` says what it replaces: `fuse`
does it, and `AFTER` names the operators that come first, whose nodes it builds on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from redline.kernels.common.formats import Precision
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

DOMAIN, VERSION = "ai.redline", 1


@dataclass(frozen=True, slots=True)
class Fused:
    done: list[str] = field(default_factory=list)  # in words
    left: list[Verdict] = field(default_factory=list)  # what stays as it was, each with the reason


class Pattern(Protocol):
    """A pattern.py."""

    def fuse(self, graph: "ir.Graph", precision: Precision, /) -> Fused: ...


def names(holding: str = "op.cpp") -> tuple[str, ...]:
    """The operators' folders: those that hold this file."""
    return tuple(sorted(path.parent.name for path in Path(__file__).parent.glob(f"*/{holding}")))


def brought(module: str, function: str) -> Iterator[Any]:
    """What function() of every operator's `module`.py gives, in the order of the folders' names."""
    for name in names(f"{module}.py"):
        yield from getattr(import_module(f"redline.kernels.{name}.{module}"), function)()


def patterns() -> list[Pattern]:
    """Every operator's, in an order in which each builds on what those before left."""
    found = {name: import_module(f"redline.kernels.{name}.pattern") for name in names()}
    order = TopologicalSorter({name: getattr(module, "AFTER", ()) for name, module in found.items()}).static_order()
    return [cast(Pattern, found[name]) for name in order]


def schema(
    name: str,
    doc: str | None,
    first: str = "x",
    types: Sequence[str] = ("tensor(float)",),
    attributes: "Sequence[onnx.defs.OpSchema.Attribute]" = (),
    infer: "Callable[[onnx.shape_inference.InferenceContext], None] | None" = None,
) -> "onnx.defs.OpSchema":
    """An operator of one input of these types, any that follow, and one float output, as in common/ort.h; for
    onnx.checker (`onnx.defs.register_schema`), as ONNX Runtime asks the library itself."""
    from onnx import defs

    option = defs.OpSchema.FormalParameterOption
    made = defs.OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc=doc or "",
        inputs=[
            defs.OpSchema.FormalParameter(first, "F"),
            defs.OpSchema.FormalParameter("rest", "T", param_option=option.Variadic, is_homogeneous=False),
        ],
        outputs=[defs.OpSchema.FormalParameter("y", "tensor(float)")],
        type_constraints=[
            ("F", list(types), first),
            ("T", [f"tensor({t})" for t in ("float", "bfloat16", "int8", "int64")], "constants and dense inputs"),
        ],
        attributes=attributes,
    )
    if infer is not None:
        made.set_type_and_shape_inference_function(infer)
    return made
