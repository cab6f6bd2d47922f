"""What a model takes and gives, and the check that every request must pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import JobError, RequestError

Arrays = dict[str, NDArray[Any]]
WIRE = {  # NumPy's name → the Open Inference Protocol's (v2)
    "bool": "BOOL",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = tuple(WIRE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One named input or output; axis 0 is the rows (batch) axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]  # ("rows", 7): the batch axis is named, the others are numbers
    max: int | tuple[int, ...] | None = None  # largest id, or one per column; ids start at 0
    columns: tuple[str, ...] = ()  # names of the last axis, for error texts
    per: str = "row"  # "row", or "request": the same for every row of a request

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise JobError(f"tensor {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not self.shape or not isinstance(self.shape[0], str) or any(isinstance(d, str) for d in self.shape[1:]):
            raise JobError(
                f"tensor {self.name!r}: shape {self.shape} must name its batch axis first, as in ('rows', 13)"
            )
        if any(not isinstance(d, int) or d < 1 for d in self.shape[1:]):
            raise JobError(f"tensor {self.name!r}: shape {self.shape} has an axis below 1")
        if self.per not in ("row", "request"):
            raise JobError(f"tensor {self.name!r}: per is 'row' or 'request', not {self.per!r}")
        width = self.shape[-1]
        for field, value in (("max", self.max if isinstance(self.max, tuple) else ()), ("columns", self.columns)):
            if value and len(value) != width:
                raise JobError(f"tensor {self.name!r}: {field} has {len(value)} entries for {width} columns")
        if self.max is not None and not self.dtype.startswith(("int", "uint")):
            raise JobError(f"tensor {self.name!r}: max is for integer ids, dtype is {self.dtype}")

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(d for d in self.shape[1:] if isinstance(d, int))

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row_shape, dtype=np.int64))

    def check(self, array: NDArray[Any]) -> None:
        """Raise RequestError unless array fits: dtype, shape, finite, ids in range."""
        if array.dtype != self.dtype:
            raise RequestError(f"input {self.name!r}: wanted {self.dtype}, got {array.dtype}")
        if array.shape[1:] != self.row_shape or array.ndim != len(self.shape):
            raise RequestError(f"input {self.name!r}: wanted shape {list(self.shape)}, got {list(array.shape)}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0]
            raise RequestError(f"input {self.name!r}: {array[tuple(where)]} at {self._place(where)} is not finite")
        if self.max is not None and array.size:
            bad = (array < 0) | (array > np.asarray(self.max))
            if bad.any():
                where = np.argwhere(bad)[0]
                limit = np.broadcast_to(np.asarray(self.max), array.shape[1:])[tuple(where[1:])]
                raise RequestError(
                    f"input {self.name!r}: id {array[tuple(where)]} at {self._place(where)} is not in 0..{limit}"
                )

    def _place(self, where: NDArray[np.int64]) -> str:
        column = f"{where[-1]} ({self.columns[where[-1]]})" if self.columns else str(where[-1])
        return f"row {where[0]}" + (f", column {column}" if len(where) > 1 else "")


def largest_gap(got: NDArray[Any], want: NDArray[Any]) -> float:
    """Largest |got - want| of as many values, whatever their shapes; NaN where one is."""
    return float(np.abs(got.astype(np.float64).ravel() - want.astype(np.float64).ravel()).max(initial=0.0))


def check_request(specs: tuple[Tensor, ...], arrays: Mapping[str, NDArray[Any]], max_rows: int) -> int:
    """Number of rows of a valid request.

    Raises:
        RequestError: unknown or missing input, wrong dtype, shape or row count, non-finite value, id out of range.
    """
    names = {s.name for s in specs}
    if arrays.keys() != names:
        raise RequestError(f"wanted inputs {sorted(names)}, got {sorted(arrays)}")
    for spec in specs:
        spec.check(arrays[spec.name])
    counts = {name: len(a) for name, a in arrays.items()}
    rows = next(iter(counts.values()))
    if len(set(counts.values())) != 1:
        raise RequestError(f"inputs disagree on the number of rows: {counts}")
    if not 1 <= rows <= max_rows:
        raise RequestError(f"wanted 1 to {max_rows} rows, got {rows}")
    return rows
