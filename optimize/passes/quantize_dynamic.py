"""Dynamic INT8: activation scales per tensor, computed over the batch at run time.

So an answer depends on its batch neighbours: the invariance verdict shows by how much.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redline.optimize.passes.graph import graph_before, quiet, weight_nodes
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    from redline.optimize.build import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeDynamic:
    """INT8 weights and activations, activation scales at run time."""

    per_channel: bool = True


@apply.register(QuantizeDynamic)
def _(config: QuantizeDynamic, before: Path | None, source: "Source", out: Path) -> Verdict:
    before = graph_before(before, "QuantizeDynamic")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = weight_nodes(before)
    with quiet():
        quantize_dynamic(
            before,
            out,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            weight_type=QuantType.QInt8,
            per_channel=config.per_channel,
            extra_options={"DefaultTensorType": 1},
        )
    return Verdict(True, f"{len(nodes)} Gemm/MatMul/Conv of weights, scales at run time")
