"""Quantization-aware fine-tuning under the static pass's own arithmetic: it trains for what QuantizeStatic writes.

Each Linear and Conv rounds its weights (int8, symmetric, a scale a channel), its input and its output (int8, symmetric,
one scale each, by the widest value of the calibration rows); gradients pass straight through the rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from redline.errors import GraphError
from redline.optimize.passes import retrained
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    import torch
    from torch import nn

    from redline.optimize.build import Source

_CHUNK_ROWS = 4096
_STEPS = 127  # int8, symmetric: a scale is the widest value / 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Qat:
    """Fine-tune under INT8 rounding; ExportOnnx and QuantizeStatic come after it."""

    WRITES: ClassVar[str] = retrained.WEIGHTS
    RETRAINS: ClassVar[bool] = True

    rows: int = 65_536  # calibration rows that give the ranges, as in QuantizeStatic

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be above 0, got {self.rows}")


@apply.register(Qat)
def _(config: Qat, before: Path | None, source: "Source", out: Path) -> Verdict:
    import torch

    module = retrained.module_of(source, before, "Qat")
    inputs = [torch.from_numpy(source.calibration[t.name][: config.rows]) for t in source.job.inputs]
    with fake_quantized(module, inputs) as layers:
        retrained.finetune(source, module)
    retrained.save(module, out)
    return Verdict(True, f"{len(layers)} layers fine-tuned under INT8, ranges from {len(inputs[0]):,} rows")


@contextmanager
def fake_quantized(model: "nn.Module", inputs: "Sequence[torch.Tensor]") -> Iterator[list[str]]:
    """Inside, the model rounds as QuantizeStatic will and can be trained; afterwards it is plain, with the new weights.

    inputs: calibration rows, as the model takes them. Gives the names of the layers that round.

    Raises:
        GraphError: no Linear or Conv is reached.
    """
    ranges = _ranges(model, inputs)
    if not ranges:
        raise GraphError("nothing to quantize: calibration rows reach no Linear or Conv")
    try:
        for layer, widest in ranges.items():
            layer.forward = partial(_forward, layer, widest)  # survives deepcopy, which binds it to the copy
        yield [name for name, layer in model.named_modules() if layer in ranges]
    finally:
        for layer in ranges:
            del layer.forward


def _ranges(model: "nn.Module", inputs: "Sequence[torch.Tensor]") -> "dict[Any, tuple[float, float]]":
    """Widest input and output of every Linear and Conv that the rows reach."""
    import torch
    from torch import nn

    found: dict[Any, tuple[float, float]] = {}

    def watch(layer: Any, x: "tuple[torch.Tensor]", y: "torch.Tensor") -> None:
        if _adds_bias_after(layer, x[0]):
            y = y - layer.bias
        now = (float(x[0].abs().max()), float(y.abs().max()))
        found[layer] = tuple(map(max, found.get(layer, now), now))  # type: ignore[assignment]

    training, plain = model.training, {kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    layers = [m for m in model.modules() if type(m).forward in plain]  # what a subclass computes is not known
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            model.eval()
            for rows in zip(*(torch.split(tensor, _CHUNK_ROWS) for tensor in inputs), strict=True):
                model(*rows)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def _adds_bias_after(layer: Any, x: "torch.Tensor") -> bool:
    """Whether a Linear exports as MatMul, whose product is rounded before the bias, and not as one Gemm."""
    from torch import nn

    return isinstance(layer, nn.Linear) and layer.bias is not None and x.ndim != 2


def _forward(layer: Any, widest: tuple[float, float], x: "torch.Tensor") -> "torch.Tensor":
    from torch import nn
    from torch.nn.functional import linear

    x, weight = _rounded(x, widest[0]), _rounded_by_channel(layer.weight)
    if not isinstance(layer, nn.Linear):
        return _rounded(layer._conv_forward(x, weight, layer.bias), widest[1])
    if _adds_bias_after(layer, x):
        return _rounded(linear(x, weight), widest[1]) + layer.bias
    return _rounded(linear(x, weight, layer.bias), widest[1])


def _rounded(x: "torch.Tensor", widest: float) -> "torch.Tensor":
    import torch

    return torch.fake_quantize_per_tensor_affine(x, (widest or _STEPS) / _STEPS, 0, -128, 127)


def _rounded_by_channel(weight: "torch.Tensor") -> "torch.Tensor":
    import torch

    scale = weight.detach().flatten(1).abs().amax(1) / _STEPS
    scale = torch.where(scale > 0, scale, 1.0)  # a dead channel
    return torch.fake_quantize_per_channel_affine(
        weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -127, 127
    )
