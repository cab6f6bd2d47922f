"""Start a server in a process of its own, on cores of its own, and leave nothing of it behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from redline import artifact
from redline.errors import BrokenError, MissingError

_GRACE_S = 10.0
# Before the server itself starts: its cores, and (prctl PR_SET_PDEATHSIG) an end should we be killed.
_SHIM = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.sched_setaffinity(0, map(int, sys.argv[1].split(','))); os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Server:
    http_url: str
    grpc_url: str
    model: str


def split_cores() -> tuple[set[int], set[int], str]:
    """(the server's cores, the generator's core, what to say of it)."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return set(cores), set(cores), "server and generator share one core: figures are pessimistic"
    server, generator = set(cores[: max(len(cores) // 2, 1)]), {cores[-1]}
    return server, generator, f"server on core(s) {_words(server)}, generator on core {cores[-1]}"


def _words(cores: set[int]) -> str:
    return ",".join(map(str, sorted(cores)))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _is_ready(url: str) -> bool:
    """Raises BrokenError when the server says that its golden answers are wrong: it will not get ready."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 # always our own http://127.0.0.1
            return bool(answer.status == 200)
    except urllib.error.HTTPError as e:
        reason = e.read(10_000).decode(errors="replace")
        if re.search(r"golden request \d+:", reason):
            raise BrokenError(f"the server will not get ready: {reason}") from e
        return False
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _await_ready(process: subprocess.Popen[bytes], command: list[str], url: str, timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_ready(url):
        gone = process.poll()
        if gone is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            what = f"ended with exit code {gone}" if gone is not None else f"was not ready after {timeout_s:g} s"
            raise MissingError(f"the server {what}: {' '.join(command)}\n{tail}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign, grace_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)  # the whole group: a server may have workers
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    # SIGKILL goes to the group even when the leader left in time, so no worker outlives it.


@contextmanager
def served(
    command: list[str], ready_url: str, *, cpus: set[int] | None = None, timeout_s: float = 120.0
) -> Iterator[None]:
    """Run command until the block ends; the block starts when ready_url answers 200.

    Raises:
        MissingError: it ended or was not ready in time; the message has the end of its log.
        BrokenError: its golden answers are wrong.
    """
    shim = [sys.executable, "-c", _SHIM, _words(cpus or os.sched_getaffinity(0))]
    with tempfile.TemporaryDirectory(prefix="redline-bench-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*shim, *command], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            _await_ready(process, command, ready_url, timeout_s, log)
            yield
        finally:
            _stop(process)


@contextmanager
def serve_artifact(
    path: Path, engine: str = "auto", cpus: set[int] | None = None, *, command: list[str] | None = None
) -> Iterator[Server]:
    """Serve an artifact as `redline serve` would (or another `command` that takes the same arguments)."""
    name = artifact.load(path).manifest.name
    http, grpc = free_ports(2)
    argv = [*(command or [sys.executable, "-m", "redline", "serve"]), str(path)]
    argv += ["--http-port", str(http), "--grpc-port", str(grpc)]
    if command is None:
        argv += ["--engine", engine]
    url = f"http://127.0.0.1:{http}"
    with served(argv, f"{url}/v2/models/{name}/ready", cpus=cpus):
        yield Server(url, f"grpc://127.0.0.1:{grpc}", name)
