"""Triton's Python backend over a Redline engine: one execute() is one inference, where rows may be mixed.

Tensors cross by DLPack both ways: under numpy 2 this backend's as_numpy() gave silently wrong integers.
"""

import ctypes
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

# The backend marks a capsule as used by a name of its own; NumPy would then print an error for each.
_RENAME, _USED = ctypes.pythonapi.PyCapsule_SetName, b"used_dltensor"
_RENAME.argtypes = [ctypes.py_object, ctypes.c_char_p]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text())
        # PYTHONPATH does not reach Triton's stub.
        sys.path[:0] = [p for p in settings["python_paths"] if p not in sys.path]
        from redline.runtimes import engines

        self._engine = engines.load(settings["engine"], Path(settings["model"]), settings["engine_options"])
        self._inputs: dict[str, list[int]] = settings["inputs"]  # name → shape of a row
        self._outputs: dict[str, str] = settings["outputs"]  # name → dtype
        self._batchable: bool = settings["batchable"]

    def execute(self, requests: list[Any]) -> list[Any]:
        asked = [self._read(request) for request in requests]
        if len(asked) > 1 and self._batchable:
            with suppress(Exception):  # one of them is poisonous; alone, the others are not
                return self._answer_together(asked)
        return [self._answer(arrays) for arrays in asked]

    def _read(self, request: Any) -> dict[str, Any]:
        arrays = {}
        for name, row_shape in self._inputs.items():
            array = np.from_dlpack(pb.get_input_tensor_by_name(request, name))
            arrays[name] = array.reshape(len(array), *row_shape)
        return arrays

    def _answer_together(self, asked: list[dict[str, Any]]) -> list[Any]:
        rows = [len(next(iter(arrays.values()))) for arrays in asked]
        answers = self._engine.infer({name: np.concatenate([a[name] for a in asked]) for name in self._inputs})
        ends = np.cumsum(rows)
        return [
            self._response({n: a[e - r : e] for n, a in answers.items()}, r) for r, e in zip(rows, ends, strict=True)
        ]

    def _answer(self, arrays: dict[str, Any]) -> Any:
        try:
            return self._response(self._engine.infer(arrays), len(next(iter(arrays.values()))))
        except Exception as e:
            return pb.InferenceResponse(error=pb.TritonError(f"{type(e).__name__}: {e}"))

    def _response(self, answers: dict[str, Any], rows: int) -> Any:
        tensors = []
        for name, dtype in self._outputs.items():
            array = np.require(answers[name], dtype, ["C", "W"])
            capsule = array.reshape(rows, *(array.shape[1:] or (1,))).__dlpack__()
            tensors.append(pb.Tensor.from_dlpack(name, capsule))
            _RENAME(capsule, _USED)
        return pb.InferenceResponse(tensors)
