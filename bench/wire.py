"""Requests as bytes, built once each, and answers back as arrays: the Open Inference Protocol (v2) and KServe's v1."""

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np

from redline.bench.connections import Answer
from redline.errors import UsageError, missing_extra
from redline.tensors import WIRE, Arrays, largest_gap

PROTOCOLS = ("http-binary", "http-json", "v1", "grpc")
_FROM_V2 = {v2: dtype for dtype, v2 in WIRE.items()}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a model answers, and in which words."""

    host: str
    port: int
    model: str
    protocol: str = "http-binary"

    @property
    def path(self) -> str:
        return f"/v1/models/{self.model}:predict" if self.protocol == "v1" else f"/v2/models/{self.model}/infer"


def parse_target(url: str, model: str, protocol: str) -> Target:
    """`http://host:port` (or `grpc://host:port`) of a server that speaks KServe's protocols."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise UsageError(f"wanted http://host:port, got {url!r}: {e}") from e
    if parts.scheme not in ("http", "grpc") or not host or parts.path not in ("", "/") or parts.query:
        raise UsageError(f"wanted http://host:port (no path: the model is named apart), got {url!r}")
    if not model or not model.isascii() or any(c in model for c in "/ \r\n?#%"):
        raise UsageError(f"wanted a model's name, got {model!r}")
    return Target(host, port or 80, model, protocol)


def _tensor(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    if array.dtype.name not in WIRE:
        raise UsageError(f"input {name!r}: dtype {array.dtype} can't travel; known: {', '.join(WIRE)}")
    return {"name": name, "datatype": WIRE[array.dtype.name], "shape": list(array.shape)}


def encode_binary(arrays: Arrays) -> tuple[bytes, int]:
    """(body, length of its JSON part) of a v2 request with raw tensors, asking for raw tensors."""
    blobs = {name: np.ascontiguousarray(a).tobytes() for name, a in arrays.items()}
    inputs = [_tensor(n, a) | {"parameters": {"binary_data_size": len(blobs[n])}} for n, a in arrays.items()]
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": inputs}, separators=(",", ":")).encode()
    return head + b"".join(blobs.values()), len(head)


def encode_json(arrays: Arrays) -> bytes:
    inputs = [_tensor(n, a) | {"data": a.ravel().tolist()} for n, a in arrays.items()]
    return json.dumps({"inputs": inputs}, separators=(",", ":")).encode()


def encode_v1(arrays: Arrays) -> bytes:
    rows = len(next(iter(arrays.values())))
    lists = {name: a.tolist() for name, a in arrays.items()}
    instances = [{name: values[i] for name, values in lists.items()} for i in range(rows)]
    return json.dumps({"instances": instances}, separators=(",", ":")).encode()


def http_message(target: Target, arrays: Arrays) -> bytes:
    """The whole request, head and body, as it goes out."""
    extra = ""
    if target.protocol == "http-binary":
        body, head_size = encode_binary(arrays)
        kind, extra = "application/octet-stream", f"Inference-Header-Content-Length: {head_size}\r\n"
    else:
        body = encode_v1(arrays) if target.protocol == "v1" else encode_json(arrays)
        kind = "application/json"
    host = f"[{target.host}]" if ":" in target.host else target.host
    head = (
        f"POST {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nContent-Type: {kind}\r\n"
        f"{extra}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _array(data: object, tensor: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(_FROM_V2[tensor["datatype"]])
    flat = np.frombuffer(data, dtype) if isinstance(data, bytes) else np.asarray(data, dtype)
    return flat.reshape(tensor["shape"])


def decode_v2(body: bytes, head_size: int | None) -> Arrays:
    """Tensors of a v2 answer, raw ones (head_size given) or JSON."""
    table = json.loads(body if head_size is None else body[:head_size])
    arrays, at = {}, len(body) if head_size is None else head_size
    for tensor in table["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        data = tensor["data"] if size is None else body[at : at + size]
        at += size or 0
        arrays[tensor["name"]] = _array(data, tensor)
    if at != len(body):
        raise ValueError(f"tensors end at byte {at} of {len(body)}")
    return arrays


def decode_v1(body: bytes) -> Arrays:
    """`predictions` as arrays; a model with one output may leave it unnamed, it is then called ''."""
    rows = json.loads(body)["predictions"]
    if rows and isinstance(rows[0], dict):
        return {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    return {"": np.asarray(rows)}


def decode_answer(protocol: str, answer: Answer) -> Arrays:
    """Raises ValueError when the answer is not what the protocol says."""
    try:
        if protocol == "v1":
            return decode_v1(answer.body)
        size = answer.headers.get(b"inference-header-content-length")
        return decode_v2(answer.body, None if size is None else int(size))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as e:
        raise ValueError(f"not a {protocol} answer: {type(e).__name__} {e}") from e


class Reader:
    """Reads every answer after its time was taken: None, or what kind of miss it is; `last` keeps its tensors."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self.last: Arrays = {}
        self.note = ""  # what the server said with its last refusal

    def http(self, answer: Answer) -> str | None:
        if answer.status != 200:
            self.note = answer.body[:200].decode(errors="replace")
            return f"HTTP {answer.status}"
        try:
            self.last = decode_answer(self._protocol, answer)
        except ValueError as e:
            self.note = str(e)
            return "malformed answer"
        return None

    def grpc(self, data: bytes) -> str | None:
        try:
            self.last = decode_grpc(data)
        except Exception as e:  # protobuf's DecodeError has a home that moved between versions
            self.note = str(e)
            return "malformed answer"
        return None


def differs(got: Arrays, want: Arrays, tolerance: float) -> str | None:
    """Why `got` is not the golden answer `want`, or None."""
    if set(got) == {""} and len(want) == 1:
        got = {next(iter(want)): got[""]}
    if missing := want.keys() - got.keys():
        return f"outputs {sorted(missing)} are missing, got {sorted(got)}"
    for name, expected in want.items():
        if got[name].size != expected.size:
            return f"output {name!r} has shape {list(got[name].shape)}, golden has {list(expected.shape)}"
        worst = largest_gap(got[name], expected)
        if not worst <= tolerance:  # a NaN is no match
            return f"output {name!r} differs from the golden answer by {worst:.3g}, allowed {tolerance:.3g}"
    return None


def grpc_messages() -> ModuleType:
    """tritonclient's protobuf classes. Never in a process that imports kserve: both register the same symbols."""
    try:
        from tritonclient.grpc import service_pb2
    except ImportError as e:
        raise missing_extra("bench", "gRPC") from e
    return cast(ModuleType, service_pb2)


def grpc_message(model: str, arrays: Arrays) -> bytes:
    request = grpc_messages().ModelInferRequest(model_name=model)
    for name, array in arrays.items():
        request.inputs.add(**_tensor(name, array))
        request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    return bytes(request.SerializeToString())


def decode_grpc(data: bytes) -> Arrays:
    answer = grpc_messages().ModelInferResponse.FromString(data)
    if len(answer.raw_output_contents) != len(answer.outputs):
        raise ValueError("outputs are not raw tensors")
    return {
        t.name: _array(raw, {"datatype": t.datatype, "shape": list(t.shape)})
        for t, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
