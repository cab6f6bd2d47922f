"""Tensors on the wire: KServe v1 JSON, Open Inference Protocol (v2) JSON and v2 binary, to arrays and back.

Binary bodies are read in place (`np.frombuffer`); JSON values must have the model's type, nothing is truncated.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from redline.errors import RedlineError, RequestError
from redline.tensors import WIRE, Arrays, Tensor

_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


@dataclass(frozen=True, slots=True)
class Call:
    """One decoded request."""

    arrays: Arrays
    outputs: dict[str, bool]  # wanted output → as binary
    id: str = ""


def decode_v1(body: bytes, inputs: tuple[Tensor, ...]) -> Arrays:
    """`{"instances": [{input: value of one row, ...}, ...]}`."""
    table = _table(body, "request")
    rows = table.get("instances")
    if table.keys() != {"instances"} or not isinstance(rows, list) or not rows:
        raise RequestError(f'wanted {{"instances": [one object per row]}}, got keys {sorted(table)}')
    names = {spec.name for spec in inputs}
    for i, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != names:
            got = sorted(row) if isinstance(row, dict) else type(row).__name__
            raise RequestError(f"instance {i}: wanted an object with {sorted(names)}, got {got}")
    return {s.name: _from_nested([row[s.name] for row in rows], s) for s in inputs}


def encode_v1(answers: Arrays) -> bytes:
    lists = {name: _json_values(a, name) for name, a in answers.items()}
    predictions: list[Any] | NDArray[Any]
    if len(lists) == 1 and next(iter(lists.values())).ndim == 1:
        predictions = next(iter(lists.values()))
    else:
        rows = len(next(iter(lists.values())))
        columns = {name: a.tolist() for name, a in lists.items()}
        predictions = [{name: values[i] for name, values in columns.items()} for i in range(rows)]
    return orjson.dumps({"predictions": predictions}, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_v2(body: bytes, json_length: bytes | None, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Call:
    """json_length is the header Inference-Header-Content-Length: raw tensors follow after that many bytes."""
    end = len(body)
    if json_length is not None:
        if not json_length.isdigit() or len(json_length) > 12 or int(json_length) > len(body):
            raise RequestError(f"Inference-Header-Content-Length {json_length!r} does not fit a body of {end} bytes")
        end = int(json_length)
    table = _table(memoryview(body)[:end] if end < len(body) else body, "request")
    asked = _parameters(table).get("binary_data_output", False)
    specs = {spec.name: spec for spec in inputs}
    arrays: Arrays = {}
    offset = end
    for entry in _entries(table, "inputs"):
        spec = specs.get(entry["name"])
        if spec is None or spec.name in arrays:
            raise RequestError(f"input {entry['name']!r} is unknown or given twice; wanted {sorted(specs)}")
        shape = shape_of(entry, spec)
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            arrays[spec.name] = _from_data(entry.get("data"), shape, spec)
            continue
        if type(size) is not int or size < 0 or offset + size > len(body):
            raise RequestError(f"input {spec.name!r}: binary_data_size {size!r} leads past the end of the body")
        arrays[spec.name] = from_buffer(memoryview(body)[offset : offset + size], shape, spec)
        offset += size
    if offset != len(body):
        raise RequestError(f"{len(body) - offset} bytes after the last tensor; is binary_data_size missing?")
    wanted = {e["name"]: bool(_parameters(e).get("binary_data", asked)) for e in _entries(table, "outputs")}
    identity = table.get("id", "")
    if not isinstance(identity, str):
        raise RequestError(f"id: wanted a string, got {identity!r}")
    return Call(arrays, choose_outputs(wanted, outputs, bool(asked)), identity)


def encode_v2(model: str, call: Call, answers: Arrays) -> tuple[bytes, int | None]:
    """Body, and the length of its JSON part where raw tensors follow it."""
    buffers: list[Any] = []
    outputs: list[dict[str, Any]] = []
    for name, binary in call.outputs.items():
        array = answers[name]
        entry: dict[str, Any] = {"name": name, "datatype": WIRE[array.dtype.name], "shape": array.shape}
        if binary:
            buffers.append(np.ascontiguousarray(array).data)
            entry["parameters"] = {"binary_data_size": array.nbytes}
        else:
            entry["data"] = _json_values(array, name).ravel()
        outputs.append(entry)
    head: dict[str, Any] = {"model_name": model, "outputs": outputs}
    if call.id:
        head["id"] = call.id
    text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *buffers]), len(text)) if buffers else (text, None)


def choose_outputs(wanted: dict[str, bool], outputs: tuple[Tensor, ...], binary: bool) -> dict[str, bool]:
    """What was asked for, or every output."""
    if unknown := wanted.keys() - {o.name for o in outputs}:
        raise RequestError(f"unknown outputs {sorted(unknown)}; this model gives {[o.name for o in outputs]}")
    return wanted or {o.name: binary for o in outputs}


def shape_of(entry: dict[str, Any], spec: Tensor) -> tuple[int, ...]:
    """The entry's shape, once its datatype and shape fit the spec."""
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if datatype != WIRE[spec.dtype]:
        raise RequestError(f"input {spec.name!r}: wanted datatype {WIRE[spec.dtype]}, got {datatype!r}")
    if not isinstance(shape, list) or not all(type(d) is int for d in shape):
        raise RequestError(f"input {spec.name!r}: wanted a shape as a list of integers, got {shape!r}")
    if len(shape) != len(spec.shape) or shape[0] < 1 or tuple(shape[1:]) != spec.row_shape:
        raise RequestError(f"input {spec.name!r}: wanted shape {list(spec.shape)} with at least 1 row, got {shape!r}")
    return tuple(shape)


