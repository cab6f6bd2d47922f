"""Weights that a retraining pass leaves: plain tensors, read back into the source model at the widths they have."""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline.errors import GraphError, JobError

if TYPE_CHECKING:
    from torch import nn

    from redline.optimize.build import Source

WEIGHTS = "model.safetensors"
_SEED = 0  # whatever ran before, fine-tuning starts from here


def module_of(source: "Source", before: Path | None, what: str) -> "nn.Module":
    """A copy of the source model, with the weights that an earlier retraining pass left at `before`, if any.

    Raises:
        GraphError: what lies there is no weights.
    """
    module = deepcopy(source.module)
    if before is None:
        return module
    if before.name != WEIGHTS:
        raise GraphError(f"{what} takes the model, not a graph: put it before the passes that make or change one")
    return load(module, before)


def load(module: "nn.Module", path: Path) -> "nn.Module":
    """Fill the module from a file of tensors, narrowing the layers whose tensors are narrower there.

    Raises:
        GraphError: the file holds no tensors, or another model's.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    tensors: dict[str, Any] = module.state_dict(keep_vars=True)
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as e:
        raise GraphError(f"{path.name} holds no tensors that can be read: {e}") from e
    narrower = [name for name, shape in shapes.items() if name in tensors and list(tensors[name].shape) != shape]
    for name in narrower:
        tensors[name].data = torch.empty(shapes[name], dtype=tensors[name].dtype)
    for layer in {name.rpartition(".")[0] for name in narrower}:
        _follow_weights(module.get_submodule(layer))
    try:
        load_model(module, path)
    except RuntimeError as e:
        raise GraphError(f"{path.name} is of another model: {' '.join(str(e).split())}") from e
    return module


def _follow_weights(layer: "nn.Module") -> None:
    """What a layer says of its widths is what its tensors have."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        layer.out_channels, per_group = layer.weight.shape[:2]
        if layer.groups > 1 and per_group == 1:  # depthwise
            layer.groups = layer.out_channels
        layer.in_channels = per_group * layer.groups
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        layer.num_features = len(layer.running_mean if layer.running_mean is not None else layer.weight)


def finetune(source: "Source", module: "nn.Module") -> None:
    """Train the module on, as the job says, always from the same random state.

    Raises:
        JobError: it failed, or left weights that are not finite.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(_SEED)
        source.job.call("finetune", module)
    module.eval()
    if bad := [name for name, p in module.named_parameters() if not p.isfinite().all()]:
        raise JobError(f"job {source.job.name}: finetune left weights that are not finite: {bad}")


def save(module: "nn.Module", out: Path) -> None:
    from safetensors.torch import save_model

    save_model(module, str(out))
