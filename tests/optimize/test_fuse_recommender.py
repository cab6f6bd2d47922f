"""From a torch recommender unlike the example's to one node, by the recipes' own passes: both engines, every ISA."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from redline import machine, tensors
from redline.errors import GraphError, MeasurementError
from redline.kernels import build as kernels
from redline.kernels.fused_mlp import graphs, shapes
from redline.optimize import gains
from redline.optimize.build import Cache, Candidate, Source, build
from redline.optimize.job import SLA, Gate, Job
from redline.optimize.passes import FuseKernels
from redline.optimize.recipe import EXPERT, choose
from redline.runtimes import engines
from redline.tensors import Arrays

RUNNABLE = [isa for isa in kernels.isas() if not machine.weaker(machine.isa(), isa)]
CRITEO = (1460, 583, 97, 305, 24, 1, 633, 3, 93, 5, 31, 104, 27, 10, 2, 4, 18, 15, 286, 105, 142, 9, 7, 12, 8, 6)


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    sizes: tuple[int, ...]
    dim: int
    outputs: int
    merged: bool  # one table for all features, as its author wrote it
    sigmoid: bool
    norm: bool = False  # between dots and top, which no kernel of ours takes


class Recommender(nn.Module):
    """Two groups of dense features with a vector each; the answer is [rows, outputs]."""

    pairs: Tensor
    offsets: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        sizes = [sum(shape.sizes)] if shape.merged else shape.sizes
        self.tables = nn.ModuleList(nn.Embedding(size, shape.dim) for size in sizes)
        self.counts, self.prices = mlp(13, 40, shape.dim), mlp(5, shape.dim)
        vectors = len(shape.sizes) + 2
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", row * vectors + column)
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(shape.sizes[:-1])]))
        width = len(row) + 2 * shape.dim
        self.norm = nn.LayerNorm(width) if shape.norm else nn.Identity()
        self.top = nn.Sequential(mlp(width, 64, 33), nn.Linear(33, shape.outputs))

    def forward(self, ids: Tensor, counts: Tensor, prices: Tensor) -> Tensor:
        first, last = self.counts(counts), self.prices(prices)
        if self.shape.merged:
            looked = [self.tables[0](ids + self.offsets)]
        else:
            looked = [table(ids[:, i]).unsqueeze(1) for i, table in enumerate(self.tables)]
        vectors = torch.cat([first.unsqueeze(1), *looked, last.unsqueeze(1)], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        y: Tensor = self.top(self.norm(torch.cat([last, first, dots], dim=1)))
        return torch.sigmoid(y) if self.shape.sigmoid else y


def draw(shape: Shape, rows: int, seed: int = 0) -> Arrays:
    """Ids at both ends in the first two rows."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, shape.sizes, (rows, len(shape.sizes)), np.int64)
    ids[:1], ids[1:2] = 0, np.array(shape.sizes) - 1
    dense = {"counts": rng.exponential(1, (rows, 13)), "prices": rng.standard_normal((rows, 5))}
    return {"ids": ids, **{name: x.astype(np.float32) for name, x in dense.items()}}


def module(shape: Shape) -> nn.Module:
    torch.manual_seed(0)
    net = Recommender(shape)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2)  # answers that spread
    return net.eval()


def source_of(shape: Shape) -> Source:
    job = Job(
        name="other",
        model=partial(module, shape),
        inputs=(
            tensors.Tensor(
                name="ids", dtype="int64", shape=("rows", len(shape.sizes)), max=tuple(s - 1 for s in shape.sizes)
            ),
            tensors.Tensor(name="counts", dtype="float32", shape=("rows", 13)),
            tensors.Tensor(name="prices", dtype="float32", shape=("rows", 5)),
        ),
        calibration=partial(draw, shape, 3000),
        evaluate=lambda predict, split: 0.0,
        gate=Gate(max_drop=1),
        sla=SLA(),
    )  # fmt: skip
    return Source(job, Path(__file__))


def built(shape: Shape, folder: Path) -> tuple[Source, Candidate, Candidate]:
    """The source, its Q/DQ graph, and what FuseKernels made of that."""
    source, cache = source_of(shape), Cache(folder / "steps")
    (static,) = choose("onnxruntime-int8-static", ())
    return source, build(static, source, cache), build(EXPERT[1], source, cache)


def operators(candidate: Candidate) -> Counter[str]:
    return Counter(n.op_type for n in onnx.load(candidate.model).graph.node)