def from_buffer(buffer: memoryview | bytes, shape: tuple[int, ...], spec: Tensor) -> NDArray[Any]:
    """A view of the buffer, or a copy where it is not aligned for its type."""
    dtype = np.dtype(spec.dtype)
    if len(buffer) != math.prod(shape) * dtype.itemsize:
        raise RequestError(f"input {spec.name!r}: shape {list(shape)} of {dtype} is not {len(buffer)} bytes")
    array = np.frombuffer(buffer, np.uint8 if spec.dtype == "bool" else dtype)
    if spec.dtype == "bool":
        if array.max() > 1:
            raise RequestError(f"input {spec.name!r}: a BOOL byte is 0 or 1, got {array.max()}")
        array = array.view(np.bool_)
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def from_values(values: list[Any], shape: tuple[int, ...], spec: Tensor) -> NDArray[Any]:
    """Numbers of exactly the spec's kind; anything else is refused, not converted."""
    dtype = np.dtype(spec.dtype)
    if unfit := set(map(type, values)) - _JSON_TYPES[dtype.kind]:
        raise RequestError(f"input {spec.name!r}: wanted {dtype} values, got {sorted(t.__name__ for t in unfit)}")
    if len(values) != math.prod(shape):
        raise RequestError(
            f"input {spec.name!r}: wanted {math.prod(shape)} values for {list(shape)}, got {len(values)}"
        )
    try:
        with np.errstate(over="ignore"):  # too large for float32 becomes inf, which the request's check refuses
            return np.array(values, dtype).reshape(shape)
    except OverflowError as e:
        raise RequestError(f"input {spec.name!r}: a value does not fit {dtype}") from e


def _from_data(data: object, shape: tuple[int, ...], spec: Tensor) -> NDArray[Any]:
    """v2's data is flat or nested."""
    if not isinstance(data, list):
        raise RequestError(f"input {spec.name!r}: wanted a list in 'data', got {type(data).__name__}")
    nested = _from_nested(data, spec) if data and isinstance(data[0], list) else from_values(data, shape, spec)
    if nested.shape != shape:
        raise RequestError(f"input {spec.name!r}: data has shape {list(nested.shape)}, 'shape' says {list(shape)}")
    return nested


def _from_nested(rows: list[Any], spec: Tensor) -> NDArray[Any]:
    """rows: one nested list of row_shape (or a scalar) per row."""
    level = rows
    for width in spec.row_shape:
        if any(type(v) is not list or len(v) != width for v in level):
            raise RequestError(f"input {spec.name!r}: wanted rows of shape {list(spec.row_shape)}")
        level = list(chain.from_iterable(level))
    return from_values(level, (len(rows), *spec.row_shape), spec)


def _json_values(array: NDArray[Any], name: str) -> NDArray[Any]:
    """float64 digits bring back every float16 and float32 exactly."""
    if array.dtype.kind != "f":
        return np.ascontiguousarray(array)
    if not np.isfinite(array).all():
        raise RedlineError(f"output {name!r} is not finite, which JSON can't carry; ask for binary outputs")
    return np.ascontiguousarray(array, np.float64)


def _table(text: bytes | memoryview, what: str) -> dict[str, Any]:
    try:
        table = orjson.loads(text)
    except orjson.JSONDecodeError as e:
        raise RequestError(f"{what}: not JSON: {e}") from e
    if not isinstance(table, dict):
        raise RequestError(f"{what}: wanted a JSON object, got {type(table).__name__}")
    return table


def _entries(table: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = table.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(e, dict) and type(e.get("name")) is str for e in entries):
        raise RequestError(f"{key!r}: wanted a list of objects with a name")
    return entries


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"'parameters': wanted an object, got {parameters!r}")
    return parameters
