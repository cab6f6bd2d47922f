"""Fused kernels: parts of a graph become single ai.redline nodes, with the libraries that compute them beside.

For int8 run after QuantizeStatic, for bf16 and fp32 on the plain graph; every operator's pattern takes its turn
(kernels/operators.py). Chains of Linear layers become FusedMlp, look-ups and pairwise dots EmbeddingInteraction, and
where these are the whole model, one FusedRecommender. The libraries are built here for every ISA that this machine's
compiler knows; the engine picks one when it loads.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, get_args

from redline.kernels import build, operators
from redline.kernels.common.formats import Precision
from redline.optimize.passes.graph import graph_before
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from redline.optimize.build import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseKernels:
    """Replace Linear layers, look-ups and pairwise dots by ai.redline's operators."""

    precision: Precision = "int8"  # of weights and tables

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(get_args(Precision))}")

    KIND: ClassVar[str] = "fused"
    CODE: ClassVar[tuple[str, ...]] = (
        "kernels/build.py",
        "kernels/operators.py",
        "kernels/common",
        *(f"kernels/{name}/{file}.py" for name in operators.names() for file in ("operator", "pattern")),
    )

    def built_with(self) -> dict[str, str]:
        """The libraries: their C++, and the compiler."""
        return {isa: build.fingerprint(isa) for isa in build.isas()}


def fuse(model: "ir.Model", config: FuseKernels) -> Iterator[operators.Fused]:
    """Each operator's pattern in turn, what it made superfluous swept; what it did."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model.opset_imports[operators.DOMAIN] = operators.VERSION
    for pattern in operators.patterns():
        fused = pattern.fuse(model.graph, config.precision)
        RemoveUnusedNodesPass()(model)
        yield fused


@apply.register(FuseKernels)
def _(config: FuseKernels, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "FuseKernels")
    import onnx_ir as ir

    model = ir.load(before)
    done, left = list[str](), list[str]()
    for fused in fuse(model, config):
        done += fused.done
        left += [verdict.why for verdict in fused.left]
    if not done:
        shutil.copyfile(before, out)
        quantized = config.precision == "int8"
        none = f"no {'quantized ' * quantized}Gemm or MatMul{' (QuantizeStatic first)' * quantized}"
        return Verdict(False, f"left as it was: {'; '.join(left) or none}")
    ir.save(model, out)
    for library in build.libraries().values():
        shutil.copyfile(library, out.with_name(library.name))
    return Verdict(True, "; ".join([*done, *left]))
