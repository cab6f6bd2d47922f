"""Structured pruning: whole channels leave with all that is tied to them, so every engine runs the smaller shapes.

Torch-Pruning's dependency graph says what is tied. It guesses at operators that it doesn't know, so each group is tried
on real inputs before it is believed: dropping the channels must answer as setting them to zero does.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from redline.errors import GraphError, missing_extra
from redline.optimize.passes import retrained
from redline.optimize.passes.registry import apply
from redline.verdict import Verdict

if TYPE_CHECKING:
    import torch
    from torch import nn

    from redline.optimize.build import Source

_TRACED_ROWS = 64
_TOLERANCE = 1e-4  # largest |dropped - zeroed|, relative to the answers' scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Drop the hidden channels of least L2 norm, then fine-tune."""

    WRITES: ClassVar[str] = retrained.WEIGHTS
    RETRAINS: ClassVar[bool] = True

    ratio: float = 0.5  # of each layer's channels, in (0, 1)
    round_to: int = 8  # the channels that stay are a multiple of it, as vector units and Tensor Cores like

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio of channels to drop must lie between 0 and 1, got {self.ratio}")
        if self.round_to < 1:
            raise ValueError(f"round_to must be above 0, got {self.round_to}")

    def kept(self, channels: int) -> int:
        return max(self.round_to, int(channels * (1 - self.ratio) / self.round_to + 0.5) * self.round_to)


@dataclass(slots=True)
class Pruned:
    """A smaller copy of a model, and what became of each of its layers."""

    module: "nn.Module"
    widths: dict[str, tuple[int, int]] = field(default_factory=dict)  # layer → channels before, after
    left: dict[str, str] = field(default_factory=dict)  # layer → why it kept its channels

    def __str__(self) -> str:
        narrowed = ", ".join(f"{name} {before} → {after}" for name, (before, after) in self.widths.items())
        layers: dict[str, list[str]] = {}
        for name, why in self.left.items():
            layers.setdefault(why, []).append(name)
        reasons = "; ".join(f"{', '.join(names)} ({why})" for why, names in layers.items())
        return (narrowed or "no layer narrowed") + (f"; left: {reasons}" if reasons else "")


@apply.register(Prune)
def _(config: Prune, before: Path | None, source: "Source", out: Path) -> Verdict:
    import torch

    module = retrained.module_of(source, before, "Prune")
    inputs = [torch.from_numpy(source.calibration[t.name][:_TRACED_ROWS]) for t in source.job.inputs]
    pruned = prune(module, inputs, ratio=config.ratio, round_to=config.round_to)
    if not pruned.widths:
        raise GraphError(f"nothing to prune: {pruned}")
    retrained.finetune(source, pruned.module)
    retrained.save(pruned.module, out)
    count, now = (sum(p.numel() for p in m.parameters()) for m in (module, pruned.module))
    return Verdict(True, f"{pruned}; parameters {count:,} → {now:,}, fine-tuned")


def prune(model: "nn.Module", inputs: "Sequence[torch.Tensor]", *, ratio: float = 0.5, round_to: int = 8) -> Pruned:
    """A copy of the model without `ratio` of its hidden Linear and Conv channels; fine-tune it next.

    inputs: a few real rows, as the model takes them.
    """
    config = Prune(ratio=ratio, round_to=round_to)
    found = Pruned(deepcopy(model).requires_grad_())  # the graph is traced by autograd
    for name, layer in model.named_modules():
        if not _makes_channels(layer) or name in found.widths | found.left:
            continue
        trial = deepcopy(found.module)
        tied, why = _drop(trial, name, tuple(inputs), config)
        if why:
            found.left |= dict.fromkeys(tied, why)
        else:
            found.widths |= {t: (_width(model, t), _width(trial, t)) for t in tied}
            found.module = trial
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, parameter in found.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    found.module.train(model.training)
    return found


def _makes_channels(layer: Any) -> bool:
    from torch import nn

    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _narrows(layer: Any) -> bool:
    """Whether its widths can be read back from its tensors (retrained.load)."""
    from torch import nn

    plain = getattr(layer, "groups", 1) in (1, getattr(layer, "in_channels", 1))
    return (_makes_channels(layer) and plain) or isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)


def _width(model: "nn.Module", layer: str) -> int:
    weight: Any = model.get_submodule(layer).weight
    return int(weight.shape[0])


def _drop(model: "nn.Module", root: str, inputs: "tuple[torch.Tensor, ...]", config: Prune) -> tuple[list[str], str]:
    """Drop channels of the layer `root` and all that is tied to them, in place: which layers, and why not.

    With a reason why not, the model is spoilt.
    """
    try:
        import torch_pruning
    except ModuleNotFoundError as e:
        raise missing_extra("optimize", "pruning (torch-pruning)") from e
    layer: Any = model.get_submodule(root)
    graph = torch_pruning.DependencyGraph().build_dependency(model.eval(), inputs, verbose=False)
    if layer not in graph.module2node:
        return [root], "not on a traced path from inputs to answers"
    narrow, channels = graph.get_pruner_of_module(layer).prune_out_channels, _width(model, root)
    every = graph.get_pruning_group(layer, narrow, list(range(channels)))
    names = {module: name for name, module in model.named_modules()}
    tied = [names[t] for t, made, _ in _members(graph, every) if made and _makes_channels(t)]
    if others := [names.get(t, "a bare parameter") for t, _, _ in _members(graph, every) if not _narrows(t)]:
        return tied, f"tied to {others[0]}" + (f" and {len(others) - 1} more" if others[1:] else "")
    if (kept := config.kept(channels)) >= channels:
        return tied, f"{channels} wide, none to spare in steps of {config.round_to}"
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)(every)
    group = graph.get_pruning_group(layer, narrow, importance.argsort()[: channels - kept].tolist())
    _zero(graph, group)
    wanted = _answers(model, inputs)
    try:
        group.prune()
        return tied, _gap(_answers(model, inputs), wanted)
    except (RuntimeError, IndexError, ValueError) as e:
        return tied, f"the model fails without them: {str(e).splitlines()[0]}"


def _members(graph: Any, group: Any) -> Iterator[tuple[Any, bool, list[int]]]:
    """The model's own layers and parameters in a group: layer, whether it makes the channels or reads them, which."""
    own = {*graph.model.modules(), *graph.model.parameters()}
    for dep, channels in group:
        if dep.layer in own:
            yield dep.layer, graph.is_out_channel_pruning_fn(dep.handler), channels


def _zero(graph: Any, group: Any) -> None:
    """Silence a group's channels where they are made and where they are read."""
    import torch

    with torch.no_grad():
        for layer, made, channels in _members(graph, group):
            if not made:
                layer.weight[:, channels] = 0
                continue
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor[channels] = 0


def _answers(model: "nn.Module", inputs: "tuple[torch.Tensor, ...]") -> "list[torch.Tensor]":
    import torch

    with torch.no_grad():
        answer = model(*inputs)
    return list(answer) if isinstance(answer, tuple) else [answer]


def _gap(have: "list[torch.Tensor]", wanted: "list[torch.Tensor]") -> str:
    """Why dropping channels is not what zeroing them is; "" where it is."""
    for a, b in zip(have, wanted, strict=True):
        if a.shape != b.shape:
            return "they are the model's answer"
        gap = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
        if not gap <= _TOLERANCE:
            return f"dropping them is not what zeroing them is: answers differ by {gap:.2g}"
    return ""
