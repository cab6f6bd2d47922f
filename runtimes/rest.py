"""HTTP: inference is answered here, before any framework code; every other GET is KServe's own.

All other methods end here too, which closes KServe's unguarded /v2/repository/models/*/load and /unload.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from redline.errors import RedlineError, RequestError
from redline.runtimes import codec
from redline.runtimes.predictor import NotReadyError, OverloadedError, Predictor
from redline.tensors import Arrays

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

log = logging.getLogger("redline.serve")
_BODY_S = 30.0  # for a client to send its body
_LARGE = 1 << 18  # bytes; a larger body is decoded off the event loop
_BUFFERED = 4  # bodies of the largest size held at once, over all connections
_JSON, _BYTES = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")


class RefusalError(RedlineError):
    """An HTTP status of its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Rest:
    """The ASGI application in front of KServe's."""

    def __init__(self, predictor: Predictor, kserve: App, max_body: int) -> None:
        self._predictor, self._kserve, self._max_body = predictor, kserve, max_body
        self._buffered = 0  # bytes of bodies being read
        v1, v2 = f"/v1/models/{predictor.name}", f"/v2/models/{predictor.name}"
        self._infer = {f"{v1}:predict": self._predict_v1, f"{v2}/infer": self._infer_v2}
        self._ready = {v1, f"{v2}/ready", "/v2/health/ready"}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        answer = self._infer.get(path) if method == "POST" else None
        if answer is None and method in ("GET", "HEAD") and not (path in self._ready and self._predictor.unready):
            await self._kserve(scope, receive, send)
            return
        status, extra = 200, [_JSON]
        try:
            if answer is None:
                raise self._elsewhere(method, path)
            body, extra = await answer(scope, receive)
        except _GoneError:
            return
        except RedlineError as e:
            status, extra, body = _refuse(e)
        except Exception:
            log.exception("%s %s", method, path)
            status, body = 500, orjson.dumps({"error": "internal error; the server's log has it"})
        await self._send(send, status, extra, body)

    async def _send(self, send: Send, status: int, extra: Headers, body: bytes) -> None:
        headers = [*extra, (b"content-length", b"%d" % len(body))]
        if self._predictor.draining or status in (408, 413, 415):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _elsewhere(self, method: str, path: str) -> RedlineError:
        if path in self._ready and self._predictor.unready and method in ("GET", "HEAD"):
            return NotReadyError(self._predictor.unready)
        if path.startswith("/v2/repository/"):
            return RefusalError(403, "an artifact is served as it is: load and unload are closed")
        if path in self._infer or path in self._ready:
            return RefusalError(405, f"{method} is not for {path}")
        return RefusalError(404, f"{path}: this server has the model {self._predictor.name!r}, over /v1 and /v2")

    async def _infer_v2(self, scope: Message, receive: Receive) -> tuple[bytes, Headers]:
        body, length = await self._read(scope["headers"], receive)
        predictor = self._predictor
        if len(body) > _LARGE:
            call = await asyncio.to_thread(codec.decode_v2, body, length, predictor.inputs, predictor.outputs)
        else:
            call = codec.decode_v2(body, length, predictor.inputs, predictor.outputs)
        text, json_length = codec.encode_v2(predictor.name, call, await self._answers(call.arrays, receive))
        if json_length is None:
            return text, [_JSON]
        return text, [_BYTES, (b"inference-header-content-length", b"%d" % json_length)]

    async def _predict_v1(self, scope: Message, receive: Receive) -> tuple[bytes, Headers]:
        body, _ = await self._read(scope["headers"], receive)
        if len(body) > _LARGE:
            arrays = await asyncio.to_thread(codec.decode_v1, body, self._predictor.inputs)
        else:
            arrays = codec.decode_v1(body, self._predictor.inputs)
        return codec.encode_v1(await self._answers(arrays, receive)), [_JSON]

    async def _answers(self, arrays: Arrays, receive: Receive) -> Arrays:
        """Where others are before it, a request whose client leaves is dropped instead of computed."""
        if not self._predictor.inflight:
            return await self._predictor.infer(arrays)
        answer = asyncio.ensure_future(self._predictor.infer(arrays))
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _GoneError
            return answer.result()
        finally:
            answer.cancel()
            gone.cancel()

    async def _read(self, headers: Headers, receive: Receive) -> tuple[bytes, bytes | None]:
        """The body, never past its bound, and the length of its JSON part."""
        self._predictor.check_open()
        json_length = None
        for key, value in headers:
            if key == b"content-length" and int(value) > self._max_body:
                raise self._too_large()
            if key == b"inference-header-content-length":
                json_length = value
            elif key == b"content-encoding" and value != b"identity":
                raise RefusalError(415, f"content-encoding {value.decode('latin-1')!r}: send the body uncompressed")
        message = await receive()
        if message.get("more_body"):
            return await self._read_on(message, receive), json_length
        if message["type"] == "http.disconnect":
            raise _GoneError
        return message.get("body", b""), json_length

    async def _read_on(self, message: Message, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(_BODY_S):
                while True:
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    self._buffered += len(part)
                    if size > self._max_body:
                        raise self._too_large()
                    if self._buffered > _BUFFERED * self._max_body:
                        raise OverloadedError("too many large bodies are being sent at once; retry")
                    if not message.get("more_body"):
                        return b"".join(parts)
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
        except TimeoutError:
            raise RefusalError(408, f"the body did not arrive within {_BODY_S:.0f} s") from None
        finally:
            self._buffered -= size

    def _too_large(self) -> RefusalError:
        return RefusalError(413, f"the body is larger than {self._max_body} bytes; send fewer rows or raise --max-body")


class _GoneError(Exception):
    """The client left; nobody is there to hear of it."""


def _refuse(error: RedlineError) -> tuple[int, Headers, bytes]:
    extra = [_JSON]
    if isinstance(error, RefusalError):
        status = error.status
    elif isinstance(error, RequestError):
        status = 400
    elif isinstance(error, NotReadyError | OverloadedError):
        status = 503 if isinstance(error, NotReadyError) else 429
        extra.append((b"retry-after", b"1"))
    else:
        status = 500
        log.error("500: %s", error)
    return status, extra, orjson.dumps({"error": str(error)})
