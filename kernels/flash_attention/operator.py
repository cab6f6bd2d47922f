"""ai.redline::FlashAttention: softmax(scale · q · kᵀ) · v, without the scores ever leaving the chip.

    q [batch, heads, n, d] · k, v [batch, kv_heads, m, d] → out [batch, heads, n, d], float16 or bfloat16

Heads share keys and values in groups of heads / kv_heads. causal: the n queries are the last n of m positions, so query
i sees keys up to i + m - n (for n = m that is a lower triangle); a query that sees no key answers 0.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx

NAME = "FlashAttention"
TOLERANCE = 2e-2  # of every implementation to the reference: inputs, weights and answer are 16 bits, sums are not


def visible(n: int, m: int, causal: bool) -> NDArray[np.bool_]:
    """Which of m keys each of n queries sees. [n, m]"""
    seen = np.ones((n, m), np.bool_)
    return np.tril(seen, m - n) if causal else seen


def reference(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], *, causal: bool, scale: float) -> NDArray[np.float32]:
    """What every implementation must give within TOLERANCE, in float32."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.astype(np.float32), *(x.astype(np.float32).repeat(group, axis=1) for x in (k, v))
    scores = np.where(visible(q.shape[2], k.shape[2], causal), np.float32(scale) * q @ k.swapaxes(2, 3), -np.inf)
    most = scores.max(axis=3, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0))
    total = weights.sum(axis=3, keepdims=True)
    answer: NDArray[np.float32] = weights / np.where(total > 0, total, 1) @ v
    return answer.astype(np.float32)


def schema() -> "onnx.defs.OpSchema":
    """For onnx.checker and shape inference (`onnx.defs.register_schema`)."""
    from onnx import defs

    def infer(context: "onnx.shape_inference.InferenceContext") -> None:
        context.set_output_type(0, context.get_input_type(0))

    kind = defs.OpSchema.AttrType
    made = defs.OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        doc=__doc__ or "",
        inputs=[defs.OpSchema.FormalParameter(name, "T") for name in ("q", "k", "v")],
        outputs=[defs.OpSchema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)"], "16-bit floats")],
        attributes=[
            defs.OpSchema.Attribute("causal", kind.INT, "1: a query sees no later key", required=True),
            defs.OpSchema.Attribute("scale", kind.FLOAT, "of the scores, above 0", required=True),
        ],
    )
    made.set_type_and_shape_inference_function(infer)
    return made
