"""PyTorch eager: the unoptimized model, the baseline of every leaderboard.

`path` is a JSON file {"factory": "module:function", "inputs": [names], "outputs": [names]}: weights come from the
user's own factory, so nothing is unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from redline.hooks import resolve
from redline.runtimes.engines import refuse_unknown
from redline.tensors import Arrays


class TorchEager:
    def __init__(self, module: torch.nn.Module, inputs: list[str], outputs: list[str]) -> None:
        self._module = module.eval()
        self._inputs, self._outputs = inputs, outputs

    def infer(self, inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            # A tensor can't be read-only, arrays straight off the wire are.
            answer = self._module(*(torch.from_numpy(np.require(inputs[n], requirements="W")) for n in self._inputs))
        answers = answer if isinstance(answer, tuple) else (answer,)
        return {name: a.numpy() for name, a in zip(self._outputs, answers, strict=True)}


def load(path: Path, options: Mapping[str, Any]) -> TorchEager:
    refuse_unknown("torch_eager", options, {"threads"})
    torch.set_num_threads(options.get("threads", 1))
    source = json.loads(path.read_text())
    return TorchEager(resolve(source["factory"])(), source["inputs"], source["outputs"])
