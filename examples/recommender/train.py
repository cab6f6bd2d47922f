"""Train the DLRM on MovieLens-100k: python examples/recommender/train.py [--fresh] [--seed N]"""

import argparse
import hashlib
import json
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dlrm import DLRM
from movielens import DENSE, GENRES, SIZES, WHEEL_SHA256, auc, splits
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from redline.machine import cache_folder
from redline.tensors import Arrays

EPOCHS, PATIENCE, BATCH = 20, 3, 1024
DISTILL_EPOCHS = 6
RATE = 1e-3
TABLE_RATE, TABLE_DECAY = 1e-2, 3e-4  # a row of a table is seen rarely: larger steps, pulled back to zero by L2
AVERAGE = 0.99  # what is measured and kept is the running average of the weights


def tensors(arrays: Arrays) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(arrays[name]) for name in ("ids", "genres", "dense"))


@torch.inference_mode()
def measure(model: DLRM, split: str) -> float:
    arrays, labels = splits()[split]
    return auc(labels, model.eval()(*tensors(arrays)).numpy())


def train_epoch(model: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer, target: Tensor) -> float:
    """One pass over the training rows in random order; the mean loss."""
    inputs = tensors(splits()["train"][0])
    total = 0.0
    model.train()
    for rows in torch.split(torch.randperm(len(target)), BATCH):
        loss = binary_cross_entropy(model(*(t[rows] for t in inputs)), target[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - AVERAGE)
        total += loss.item() * len(rows)
    return total / len(target)


def train(seed: int) -> tuple[DLRM, float]:
    """The averaged model of the epoch with the best validation AUC, and that AUC."""
    torch.manual_seed(seed)
    model = DLRM(tuple(SIZES.values()), len(GENRES), len(DENSE))
    averaged = deepcopy(model)
    target = torch.from_numpy(splits()["train"][1].astype(np.float32))
    tables = [*model.tables.parameters(), *model.genres.parameters()]
    layers = [*model.bottom.parameters(), *model.top.parameters()]
    groups: list[dict[str, Any]] = [
        {"params": tables, "lr": TABLE_RATE, "weight_decay": TABLE_DECAY},
        {"params": layers},
    ]
    optimizer = torch.optim.Adam(groups, RATE, fused=True)
    best, best_epoch, kept = 0.0, 0, averaged
    for epoch in range(1, EPOCHS + 1):
        loss = train_epoch(model, averaged, optimizer, target)
        validation = measure(averaged, "validation")
        print(f"epoch {epoch:2}  loss {loss:.4f}  validation AUC {validation:.4f}", flush=True)
        if validation > best:
            best, best_epoch, kept = validation, epoch, deepcopy(averaged)
        elif epoch - best_epoch >= PATIENCE:
            break
    return kept, best


def distill(model: nn.Module, teacher: nn.Module) -> None:
    """Teach the model the teacher's answers to the training rows; labels would be learned by heart in an epoch."""
    with torch.no_grad():
        target = teacher.eval()(*tensors(splits()["train"][0]))
    averaged = deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    for _ in range(DISTILL_EPOCHS):
        train_epoch(model, averaged, optimizer, target)
    model.load_state_dict(averaged.state_dict())


def fingerprint(seed: int) -> str:
    """Changes with anything that could change the weights."""
    code = b"".join(Path(__file__).with_name(n).read_bytes() for n in ("train.py", "dlrm.py", "movielens.py"))
    return hashlib.sha256(code + f"{WHEEL_SHA256} {seed} {torch.__version__}".encode()).hexdigest()


def trained(path: Path, source: str) -> str:
    """The test AUC of the weights at path, or "" if they are not from this source."""
    if not path.exists():
        return ""
    with safe_open(path, "pt") as weights:
        made: dict[str, str] = json.loads((weights.metadata() or {}).get("made", "{}"))
    return made.get("test_auc", "") if made.get("source") == source else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="train even if these weights exist")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    path, source = cache_folder() / "recommender" / "dlrm.safetensors", fingerprint(args.seed)
    if not args.fresh and (known := trained(path, source)):
        print(f"{path} is up to date (test AUC {known}); --fresh trains anew")
        return
    model, validation = train(args.seed)
    test = measure(model, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    made = {"source": source, "validation_auc": f"{validation:.4f}", "test_auc": f"{test:.4f}"}
    save_file(model.state_dict(), temporary, {"made": json.dumps(made)})  # one key: safetensors shuffles several
    temporary.replace(path)
    print(f"validation AUC {validation:.4f}  test AUC {test:.4f}  → {path}")


if __name__ == "__main__":
    main()
