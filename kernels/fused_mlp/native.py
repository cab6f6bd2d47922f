"""The C entry of FusedMlp from Python, without ONNX Runtime, for tests; and Peak, the roofline of every figure."""

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.common.formats import Precision, dtype_of, format_code
from redline.kernels.fused_mlp.operator import ACTIVATIONS, Layer
from redline.tensors import Arrays


class _Layer(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("weight_scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("input_scale", ctypes.c_float),
        ("activation", ctypes.c_int32),
        ("format", ctypes.c_int32),
    )


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    library.redline_fused_mlp_create.restype = pointer
    library.redline_fused_mlp_create.argtypes = (pointer, whole, ctypes.c_char_p, whole)
    library.redline_fused_mlp_run.restype = ctypes.c_bool
    library.redline_fused_mlp_run.argtypes = (pointer, pointer, whole, pointer)
    library.redline_fused_mlp_free.argtypes = (pointer,)
    library.redline_peak.restype = whole
    library.redline_peak.argtypes = (ctypes.c_int32, whole)
    return library


class Peak:
    """The roofline, as an engine that a benchmark times beside others: the format's dot on registers alone."""

    def __init__(self, library: Path, precision: Precision = "int8", *, steps: int = 20_000) -> None:
        self._run = partial(load(library).redline_peak, format_code(dtype_of(precision)), steps)
        self.operations = 2 * int(self._run())  # 0 where it can't be told

    def infer(self, inputs: Arrays) -> Arrays:
        self._run()
        return {}


class FusedMlp:
    def __init__(self, library: Path, layers: Sequence[Layer]) -> None:
        self._library = load(library)
        self._k, self._n = layers[0].weight.shape[1], layers[-1].weight.shape[0]
        held = [[np.ascontiguousarray(a) for a in (x.weight, x.weight_scale, x.bias)] for x in layers]
        table = (_Layer * len(layers))(
            *(
                _Layer(
                    *(a.ctypes.data for a in arrays),
                    *x.weight.shape,
                    x.input_scale,
                    ACTIVATIONS.index(x.activation),
                    format_code(x.weight.dtype),
                )
                for x, arrays in zip(layers, held, strict=True)
            )
        )
        why = ctypes.create_string_buffer(256)
        self._made: Any = self._library.redline_fused_mlp_create(table, len(layers), why, len(why))
        if not self._made:
            raise ValueError(why.value.decode())

    def __del__(self) -> None:
        if getattr(self, "_made", None):
            self._library.redline_fused_mlp_free(self._made)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x: [rows, k] → [rows, n]"""
        if x.shape != (len(x), self._k) or x.dtype != np.float32:
            raise ValueError(f"wanted float32 [rows, {self._k}], got {x.dtype} {list(x.shape)}")
        x, y = np.ascontiguousarray(x), np.empty((len(x), self._n), np.float32)
        if not self._library.redline_fused_mlp_run(self._made, x.ctypes.data, len(x), y.ctypes.data):
            raise MemoryError(f"FusedMlp: no scratch for {len(x)} rows")
        return y
