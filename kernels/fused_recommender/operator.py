"""ai.redline::FusedRecommender: a whole DLRM-like forward as one node.

    dense d → FusedMlp ("bottom", or nothing) → vector d ─┐
    ids ──────────────────────────────────────────────────┴→ EmbeddingInteraction → FusedMlp ("top") → [rows, n]

The node's inputs: ids, the interaction's constants, the top's constants, those of each dense vector's bottom (of no
layers where it enters as it is), then the dense inputs. `squeeze` (0 or 1): the answer is [rows]. It gives the bits of
the nodes that it is made of; for what isn't finite that means: an int8 bottom counts NaN as its lowest step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from redline.kernels import operators
from redline.kernels.embedding_interaction import operator as interaction
from redline.kernels.embedding_interaction.operator import Floats, Interaction
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.fused_mlp.operator import ACTIVATIONS, Layer

if TYPE_CHECKING:
    import onnx

NAME = "FusedRecommender"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recommender:
    interaction: Interaction
    bottoms: Sequence[Sequence[Layer]]  # one a dense vector; of no layers: it enters as it is
    top: Sequence[Layer]
    squeeze: bool  # [rows, 1] → [rows]

    @property
    def dense_widths(self) -> list[int]:
        return [layers[0].weight.shape[1] if layers else self.interaction.dim for layers in self.bottoms]

    @property
    def n(self) -> int:
        return len(self.top[-1].weight)

    @property
    def columns(self) -> int:
        """Of ids, at least."""
        return int(self.interaction.tables[:, 0].max(initial=-1)) + 1


def reference(ids: NDArray[Any], dense: Sequence[Floats], op: Recommender) -> Floats:
    vectors = [mlp.reference(x, layers) if layers else x for x, layers in zip(dense, op.bottoms, strict=True)]
    y = mlp.reference(interaction.reference(ids, vectors, op.interaction), op.top)
    return y[:, 0] if op.squeeze else y


def constants(op: Recommender) -> dict[str, NDArray[Any]]:
    """The node's inputs between ids and dense inputs, in order."""
    found = interaction.constants(op.interaction)
    for name, layers in (("top", op.top), *((f"bottom{d}", layers) for d, layers in enumerate(op.bottoms))):
        found |= {f"{name}.{label}": array for label, array in mlp.constants(layers).items()}
    return found


def from_constants(arrays: Sequence[NDArray[Any]], *, squeeze: bool) -> Recommender:
    """Inverse of constants."""
    table, row_scale, tables, vectors, lead, pairs, *rest = arrays
    found = Interaction(table=table, row_scale=row_scale, tables=tables, vectors=vectors, lead=lead, pairs=pairs)
    chains = []
    while rest:
        scales, codes, *rest = rest
        count = len(scales)
        weights, rest = rest[: 3 * count], rest[3 * count :]
        chains.append([_layer(weights[3 * i : 3 * i + 3], scales[i], codes[i]) for i in range(count)])
    return Recommender(interaction=found, bottoms=chains[1:], top=chains[0], squeeze=squeeze)


def _layer(weights: Sequence[NDArray[Any]], input_scale: Any, code: Any) -> Layer:
    weight, weight_scale, bias = weights
    return Layer(
        weight=weight,
        weight_scale=weight_scale,
        bias=bias,
        input_scale=float(input_scale),
        activation=ACTIVATIONS[int(code)],
    )


def operations(constants: Sequence[NDArray[Any]]) -> int:
    """A row's, a multiply-add being two; constants: as above."""
    return interaction.operations(constants[:6]) + mlp.operations(constants[6:])


def schema() -> "onnx.defs.OpSchema":
    from onnx import defs

    squeeze = defs.OpSchema.Attribute("squeeze", defs.OpSchema.AttrType.INT, "the answer is [rows]")
    return operators.schema(NAME, __doc__, "ids", interaction.IDS, [squeeze])
