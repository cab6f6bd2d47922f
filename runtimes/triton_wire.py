"""Triton's HTTP protocol with raw tensors over kept-alive connections.

Measured here (500 rows, 78 kB): 70 µs of CPU a request, where grpc.aio takes 400 µs and half the throughput.
"""

import asyncio
from typing import Any

import numpy as np
import orjson

from redline.tensors import WIRE, Arrays, Tensor


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._reply: asyncio.Future[tuple[int, int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    @property
    def usable(self) -> bool:
        return not self._transport.is_closing()

    def abort(self) -> None:
        self._transport.abort()

    async def send(self, *parts: Any) -> tuple[int, int, bytes]:
        """(status, length of the JSON part, body)."""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.writelines(parts)
        return await self._reply

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        status, *lines = bytes(self._buffer[:end]).lower().split(b"\r\n")
        headers = {key: value.strip() for key, _, value in (line.partition(b":") for line in lines)}
        length = int(headers.get(b"content-length", 0))
        if len(self._buffer) < end + 4 + length or self._reply is None or self._reply.done():
            return
        body = bytes(self._buffer[end + 4 :])
        self._buffer.clear()
        json_length = int(headers.get(b"inference-header-content-length", length))
        self._reply.set_result((int(status.split()[1]), json_length, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(ConnectionError("Triton closed the connection"))


class Client:
    """Asks one model of one Triton."""

    def __init__(self, port: int, model: str, outputs: tuple[Tensor, ...]) -> None:
        self._port, self._path = port, f"/v2/models/{model}"
        self._outputs = {spec.name: spec for spec in outputs}
        self._idle: list[Connection] = []

    async def is_ready(self) -> bool:
        try:
            async with asyncio.timeout(1):
                connection = await self._connect()
                status, _, _ = await connection.send(
                    f"GET {self._path}/ready HTTP/1.1\r\nhost: triton\r\n\r\n".encode()
                )
        except OSError:  # a timeout is one too
            return False
        self._idle.append(connection)
        return status == 200

    async def infer(self, arrays: Arrays) -> tuple[int, Arrays | str]:
        """Status, and the answers where it is 200, else the error.

        Raises:
            OSError: no connection, or it broke.
        """
        rows = len(next(iter(arrays.values())))
        inputs = [
            {
                "name": name,
                "datatype": WIRE[a.dtype.name],
                "shape": a.shape if a.ndim > 1 else (*a.shape, 1),  # Triton's dims are never empty
                "parameters": {"binary_data_size": a.nbytes},
            }
            for name, a in arrays.items()
        ]
        text = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
        total = len(text) + sum(a.nbytes for a in arrays.values())
        head = (
            f"POST {self._path}/infer HTTP/1.1\r\nhost: triton\r\ncontent-length: {total}\r\n"
            f"inference-header-content-length: {len(text)}\r\n\r\n"
        )
        tensors = [np.ascontiguousarray(a).reshape(-1).view(np.uint8).data for a in arrays.values()]
        connection = await self._connect()
        try:
            status, json_length, body = await connection.send(head.encode() + text, *tensors)
        except BaseException:  # its reply would come to the next request
            connection.abort()
            raise
        self._idle.append(connection)
        if status != 200:
            return status, body.decode(errors="replace")
        return status, self._arrays(body, json_length, rows)

    def _arrays(self, body: bytes, json_length: int, rows: int) -> Arrays:
        answers: Arrays = {}
        offset = json_length
        for output in orjson.loads(body[:json_length])["outputs"]:
            spec = self._outputs[output["name"]]
            end = offset + output["parameters"]["binary_data_size"]
            answers[spec.name] = np.frombuffer(body[offset:end], spec.dtype).reshape(rows, *spec.row_shape)
            offset = end
        return answers

    async def _connect(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, "127.0.0.1", self._port))[1]

    def close(self) -> None:
        while self._idle:
            self._idle.pop().abort()
