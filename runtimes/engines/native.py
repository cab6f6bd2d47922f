"""Redline's own kernels without a runtime around them: a graph that is one ai.redline::FusedRecommender node.

The same model folder as the onnxruntime engine's; the graph is read once, a call goes straight into the library.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from redline.errors import GraphError, RequestError, UsageError
from redline.kernels.fused_recommender.native import FusedRecommender
from redline.kernels.fused_recommender.operator import NAME, Recommender, from_constants
from redline.kernels.operators import DOMAIN
from redline.runtimes.engines import refuse_unknown
from redline.runtimes.engines.libraries import needed_library
from redline.tensors import Arrays


class Native:
    def __init__(self, kernel: FusedRecommender, ids: str, dense: list[str], output: str) -> None:
        self._kernel, self._ids, self._dense, self._output = kernel, ids, dense, output

    def infer(self, inputs: Arrays) -> Arrays:
        try:
            ids, dense = inputs[self._ids], [inputs[name] for name in self._dense]
        except KeyError as e:
            raise RequestError(f"wanted inputs {[self._ids, *self._dense]}, got {list(inputs)}") from e
        return {self._output: self._kernel(ids, dense)}


def load(path: Path, options: Mapping[str, Any]) -> Native:
    """Options: threads, of which the kernel uses one; isa, which forces the instruction set."""
    refuse_unknown("native", options, {"threads", "isa"})
    if options.get("threads", 1) != 1:
        raise UsageError(f"native: threads {options['threads']}, wanted 1: a call computes on the thread it comes from")
    try:
        graph = onnx.load(path).graph
    except Exception as e:  # protobuf's own
        raise GraphError(f"native can't read {path.name}: {e}") from e
    op, dense = _recommender(graph, path.name)
    library = needed_library(path, options.get("isa"), "native")
    try:
        kernel = FusedRecommender(library, op)
    except ValueError as e:
        raise GraphError(f"native can't load {path.name}: {e}") from e
    return Native(kernel, graph.node[0].input[0], dense, graph.output[0].name)


def _recommender(graph: onnx.GraphProto, name: str) -> tuple[Recommender, list[str]]:
    """What the one node computes, and the names of its dense inputs."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    asked = {value.name for value in graph.input} - weights.keys()
    nodes = [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]
    if len(nodes) != 1 or len(graph.node) != 1 or {i for i in nodes[0].input if i not in weights} != asked:
        others = sorted({node.op_type for node in graph.node} - {NAME})
        raise GraphError(
            f"native takes a graph of one {NAME} node, {name} has {len(graph.node)} nodes "
            f"({', '.join(others) or NAME}); engine onnxruntime takes it"
        )
    node = nodes[0]
    constants = [numpy_helper.to_array(weights[i]) for i in node.input if i in weights]
    squeeze = any(a.name == "squeeze" and a.i for a in node.attribute)
    return from_constants(constants, squeeze=squeeze), [i for i in node.input[1:] if i not in weights]
