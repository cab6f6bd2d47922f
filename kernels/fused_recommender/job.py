"""The benchmark's DLRM as a job: 13 dense features, 26 tables of 10,000 x 32, 351 pairwise dots; random weights.

Its metric is the correlation with its own fp32 answers, so what quantizing costs is a figure without labels.
"""

from functools import cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from redline import SLA, Gate, Job, Tensor
from redline.optimize.job import Predict
from redline.tensors import Arrays

TABLES, ROWS, DIM, DENSE = 26, 10_000, 32, 13
BOTTOM, HIDDEN = (DENSE, 256, 128, DIM), (512, 256, 128, 1)
PAIRS = (TABLES + 1) * TABLES // 2
TOP = (DIM + PAIRS, *HIDDEN)
# A row's: every multiply-add of the layers and the dots is two.
OPERATIONS = 2 * (sum(k * n for widths in (BOTTOM, TOP) for k, n in pairwise(widths)) + PAIRS * DIM)
JUDGED_ROWS = 65_536


class SyntheticDLRM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ROWS, DIM) for _ in range(TABLES))
        self.bottom, self.top = _mlp(BOTTOM), _mlp(TOP)[:-1]
        row, column = torch.tril_indices(TABLES + 1, TABLES + 1, offset=-1)
        self.register_buffer("pairs", row * (TABLES + 1) + column, persistent=False)

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense)
        vectors = torch.stack([bottom, *(table(ids[:, i]) for i, table in enumerate(self.tables))], dim=1)
        dots = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        together = torch.cat([bottom, dots.index_select(1, self.pairs)], dim=1)  # type: ignore[arg-type]
        return torch.sigmoid(self.top(together)).squeeze(1)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(*(m for k, n in pairwise(widths) for m in (nn.Linear(k, n), nn.ReLU())))


@cache
def load_model() -> SyntheticDLRM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SyntheticDLRM().eval()


def draw(rows: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, ROWS, (rows, TABLES), np.int64)
    return {"ids": ids, "dense": rng.standard_normal((rows, DENSE)).astype(np.float32)}


def calibration() -> Arrays:
    return draw(JUDGED_ROWS, 0)


def requests(count: int, rows: int) -> list[Arrays]:
    return [draw(rows, 100 + i) for i in range(count)]


@cache
def answered(seed: int) -> tuple[Arrays, NDArray[np.float32]]:
    """Rows that nothing was calibrated on, and the model's own fp32 answers."""
    arrays = draw(JUDGED_ROWS, seed)
    with torch.inference_mode():
        return arrays, load_model()(*map(torch.from_numpy, arrays.values())).numpy()


def evaluate(predict: Predict, split: str) -> float:
    arrays, wanted = answered({"validation": 1, "test": 2}[split])
    return float(np.corrcoef(predict(arrays)["score"], wanted)[0, 1])


job = Job(
    name="synthetic-dlrm",
    model=load_model,
    inputs=(
        Tensor(name="ids", dtype="int64", shape=("rows", TABLES), max=(ROWS - 1,) * TABLES),
        Tensor(name="dense", dtype="float32", shape=("rows", DENSE)),
    ),
    calibration=calibration,
    requests=requests,
    evaluate=evaluate,
    metric="correlation",
    gate=Gate(max_drop=0.005),
    sla=SLA(p99="50ms", rate=400, rows=512),
)
