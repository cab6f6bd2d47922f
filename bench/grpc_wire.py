"""A Wire over gRPC: prepared bytes through one channel, so nothing is serialized while time is taken.

A request counts as sent when its task is made; the task runs in the same pass of the loop.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from redline.bench.load import Clock, Done
from redline.errors import missing_extra

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class GrpcWire:
    def __init__(
        self, host: str, port: int, messages: list[bytes], clock: Clock, check: Callable[[bytes], str | None]
    ) -> None:
        try:
            from grpc import aio
        except ImportError as e:
            raise missing_extra("bench", "gRPC") from e
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel: Any = aio.insecure_channel(f"{host}:{port}", options=options)
        self._call: Any = self._channel.unary_unary(_METHOD)  # no serializers: bytes in, bytes out
        self._messages, self._clock, self._check = messages, clock, check

    def send(self, request: int, done: Done) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self._exchange(request, done))

    async def _exchange(self, request: int, done: Done) -> None:
        from grpc import RpcError

        try:
            data = await self._call(self._messages[request])
        except RpcError as e:
            code = getattr(e, "code", lambda: None)()
            done(self._clock.now_ns(), f"gRPC {code.name if code else 'error'}")
            return
        at_ns = self._clock.now_ns()
        done(at_ns, self._check(data))

    async def close(self) -> None:
        await self._channel.close()
