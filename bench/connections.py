"""A minimal HTTP/1.1 client: one request at a time on each of a pool of kept-alive connections."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from redline.bench.load import Clock, Done

_MAX_HEAD = 65_536


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]  # names in lower case
    body: bytes
    size: int  # bytes of the whole message


def parse_answer(data: bytes | bytearray) -> Answer | int:
    """The answer at the start of data, or how many bytes there must be before asking again.

    Raises:
        ValueError: this is not HTTP/1.x with a length.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > _MAX_HEAD or not data.startswith(b"HTTP/1."[: len(data)]):
            raise ValueError("no HTTP/1.x head")
        return len(data) + 1
    first, *lines = bytes(data[:end]).split(b"\r\n")
    version, status, *_ = [*first.split(b" ", 2), b""]
    if not version.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
        raise ValueError("bad status line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    start = end + 4
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _parse_chunked(data, start, int(status), headers)
    length = headers.get(b"content-length", b"")
    if not length.isdigit():
        raise ValueError("no content-length")
    stop = start + int(length)
    return stop if len(data) < stop else Answer(int(status), headers, bytes(data[start:stop]), stop)


def _parse_chunked(data: bytes | bytearray, at: int, status: int, headers: dict[bytes, bytes]) -> Answer | int:
    chunks: list[bytes] = []
    while (end := data.find(b"\r\n", at)) >= 0:
        size = bytes(data[at:end]).partition(b";")[0].strip()
        if not size or size.strip(b"0123456789abcdefABCDEF"):
            raise ValueError("bad chunk size")
        start, stop = end + 2, end + 2 + int(size, 16)
        if len(data) < stop + 2:
            return stop + 2
        if data[stop : stop + 2] != b"\r\n":
            raise ValueError("bad chunk end (trailers are not taken)")
        if start == stop:
            return Answer(status, headers, b"".join(chunks), stop + 2)
        chunks.append(bytes(data[start:stop]))
        at = stop + 2
    return len(data) + 1


class Exchange:
    """One request on its way; `cancel` gives up on it and on the connection that carries it."""

    __slots__ = ("cancelled", "connection", "done", "message", "retried")

    def __init__(self, message: bytes, done: Done) -> None:
        self.message, self.done = message, done
        self.connection: _Connection | None = None
        self.cancelled = self.retried = False

    def cancel(self) -> None:
        self.cancelled = True
        if self.connection is not None:
            self.connection.drop()


class _Connection(asyncio.Protocol):
    def __init__(self, pool: "HttpPool") -> None:
        self._pool = pool
        self._transport: asyncio.WriteTransport | None = None
        self._exchange: Exchange | None = None
        self._buffer = bytearray()
        self._need = 0
        self._used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._pool.opened(self)

    def start(self, exchange: Exchange) -> None:
        if self._transport is None:
            raise AssertionError("started before it was connected")
        self._exchange, exchange.connection = exchange, self
        self._transport.write(exchange.message)

    def data_received(self, data: bytes) -> None:
        at_ns = self._pool.clock.now_ns()
        self._buffer += data
        if len(self._buffer) < self._need:
            return
        try:
            answer = parse_answer(self._buffer)
            if isinstance(answer, int):
                self._need = answer
                return
            if len(self._buffer) > answer.size or self._exchange is None:
                raise ValueError("bytes nobody asked for")
        except ValueError:
            self._end(at_ns, "malformed answer")
            self.drop()
            return
        self._buffer.clear()
        self._need, self._used = 0, True
        exchange, self._exchange = self._exchange, None
        exchange.connection = None
        if answer.headers.get(b"connection", b"").lower() == b"close":
            self.drop()
        else:
            self._pool.ready(self)
        exchange.done(at_ns, self._pool.check(answer))

    def connection_lost(self, exc: Exception | None) -> None:
        exchange = self._exchange
        self._pool.lost(self)
        if exchange and not exchange.cancelled and self._used and not self._buffer and not exchange.retried:
            # The server closed an idle connection as we wrote: RFC 9112 9.3.1 lets a client ask again, once.
            self._exchange, exchange.connection, exchange.retried = None, None, True
            self._pool.submit(exchange)
        else:
            self._end(self._pool.clock.now_ns(), "connection closed")

    def _end(self, at_ns: int, error: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.connection = None
            if not exchange.cancelled:
                exchange.done(at_ns, error)

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class HttpPool:
    """A Wire over HTTP: grows by a connection whenever a request finds none free, up to `limit`; then requests queue.

    That queue is the server's doing (all `limit` are waiting for answers), so it counts as latency, not as lateness.
    """

    def __init__(
        self,
        host: str,
        port: int,
        messages: list[bytes],
        clock: Clock,
        check: Callable[[Answer], str | None],
        limit: int = 1024,
    ) -> None:
        self._host, self._port, self._messages, self._limit = host, port, messages, limit
        self.clock, self.check = clock, check
        self._idle: list[_Connection] = []  # last in, first out: the surplus goes cold and the server may close it
        self._all: set[_Connection] = set()
        self._waiting: deque[Exchange] = deque()
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, request: int, done: Done) -> Exchange:
        exchange = Exchange(self._messages[request], done)
        self.submit(exchange)
        return exchange

    def submit(self, exchange: Exchange) -> None:
        if self._idle:
            self._idle.pop().start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._all) + len(self._opening) < self._limit and len(self._opening) < len(self._waiting):
            task = asyncio.get_running_loop().create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self) -> None:
        connection = _Connection(self)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        except OSError as e:
            self._fail_one("connection refused" if isinstance(e, ConnectionRefusedError) else "can't connect")
            return
        if connection in self._all:
            self.ready(connection)
        else:
            self._fail_one("connection closed")

    def _fail_one(self, error: str) -> None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.cancelled:
                exchange.done(self.clock.now_ns(), error)
                return

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def ready(self, connection: _Connection) -> None:
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.cancelled:
                connection.start(exchange)
                return
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        for task in tuple(self._opening):
            task.cancel()
        for connection in tuple(self._all):
            connection.drop()
        await asyncio.sleep(0)
