"""A tiny job as text: three tables and a dense part, labels drawn from the model's own answers (AUC near 0.8)."""

from pathlib import Path

JOB = """
import numpy as np
import torch
from torch import nn

from redline import SLA, Gate, Job, Recipe, Tensor

SIZES = (40, 30, 20)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 8) for size in SIZES)
        self.body = nn.Sequential(nn.Linear(28, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids, dense):
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return torch.sigmoid(self.body(torch.cat([*rows, dense], dim=1)).squeeze(1))


def load_model():
    torch.manual_seed(3)
    net = Net()
    with torch.no_grad():
        for table in net.tables:
            table.weight.mul_(0.3)
        net.body[0].weight.mul_(2.0)
        net.body[2].weight.mul_(8.0)
    return net


def draw(rows, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, SIZES, (rows, 3), np.int64)
    return {"ids": ids, "dense": rng.standard_normal((rows, 4)).astype(np.float32)}


def calibration():
    arrays = draw(4000, 0)
    return arrays


def requests(count, rows):
    return [draw(rows, 100 + i) for i in range(count)]


def evaluate(predict, split):
    seed = {"validation": 1, "test": 2}[split]
    arrays = draw(4000, seed)
    with torch.inference_mode():
        chance = load_model().eval()(*map(torch.from_numpy, arrays.values())).numpy()
    labels = np.random.default_rng(seed).random(4000) < chance
    rank = np.argsort(np.argsort(predict(arrays)["score"]))
    auc = (rank[labels].mean() - (labels.sum() - 1) / 2) / (~labels).sum()
    return float(auc)


job = Job(
    name="tiny",
    model=load_model,
    inputs=(
        Tensor(name="ids", dtype="int64", shape=("rows", 3), max=(39, 29, 19), columns=("user", "item", "shop")),
        Tensor(name="dense", dtype="float32", shape=("rows", 4)),
    ),
    outputs=("score",),
    calibration=calibration,
    requests=requests,
    evaluate=evaluate,
    metric="auc",
    gate=Gate(max_drop=0.005),
    sla=SLA(p99="50ms", rate=50, rows=20),
    recipes=(),
)
"""


def write_job(folder: Path, *changes: tuple[str, str], name: str = "job") -> Path:
    """The job as folder/job.py, with each (old, new) text replaced."""
    text = JOB
    for old, new in changes:
        assert old in text, f"{old!r} is not in the tiny job"
        text = text.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(text)
    return path
