"""Fused kernels: chains of a Q/DQ graph become single ai.redline nodes, with the libraries that compute them beside.

Run after QuantizeStatic. The libraries are built here for every ISA that this machine's compiler can build for; the
engine picks one when it loads.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from redline.kernels import build
from redline.kernels.fused_mlp import operator, pattern
from redline.optimize.passes.graph import graph_before
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    from redline.optimize.build import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseKernels:
    """Replace chains of quantized Linear layers by ai.redline::FusedMlp."""

    KIND: ClassVar[str] = "fused"
    CODE: ClassVar[tuple[str, ...]] = ("kernels/build.py", "kernels/common", "kernels/fused_mlp")


@apply.register(FuseKernels)
def _(config: FuseKernels, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "FuseKernels")
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.load(before)
    chains, refusals = pattern.find(model.graph)
    said = [verdict.why for verdict in refusals]
    if not chains:
        shutil.copyfile(before, out)
        return Verdict(
            False, f"left as it was: {'; '.join(said) or 'no quantized Gemm or MatMul (QuantizeStatic first)'}"
        )
    for chain in chains:
        pattern.replace(model.graph, chain)
    model.opset_imports[operator.DOMAIN] = operator.VERSION
    RemoveUnusedNodesPass()(model)
    ir.save(model, out)
    for isa in build.isas():
        shutil.copyfile(build.library(isa), out.with_name(build.file_name(isa)))
    shapes = ", ".join(
        "-".join(map(str, [c[0].layer.weight.shape[1], *(len(x.layer.weight) for x in c)])) for c in chains
    )
    return Verdict(True, "; ".join([f"{sum(map(len, chains))} layers in {len(chains)} fused nodes ({shapes})", *said]))
