"""Fused kernels: parts of a Q/DQ graph become single ai.redline nodes, with the libraries that compute them beside.

Run after QuantizeStatic. Chains of Linear layers become FusedMlp, look-ups and pairwise dots EmbeddingInteraction, and
where these are the whole model, one FusedRecommender. The libraries are built here for every ISA that this machine's
compiler can build for; the engine picks one when it loads.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from redline.kernels import build
from redline.kernels.common.values import only_use
from redline.kernels.embedding_interaction import operator as interaction
from redline.kernels.embedding_interaction import pattern as interactions
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.fused_mlp import pattern as mlps
from redline.kernels.fused_recommender import pattern as recommenders
from redline.optimize.passes.graph import graph_before
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    import onnx_ir as ir

    from redline.optimize.build import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class FuseKernels:
    """Replace quantized Linear layers, look-ups and pairwise dots by ai.redline's operators."""

    KIND: ClassVar[str] = "fused"
    CODE: ClassVar[tuple[str, ...]] = (
        "kernels/build.py",
        "kernels/common",
        "kernels/embedding_interaction",
        "kernels/fused_mlp",
        "kernels/fused_recommender",
    )


@apply.register(FuseKernels)
def _(config: FuseKernels, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "FuseKernels")
    import onnx_ir as ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.load(before)
    done, left = list[str](), list[str]()
    for fuse in (_mlps, _interactions, _recommenders):  # in this order: each builds on what the one before left
        said, refusals = fuse(model.graph)
        done += said
        left += [verdict.why for verdict in refusals]
        RemoveUnusedNodesPass()(model)
    if not done:
        shutil.copyfile(before, out)
        return Verdict(
            False, f"left as it was: {'; '.join(left) or 'no quantized Gemm or MatMul (QuantizeStatic first)'}"
        )
    model.opset_imports[mlp.DOMAIN] = mlp.VERSION
    ir.save(model, out)
    for isa in build.isas():
        shutil.copyfile(build.library(isa), out.with_name(build.file_name(isa)))
    return Verdict(True, "; ".join([*done, *left]))


def _mlps(graph: "ir.Graph") -> tuple[list[str], Sequence[Verdict]]:
    chains, refusals = mlps.find(graph)
    for chain in chains:
        mlps.replace(graph, chain)
    shapes = ", ".join(
        "-".join(map(str, [c[0].layer.weight.shape[1], *(len(x.layer.weight) for x in c)])) for c in chains
    )
    said = f"{sum(map(len, chains))} layers in {len(chains)} fused nodes ({shapes})"
    return [said] if chains else [], refusals


def _interactions(graph: "ir.Graph") -> tuple[list[str], Sequence[Verdict]]:
    found, refusals = interactions.find(graph)
    said = []
    for one in found:
        user = only_use(one.y)
        quantized = user is not None and user.op_type == mlp.NAME  # the dots become int8 anyway
        interactions.replace(graph, one, interaction.stored(one.op, "int8") if quantized else None)
        kind = "int8" if quantized else "fp32"
        vectors = f"{len(one.op.vectors)} vectors ({len(one.op.tables)} tables, {kind})"
        said.append(f"{len(one.op.pairs)} dots of {vectors} in one node")
    return said, refusals


def _recommenders(graph: "ir.Graph") -> tuple[list[str], Sequence[Verdict]]:
    found, refusals = recommenders.find(graph)
    for one in found:
        recommenders.replace(graph, one)
    return ["the whole recommender in one node"] * len(found), refusals
