"""A real server in a process of its own, and the four wires to it. This process must never import kserve."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from redline.tensors import WIRE, Arrays

Entry = tuple[str, str, list[int], Any]  # name, datatype, shape, array
WIRES = ("v1", "v2", "binary", "grpc")


@dataclass
class Answer:
    status: int | str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    score: Any = None

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"]) if self.body[:1] == b"{" else self.body.decode()


@dataclass
class Server:
    process: "subprocess.Popen[str]"
    http_port: int
    grpc_port: int
    log: Path
    name: str = "tiny"

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            wire = {k.replace("_", "-"): v for k, v in headers.items()}
            connection.request(method, path, body, wire, encode_chunked="transfer_encoding" in headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def ready(self) -> int:
        return int(self.call("GET", f"/v2/models/{self.name}/ready").status)

    def v1(self, instances: Any) -> Answer:
        body = instances if isinstance(instances, bytes) else json.dumps({"instances": instances})
        headers = {"content_type": "application/json; charset=utf-8"}
        answer = self.call("POST", f"/v1/models/{self.name}:predict", body, **headers)
        if answer.status == 200:
            answer.score = np.array(json.loads(answer.body)["predictions"], np.float32)
        return answer

    def v2(self, entries: list[Entry], *, binary: bool, outputs: list[str] | None = None) -> Answer:
        inputs: list[dict[str, Any]] = []
        for name, datatype, shape, array in entries:
            entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
            if binary:
                entry["parameters"] = {"binary_data_size": array.nbytes}
            else:
                entry["data"] = array.ravel().tolist()
            inputs.append(entry)
        head: dict[str, Any] = {"id": "7", "inputs": inputs, "parameters": {"binary_data_output": binary}}
        if outputs:
            head["outputs"] = [{"name": n} for n in outputs]
        text = json.dumps(head).encode()
        path = f"/v2/models/{self.name}/infer"
        if not binary:
            answer = self.call("POST", path, text, content_type="application/json")
            if answer.status == 200:
                answer.score = np.array(json.loads(answer.body)["outputs"][0]["data"], np.float32)
            return answer
        body = text + b"".join(array.tobytes() for *_, array in entries)
        answer = self.call("POST", path, body, Inference_Header_Content_Length=str(len(text)))
        if answer.status == 200:
            end = int(answer.headers["inference-header-content-length"])
            answer.score = np.frombuffer(answer.body[end:], np.float32)
        return answer

    def grpc(self, entries: list[Entry], outputs: list[str] | None = None, timeout: float = 60) -> Answer:
        message = pb.ModelInferRequest(model_name=self.name, id="7")
        for name, datatype, shape, array in entries:
            message.inputs.add(name=name, datatype=datatype, shape=shape)
            message.raw_input_contents.append(array.tobytes())
        for name in outputs or ():
            message.outputs.add(name=name)
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            try:
                answer = pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=timeout)
            except grpc.RpcError as e:
                return Answer(e.code().name, e.details().encode())
        return Answer(200, score=np.frombuffer(answer.raw_output_contents[0], np.float32))

    def send(self, wire: str, arrays: Arrays) -> Answer:
        if wire == "v1":
            return self.v1(as_instances(arrays))
        if wire == "grpc":
            return self.grpc(as_entries(arrays))
        return self.v2(as_entries(arrays), binary=wire == "binary")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def as_entries(arrays: Arrays) -> list[Entry]:
    return [(name, WIRE[a.dtype.name], list(a.shape), a) for name, a in arrays.items()]


def as_instances(arrays: Arrays) -> list[dict[str, Any]]:
    rows = len(next(iter(arrays.values())))
    return [{name: a[i].tolist() for name, a in arrays.items()} for i in range(rows)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def command(artifact: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "redline", "serve", str(artifact), *options]


@contextlib.contextmanager
def running(artifact: Path, log: Path, *options: str, ready: int = 200, path: str = "") -> Iterator[Server]:
    """Serve until the block ends; it starts when the readiness route answers `ready`. path: PYTHONPATH."""
    ports = [free_port(), free_port()]
    environment = os.environ | {"TMPDIR": str(log.parent), "PYTHONPATH": path}
    argv = command(artifact, "--http-port", str(ports[0]), "--grpc-port", str(ports[1]), *options)
    with log.open("w") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, text=True, env=environment)
    server = Server(process, *ports, log)
    try:
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            with contextlib.suppress(OSError):
                if server.ready() == ready and (ready == 200 or "not ready" in log.read_text()):
                    break
            time.sleep(0.05)
        yield server
    finally:
        if process.poll() is None:
            server.end()