def answer(engine: str, candidate: Candidate, inputs: Arrays, **options: Any) -> Any:
    return engines.load(engine, candidate.model, options).infer(inputs)["score"]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            Shape(sizes=CRITEO, dim=16, outputs=3, merged=True, sigmoid=True),
            "378 dots of 28 vectors (26 tables, int8) in one node; the whole recommender in one node",
        ),
        (
            Shape(sizes=(40, 1, 7, 300), dim=9, outputs=1, merged=False, sigmoid=False),
            "15 dots of 6 vectors (4 tables, int8) in one node; the whole recommender in one node",
        ),
        (
            Shape(sizes=(50,), dim=8, outputs=1, merged=False, sigmoid=True),
            "3 dots of 3 vectors (1 tables, int8) in one node; the whole recommender in one node",
        ),
    ],
    ids=["26 tables in one, 3 answers", "4 tables, logits", "one feature"],
)
def test_it_becomes_one_node(shape: Shape, said: str, tmp_path: Path) -> None:
    source, static, fused = built(shape, tmp_path)
    assert fused.notes[-1].endswith(said)
    assert operators(fused) == {"FusedRecommender": 1}
    inputs = draw(shape, 1500, seed=1)
    have = answer("native", fused, inputs)
    assert have.shape == (1500, shape.outputs)
    for isa in RUNNABLE:
        np.testing.assert_array_equal(answer("native", fused, inputs, isa=isa), have)
        np.testing.assert_array_equal(answer("onnxruntime", fused, inputs, isa=isa), have)
    with torch.inference_mode():
        wanted = source.module(*map(torch.from_numpy, inputs.values())).numpy()
    unfused = answer("onnxruntime", static, inputs)
    gap, plain = np.abs(have - wanted), np.abs(unfused - wanted)
    assert gap.mean() < 0.1 * wanted.std()
    assert gap.max() <= 1.2 * plain.max()
    assert gap.mean() <= 1.2 * plain.mean()  # no farther off than the Q/DQ graph is
    assert np.abs(have - unfused).mean() < gap.mean() + plain.mean()
    for column in range(shape.outputs):
        assert np.corrcoef(have[:, column], wanted[:, column])[0, 1] > 0.99


def test_what_stands_between_keeps_it_in_parts(tmp_path: Path) -> None:
    shape = Shape(sizes=(40, 1, 7), dim=8, outputs=2, merged=False, sigmoid=True, norm=True)
    _, static, fused = built(shape, tmp_path)
    why = "no whole recommender: what it gives does not go into one FusedMlp (LayerNormalization takes it)"
    assert fused.notes[-1].endswith(why)
    assert operators(fused) == {"FusedMlp": 3, "EmbeddingInteraction": 1, "LayerNormalization": 1}
    inputs = draw(shape, 500, seed=1)
    have, unfused = (answer("onnxruntime", candidate, inputs) for candidate in (fused, static))
    assert np.abs(have - unfused).mean() < 0.1 * unfused.std()
    with pytest.raises(GraphError, match=r"native takes a graph of one FusedRecommender node, model\.onnx has 5 nodes"):
        answer("native", fused, inputs)


def test_what_hand_tuning_gained_is_told_of_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part beside the nodes it replaced, fed with what flows between; the whole with the requests themselves."""
    shape = Shape(sizes=(40, 1, 7), dim=8, outputs=1, merged=False, sigmoid=True)
    _, static, fused = built(shape, tmp_path)
    monkeypatch.setattr(gains, "_ROUNDS", 3)
    found = gains.gains(static.model, FuseKernels(), fused.model, {rows: [draw(shape, rows)] for rows in (1, 33)})
    kinds = ["FusedMlp", "FusedMlp", "FusedMlp", "EmbeddingInteraction", "FusedRecommender"]
    assert [part["operator"] for part in found] == kinds
    dots = 10
    layers = [13 * 40 + 40 * 8, 5 * 8, (dots + 16) * 64 + 64 * 33 + 33]
    assert sorted(part["operations_a_row"] for part in found[:3]) == sorted(2 * n for n in layers)
    assert [part["operations_a_row"] for part in found[3:]] == [2 * dots * 8, 2 * (sum(layers) + dots * 8)]
    for part in found:
        for figures in part["rows"].values():
            assert 0 < figures["low"] <= figures["ratio"] <= figures["high"]
            assert figures["peak_share"] > 0


def test_a_part_that_answers_otherwise_is_no_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = shapes.chain((5, 7, 3), "sigmoid")
    onnx.save(graphs.quantized(layers), tmp_path / "before.onnx")
    onnx.save(graphs.quantized(shapes.chain((5, 7, 3), "sigmoid", seed=1)), tmp_path / "other.onnx")
    requests: dict[int, list[Arrays]] = {4: [{"x": np.ones((4, 5), np.float32)}]}
    monkeypatch.setattr(gains, "_ROUNDS", 3)
    library = kernels.library(kernels.strongest())
    (part,) = gains.gains(tmp_path / "before.onnx", FuseKernels(), library, requests)
    assert part["operator"] == "FusedMlp"
    (wrong,) = gains.parts(tmp_path / "other.onnx", FuseKernels())
    (right,) = gains.parts(tmp_path / "before.onnx", FuseKernels())
    monkeypatch.setattr(gains, "parts", lambda *_: [replace(right, plain=wrong.plain)])
    with pytest.raises(MeasurementError, match="off the nodes it replaced"):
        gains.gains(tmp_path / "before.onnx", FuseKernels(), library, requests)
