"""The job to copy: redline optimize examples/recommender/job.py"""

from collections.abc import Callable

import numpy as np
from dlrm import DLRM
from movielens import DENSE, GENRES, SIZES, auc, requests, splits
from safetensors.torch import load_file
from torch import nn
from train import distill

from redline import SLA, Gate, Job, Tensor
from redline.errors import JobError
from redline.machine import cache_folder
from redline.tensors import Arrays


def load_model() -> DLRM:
    path = cache_folder() / "recommender" / "dlrm.safetensors"
    if not path.exists():
        raise JobError(f"no weights at {path}; run `python examples/recommender/train.py`")
    model = DLRM(tuple(SIZES.values()), len(GENRES), len(DENSE))
    model.load_state_dict(load_file(path))
    return model.eval()


def calibration() -> Arrays:
    return {name: array[:65536] for name, array in splits()["train"][0].items()}


def evaluate(predict: Callable[[Arrays], Arrays], split: str) -> float:
    arrays, labels = splits()[split]
    blocks = [{k: a[i : i + 4096] for k, a in arrays.items()} for i in range(0, len(labels), 4096)]
    return auc(labels, np.concatenate([predict(block)["score"] for block in blocks]))


def finetune(model: nn.Module) -> None:
    distill(model, load_model())


job = Job(
    name="recommender",
    model=load_model,
    inputs=(
        Tensor(
            name="ids",
            dtype="int64",
            shape=("rows", len(SIZES)),
            max=tuple(size - 1 for size in SIZES.values()),
            columns=tuple(SIZES),
        ),
        Tensor(name="genres", dtype="float32", shape=("rows", len(GENRES)), columns=GENRES),
        Tensor(name="dense", dtype="float32", shape=("rows", len(DENSE)), columns=DENSE),
    ),
    outputs=("score",),
    calibration=calibration,
    requests=requests,
    evaluate=evaluate,
    finetune=finetune,
    metric="auc",
    gate=Gate(max_drop=0.002, floor=0.775),
    sla=SLA(p99="50ms", rate=400, rows=500),
)
