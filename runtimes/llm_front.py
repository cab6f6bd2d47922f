"""OpenAI's routes in front of vLLM: refuse early, pass streams through as they come, stop what nobody reads."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import orjson

from redline.errors import RedlineError, RequestError
from redline.runtimes.llm_engine import Vllm
from redline.runtimes.predictor import NotReadyError, OverloadedError, Predictor
from redline.runtimes.rest import App, Message, Receive, RefusalError, Rest, Send, _GoneError, _refuse

_BYTES_A_TOKEN = 3  # of a request's body: fewer than text has (4), so what is reserved is rather too much
_JSON = {"content-type": "application/json"}
_KINDS = {400: "BadRequestError", 404: "NotFoundError", 429: "RateLimitError", 503: "ServiceUnavailableError"}


class Front(Rest):
    """KServe's control plane with completions instead of tensors; /openai is the prefix of KServe's own such routes."""

    def __init__(self, predictor: Predictor, kserve: App, max_body: int, engine: Vllm) -> None:
        super().__init__(predictor, kserve, max_body)
        self._engine = engine
        self._infer = {}
        self._context = int(predictor.artifact.manifest.serving["context"])
        self._reserved = 0  # blocks of KV cache that admitted requests may come to hold
        routes = ("/v1/chat/completions", "/v1/completions", "/v1/models")
        self._routes = {prefix + route: route for prefix in ("", "/openai") for route in routes}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        method, route = scope["method"], self._routes.get(scope["path"])
        try:
            if method == "GET" and route == "/v1/models":
                await self._answer(send, 200, self._models())
            elif method == "GET" and scope["path"] == "/health":  # vLLM's own route: load generators ask for it
                self._check_ready()
                await self._answer(send, 200, {})
            elif method == "GET" and scope["path"] == "/metrics":
                await self._metrics(scope, receive, send)
            elif route is None:
                await super().__call__(scope, receive, send)
            elif method != "POST" or route == "/v1/models":
                raise RefusalError(405, f"{method} is not for {scope['path']}")
            else:
                await self._generate(route, scope, receive, send)
        except _GoneError:
            return
        except RedlineError as e:
            await self._refuse(send, e)

    def _models(self) -> dict[str, Any]:
        """OpenAI's list, and KServe's under `models`: both live at this path."""
        model = {"id": self._predictor.name, "object": "model", "owned_by": "redline", "max_model_len": self._context}
        return {"object": "list", "data": [model], "models": [self._predictor.name]}

    async def _generate(self, route: str, scope: Message, receive: Receive, send: Send) -> None:
        self._check_ready()
        body, _ = await self._read(scope["headers"], receive)
        blocks = self._blocks(self._parsed(body), len(body))
        with self._reserving(blocks):
            await self._until_gone(self._forward(route, body, send), receive)
        await send({"type": "http.response.body", "body": b""})  # whoever reads the end of it finds its room free again

    def _check_ready(self) -> None:
        """Unlike a tensor's, a stream that comes while the server drains would outlast it."""
        if self._predictor.unready:
            raise NotReadyError(f"model {self._predictor.name} is not ready: {self._predictor.unready}")

    def _parsed(self, body: bytes) -> dict[str, Any]:
        try:
            ask = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            raise RequestError(f"the body is not JSON: {e}") from e
        if not isinstance(ask, dict):
            raise RequestError(f"wanted a JSON object, got {type(ask).__name__}")
        if (model := ask.get("model")) not in (None, self._predictor.name):
            raise RefusalError(404, f"no model {model!r} here; this server has {self._predictor.name!r}")
        return ask

    def _blocks(self, ask: dict[str, Any], size: int) -> int:
        """The most of the KV cache that it can come to hold, from the size of its body; vLLM counts tokens itself."""
        longest = ask.get("max_completion_tokens") or ask.get("max_tokens") or self._context
        copies, prompt = ask.get("n") or 1, ask.get("prompt")
        many = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        if not all(isinstance(number, int) for number in (longest, copies)):
            return 1  # vLLM will say what is wrong with it
        tokens = max(1, min(self._context, size // _BYTES_A_TOKEN + longest)) * max(1, copies) * many
        return min(-(-tokens // self._engine.block_tokens), self._engine.blocks)

    @contextmanager
    def _reserving(self, blocks: int) -> Iterator[None]:
        self._check_ready()  # again: it took time to read the body, and others came
        self._predictor.check_open()
        if self._reserved + blocks > self._engine.blocks:
            free = self._engine.blocks - self._reserved
            raise OverloadedError(f"it may need {blocks} blocks of KV cache and {free} are not spoken for; retry")
        started = time.perf_counter()
        self._reserved += blocks
        self._predictor.inflight += 1
        try:
            yield
        finally:
            self._reserved -= blocks
            self._predictor.inflight -= 1
            self._predictor.observe(time.perf_counter() - started)

    async def _until_gone(self, answer: Any, receive: Receive) -> None:
        """A client that leaves closes vLLM's connection, too, which aborts the request there."""
        working, gone = asyncio.ensure_future(answer), asyncio.ensure_future(receive())
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            gone.cancel()
            working.cancel()
            await asyncio.wait((working,))

    async def _forward(self, route: str, body: bytes, send: Send) -> None:
        """vLLM's answer as it comes, all but its end; its own refusals (a context too long) go on as they are."""
        client = self._engine.client
        if client is None:
            raise NotReadyError("vLLM is not running")
        begun = streaming = False
        try:
            async with client.stream("POST", route, content=body, headers=_JSON) as answer:
                kind = answer.headers.get("content-type", "application/json")
                streaming = kind.startswith("text/event-stream")
                await send({"type": "http.response.start", "status": answer.status_code, "headers": self._head(kind)})
                begun = True
                async for chunk in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except httpx.TransportError as e:
            if not begun:
                raise NotReadyError(f"vLLM gave no answer: {e!r}") from e
            if not streaming:
                raise  # the connection breaks off, so nobody takes half an answer for a whole one
            error = _openai(503, "vLLM ended in the middle of this answer; retry")
            last = b"data: " + orjson.dumps(error) + b"\n\ndata: [DONE]\n\n"
            await send({"type": "http.response.body", "body": last, "more_body": True})

    def _head(self, kind: str) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", kind.encode("latin-1")), (b"cache-control", b"no-store")]
        return [*headers, (b"connection", b"close")] if self._predictor.draining else headers

    async def _metrics(self, scope: Message, receive: Receive, send: Send) -> None:
        """KServe's, then vLLM's: the KV cache, the queue, tokens."""

        async def and_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [h for h in message["headers"] if h[0].lower() != b"content-length"]
            elif not message.get("more_body"):
                message["body"] = message.get("body", b"") + await self._engine.metrics()
            await send(message)

        await self._kserve(scope, receive, and_more)

    async def _refuse(self, send: Send, error: RedlineError) -> None:
        status, headers, _ = _refuse(error)
        await self._send(send, status, headers, orjson.dumps(_openai(status, str(error))))

    async def _answer(self, send: Send, status: int, value: dict[str, Any]) -> None:
        await self._send(send, status, [(b"content-type", b"application/json")], orjson.dumps(value))


def _openai(status: int, text: str) -> dict[str, Any]:
    """An error in the form that OpenAI's clients read."""
    return {"error": {"message": text, "type": _KINDS.get(status, "APIError"), "param": None, "code": status}}
