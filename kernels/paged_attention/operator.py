"""ai.redline::PagedAttention: one new token a sequence against its cached keys and values, which lie in blocks.

    q [sequences, heads, d] · k_cache, v_cache [blocks, block_size, kv_heads, d] · block_table [sequences, max_blocks]
    int32 · context_lens [sequences] int32 → out [sequences, heads, d]

Token t of a sequence lies in place t % block_size of block block_table[t // block_size]; what a table holds past its
sequence's context is never read. The new token's own key and value are in the cache already. A context of 0 answers 0.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.flash_attention.operator import reference as attention
from redline.kernels.operators import DOMAIN, VERSION

if TYPE_CHECKING:
    import onnx

NAME = "PagedAttention"


def reference(
    q: NDArray[Any],
    k_cache: NDArray[Any],
    v_cache: NDArray[Any],
    block_table: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    *,
    scale: float,
) -> NDArray[np.float32]:
    """A sequence after the other: its blocks gathered, then plain attention."""
    block_size, answers = k_cache.shape[1], np.zeros(q.shape, np.float32)
    for i, length in enumerate(context_lens):
        blocks = block_table[i, : -(-length // block_size)]
        k, v = (x[blocks].reshape(-1, *x.shape[2:])[:length].swapaxes(0, 1)[None] for x in (k_cache, v_cache))
        answers[i] = attention(q[i][None, :, None], k, v, causal=False, scale=scale)[0, :, 0]
    return answers


def schema() -> "onnx.defs.OpSchema":
    """For onnx.checker and shape inference (`onnx.defs.register_schema`)."""
    from onnx import defs

    def infer(context: "onnx.shape_inference.InferenceContext") -> None:
        context.set_output_type(0, context.get_input_type(0))

    parameter = defs.OpSchema.FormalParameter
    made = defs.OpSchema(
        NAME,
        DOMAIN,
        VERSION,
        doc=__doc__ or "",
        inputs=[
            *(parameter(name, "T") for name in ("q", "k_cache", "v_cache")),
            *(parameter(name, "tensor(int32)") for name in ("block_table", "context_lens")),
        ],
        outputs=[parameter("out", "T")],
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)"], "16-bit floats")],
        attributes=[
            defs.OpSchema.Attribute("scale", defs.OpSchema.AttrType.FLOAT, "of the scores, above 0", required=True)
        ],
    )
    made.set_type_and_shape_inference_function(infer)
    return made
