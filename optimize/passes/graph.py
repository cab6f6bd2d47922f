"""What the passes over ONNX graphs share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redline.errors import GraphError


@contextmanager
def quiet() -> Iterator[None]:
    """The quantizers give advice on the root logger that a user of a recipe can't follow."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def graph_before(before: Path | None, what: str) -> Path:
    """The ONNX graph that an earlier pass left.

    Raises:
        GraphError: there is none.
    """
    if before is None or before.suffix != ".onnx":
        raise GraphError(f"{what} needs an ONNX graph: put ExportOnnx before it")
    return before


def weight_nodes(graph: Path) -> list[str]:
    """Names of the Gemm/MatMul/Conv nodes whose second input is a weight.

    Raises:
        GraphError: the graph has none.
    """
    import onnx

    model = onnx.load(graph)
    weights = {i.name for i in model.graph.initializer}
    nodes = [n.name for n in model.graph.node if n.op_type in ("Gemm", "MatMul", "Conv") and n.input[1] in weights]
    if not nodes:
        raise GraphError(
            f"nothing to quantize: no Gemm, MatMul or Conv with a weight among {len(model.graph.node)} nodes"
        )
    return nodes
