"""What the tests of retraining passes share: the tiny job with a `finetune`, and jobs around any module."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tiny_job import write_job
from torch import nn

from redline.optimize.build import Source
from redline.optimize.job import load_job
from redline.tensors import Tensor

FINETUNE = (
    "job = Job(",
    """def finetune(model):
    order = torch.randperm(2000)  # before load_model, which seeds
    arrays = [torch.from_numpy(a) for a in draw(2000, 9).values()]
    target = load_model()(*arrays).detach()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for rows in order.split(100):
        loss = ((model(*(a[rows] for a in arrays)) - target[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


job = Job(""",
)
TUNABLE = (FINETUNE, ("recipes=(),", "recipes=(), finetune=finetune,"))


def tunable(folder: Path) -> Source:
    """The tiny job with a `finetune` that learns the source model's answers."""
    path = write_job(folder, *TUNABLE)
    return Source(load_job(path), path)


def source_of(module: nn.Module, row_shape: tuple[int, ...], folder: Path, tune: Callable[[nn.Module], None]) -> Source:
    """A job around this module with one input x: [rows, *row_shape]."""
    path = write_job(folder)
    x = np.random.default_rng(0).standard_normal((500, *row_shape)).astype(np.float32)
    inputs = (Tensor(name="x", dtype="float32", shape=("rows", *row_shape)),)
    job = replace(load_job(path), model=lambda: module, inputs=inputs, calibration=lambda: {"x": x}, finetune=tune)
    return Source(job, path)


def rows_of(source: Source, count: int = 64) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(source.calibration[t.name][:count]) for t in source.job.inputs)
