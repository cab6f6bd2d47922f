"""A server that answers at once, to find the generator's own ceiling; with a stall, to show what closed loops hide.

python -m redline.bench.peers.noop --port 8080 [--stall-ms 300 --every-s 3]
"""

import argparse
import asyncio
import time

_BODY = b'{"model_name":"noop","outputs":[]}'
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


class Noop(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            _, _, rest = self._buffer[:end].lower().partition(b"\r\ncontent-length:")
            size = end + 4 + int(rest.split(b"\r\n", 1)[0] or b"0")
            if len(self._buffer) < size:
                return
            self._buffer = self._buffer[size:]
            self._transport.write(_ANSWER)


async def serve(port: int, stall_ms: float = 0.0, every_s: float = 3.0) -> None:
    server = await asyncio.get_running_loop().create_server(Noop, "127.0.0.1", port, backlog=1024)
    async with server:
        while True:
            await asyncio.sleep(every_s)
            time.sleep(stall_ms / 1e3)  # in the loop on purpose: nobody is answered meanwhile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stall-ms", type=float, default=0.0)
    parser.add_argument("--every-s", type=float, default=3.0)
    args = parser.parse_args()
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(args.port, args.stall_ms, args.every_s))


if __name__ == "__main__":
    main()
