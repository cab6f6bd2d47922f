"""QAT: what it trains under is what QuantizeStatic writes, and what it leaves is a plain model."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from retraining import rows_of, source_of, tunable
from safetensors.torch import save_model
from torch import nn

from redline.errors import GraphError
from redline.optimize.build import Cache, Source, build
from redline.optimize.passes import ExportOnnx, MergeEmbeddings, Prune, Qat, QuantizeStatic, apply
from redline.optimize.passes.qat import fake_quantized
from redline.optimize.passes.retrained import load
from redline.optimize.recipe import Recipe

STATIC = (ExportOnnx(), MergeEmbeddings(), QuantizeStatic())
DOCS = Path(__file__).parents[2] / "docs" / "optimize.md"


def recipe(*passes: Any) -> Recipe:
    return Recipe(name="some", passes=passes, engine="onnxruntime")


@pytest.fixture
def tunable_source(clean_process: Path) -> Source:
    return tunable(clean_process)


def dialect(graph: Path) -> dict[str, tuple[Any, ...]]:
    """Every node with its attributes, and type, shape and (of zero points) value of each constant that it reads."""
    found = onnx.load(graph).graph
    constants = {i.name: numpy_helper.to_array(i) for i in found.initializer}
    nodes = {}
    for node in found.node:
        reads = [(c.dtype.str, c.shape) if (c := constants.get(i)) is not None else i for i in node.input]
        zero = constants[node.input[2]].any() if node.op_type in ("QuantizeLinear", "DequantizeLinear") else None
        attributes = sorted((a.name, onnx.helper.get_attribute_value(a)) for a in node.attribute)
        nodes[node.name] = (node.op_type, attributes, reads, zero, list(node.output))
    return nodes


def test_the_dialect_is_the_static_pass_own(tunable_source: Source, steps: Path) -> None:
    cache = Cache(steps / "steps")
    static, qat = (build(recipe(*passes), tunable_source, cache) for passes in (STATIC, (Qat(), *STATIC)))
    assert qat.notes[0] == "Qat: 2 layers fine-tuned under INT8, ranges from 4,000 rows"
    assert qat.notes[2:] == static.notes[1:]
    assert dialect(qat.model) == dialect(static.model)
    marks = [n for n in dialect(static.model).values() if n[0] in ("QuantizeLinear", "DequantizeLinear")]
    assert len(marks) == 10
    assert not any(zero for _, _, _, zero, _ in marks)
    assert not np.array_equal(weight(qat.model), weight(static.model))  # but it was trained


def weight(graph: Path) -> Any:
    return next(
        numpy_helper.to_array(i) for i in onnx.load(graph).graph.initializer if i.name == "body.0.weight_quantized"
    )


NETS: dict[str, tuple[tuple[int, ...], Any]] = {
    "Gemm": ((8,), lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16, bias=False), nn.Linear(16, 4))),
    "MatMul and Add": ((5, 8), lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))),
    "Conv": (
        (3, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * 36, 4),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NETS)
def test_its_arithmetic_is_that_of_the_graph(kind: str, clean_process: Path, steps: Path) -> None:
    """The test that fails if the two drift apart: same weights, same rounding, row by row."""
    row_shape, make = NETS[kind]
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        module[0].weight[3] = 0  # a dead channel
    source = source_of(module, row_shape, clean_process, lambda module: None)
    graph = build(recipe(ExportOnnx(), QuantizeStatic()), source, Cache(steps / "steps")).model
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the graph as it is written
    (wanted,) = ort.InferenceSession(graph, options).run(None, {"x": source.calibration["x"]})
    rows = rows_of(source, 500)
    with torch.no_grad():
        plain = module(*rows).numpy()
        with fake_quantized(module, rows) as layers:
            rounded = module(*rows).numpy()
        np.testing.assert_array_equal(module(*rows).numpy(), plain)
    assert len(layers) == sum(hasattr(m, "weight") for m in module)
    lost = np.abs(wanted - plain).mean()
    assert np.abs(rounded - wanted).mean() < 0.005 * lost  # a value on the edge between two steps may fall either way
    assert np.abs(rounded - wanted).max() < 5 * lost


def test_inside_it_trains_and_outside_it_is_plain() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)), torch.randn(256, 8)
    names, before = list(model.state_dict()), deepcopy(model)
    with pytest.raises(ZeroDivisionError), fake_quantized(model, (x,)):
        twin = deepcopy(model)  # as a loop that averages weights makes one
        assert list(model.state_dict()) == names
        model(x).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        with torch.no_grad():
            apart = twin(x)
            for p in model.parameters():
                p.sub_(0.1 * p.grad)  # type: ignore[operator]
            assert not torch.equal(model(x), apart)
            torch.testing.assert_close(twin(x), apart, rtol=0, atol=0)  # the copy runs on its own weights
        raise ZeroDivisionError
    assert model.training
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())
    assert not torch.equal(model(x), before(x))


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_the_fine_tune_runs_under_the_rounding(tmp_path: Path) -> None:
    steps: list[int] = []
    module = nn.Sequential(Doubled(8, 16), nn.Linear(16, 1))

    def count(model: nn.Module) -> None:
        steps.append(len(model(*rows_of(source, 500)).unique()))

    source = source_of(module, (8,), tmp_path, count)
    said = apply(Qat(), None, source, tmp_path / "x.safetensors")
    assert said.why == "1 layers fine-tuned under INT8, ranges from 500 rows"  # a layer of one's own is left alone
    count(module)
    assert steps[0] < 256 < 400 < steps[1]


def test_pruning_then_qat_is_one_recipe(tunable_source: Source, steps: Path) -> None:
    candidate = build(recipe(Prune(), Qat(), *STATIC), tunable_source, Cache(steps / "steps"))
    assert candidate.notes[0].startswith("Prune: body.0 32 → 16")
    assert (weight(candidate.model).shape, weight(candidate.model).dtype) == ((16, 28), np.int8)


def test_nothing_to_quantize(tmp_path: Path) -> None:
    source = source_of(nn.Softmax(dim=1), (8,), tmp_path, lambda module: None)
    with pytest.raises(GraphError, match="calibration rows reach no Linear or Conv"):
        apply(Qat(), None, source, tmp_path / "x.safetensors")


def test_bounds() -> None:
    with pytest.raises(ValueError, match="rows must be above 0"):
        Qat(rows=0)


def test_three_lines_in_a_loop_of_your_own(tmp_path: Path, tunable_source: Source) -> None:
    """The snippet in the docs, as it stands there."""
    (snippet,) = (s for s in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if "fake_quantized" in s)
    source = tunable_source
    found: dict[str, Any] = {
        "model": deepcopy(source.module), "inputs": rows_of(source, 4000), "train": source.job.finetune,
        "save_model": save_model, "path": str(tmp_path / "small.safetensors"),
    }  # fmt: skip
    exec(snippet, found)  # noqa: S102 - our own docs
    assert found["model"].body[0].weight.shape == (16, 28)
    back = load(type(source.module)(), Path(found["path"])).eval()
    with torch.no_grad():
        x = rows_of(source)
        torch.testing.assert_close(back(*x), found["model"].eval()(*x), rtol=0, atol=0)
        assert (back(*x) - source.module(*x)).abs().max() < 0.2
