"""Real servers on loopback, each a few lines. Only the stall's figure decides a test: it is far over its line."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from redline.bench.measuring import Load, Subject, highest_rate, measure, measure_pair
from redline.bench.report import write
from redline.bench.serving import free_ports, served
from redline.errors import BrokenError, MissingError

_REQUEST = {"x": np.zeros((1, 2), np.float32)}
_BODY = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[1,2]}]}'
_QUICK = Load(warmup_s=0.1, timeout_s=1.0)


@contextmanager
def answering(answer: Callable[[int], tuple[int, bytes]]) -> Iterator[str]:
    """Status and body of the i-th request."""
    count = iter(range(10**9))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answer(next(count))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def noop(*options: str) -> Iterator[Subject]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with served([sys.executable, "-m", "redline.bench.peers.noop", "--port", str(port), *options], url, timeout_s=30):
        yield Subject(url, "noop", [_REQUEST])


def test_a_server_that_stalls_is_broken(tmp_path: Path) -> None:
    with noop("--stall-ms", "300", "--every-s", "2.7") as subject:
        report = measure(subject, rate_rps=200, duration_s=7, p99_ms=50)
    assert (report.status, report.exit_code) == ("broken", 1), report.why
    assert report.p99_ms > 150
    page = write(tmp_path / "r", [report], [], {}).read_text()
    assert report.why.partition("[")[0] in page
    assert "http://www.w3.org" in page  # the namespace of SVG; nothing else leaves the page
    assert "<script" not in page
    assert "src=" not in page


def test_a_dead_port_is_broken_at_once() -> None:
    (port,) = free_ports(1)
    report = measure(Subject(f"http://127.0.0.1:{port}", "m", [_REQUEST]), rate_rps=200, duration_s=60, p99_ms=50)
    assert (report.status, report.attempts) == ("broken", 0)
    assert "connection refused" in report.why
    found = highest_rate(Subject(f"http://127.0.0.1:{port}", "m", [_REQUEST]), p99_ms=50)
    assert (found.rate_rps, found.exit_code, found.best) == (0, 1, None)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((200, _BODY), ""),
        ((200, _BODY.replace(b"2]}", b"3]}")), "differs from the golden answer by 1"),
        ((200, b"{}"), "malformed answer"),
        ((404, b"no such model"), "HTTP 404: no such model"),
        ((503, b"loading"), "HTTP 503: loading"),
    ],
)
def test_answers_are_checked_before_time_is_taken(answer: tuple[int, bytes], why: str) -> None:
    with answering(lambda _: answer) as url:
        subject = Subject(url, "m", [_REQUEST], [{"y": np.array([1, 2], np.float32)}], 1e-3, "http-json")
        report = measure(subject, rate_rps=50, duration_s=0.3, p99_ms=1000, load=_QUICK, attempts=1)
    assert why in report.why
    assert (report.status, report.attempts) == (("broken", 0) if why else ("invalid", 1))  # the good one: few samples


def test_errors_under_load_are_misses() -> None:
    with answering(lambda i: (500 if i % 5 == 4 else 200, _BODY)) as url:
        report = measure(Subject(url, "m", [_REQUEST]), rate_rps=200, duration_s=1, p99_ms=900, load=_QUICK)
    assert report.status == "broken"
    assert set(report.errors) == {"HTTP 500"}
    assert report.as_dict()["p99_ms"] is None  # infinite: JSON has no such number


def test_two_servers_in_turns() -> None:
    with noop() as a, noop() as b:
        first, second, ratio = measure_pair(a, b, rate_rps=300, duration_s=2, p99_ms=500, load=_QUICK)
    assert first.samples == second.samples > 459
    assert ratio is not None
    assert ratio[1] <= ratio[0] <= ratio[2]


def test_a_server_that_dies_says_why_and_one_that_lives_is_stopped() -> None:
    with (
        pytest.raises(MissingError, match=r"exit code 3(.|\n)*no luck"),
        served(
            [sys.executable, "-c", "print('no luck', flush=True); raise SystemExit(3)"],
            "http://127.0.0.1:1/",
            timeout_s=30,
        ),
    ):
        raise AssertionError("it never was ready")
    with noop() as subject:
        pass
    assert "connection refused" in measure(subject, rate_rps=9, duration_s=1, p99_ms=9).why


def test_grpc_in_a_process_without_kserve() -> None:
    server = Path(__file__).with_name("grpc_echo.py")
    (port,) = free_ports(1)
    run = subprocess.run(
        [sys.executable, str(server), str(port)], capture_output=True, text=True, timeout=60, check=True
    )
    first, second = run.stdout.splitlines()
    assert first.startswith("invalid True {} too few samples")
    assert "differs from the golden answer by 1" in second


def test_locust_carries_the_same_verdict(tmp_path: Path) -> None:
    np.savez(tmp_path / "ask.npz", **{"0/in/x": _REQUEST["x"]})
    locustfile = Path(measure.__code__.co_filename).with_name("locustfile.py")
    with noop() as subject:
        done = subprocess.run(
            [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless", "-u", "2", "-r", "2", "-t", "4s",
             "-H", subject.url, "--rate", "200", "--p99", "5s", "--ask", str(tmp_path / "ask.npz"), "--model", "noop"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held: p99" in done.stderr


@pytest.mark.parametrize(
    ("reason", "error"),
    [("replaying golden requests", MissingError), ("golden request 3: output score differs", BrokenError)],
)
def test_a_server_that_answers_wrong_is_not_waited_for(reason: str, error: type[Exception]) -> None:
    port = free_ports(1)[0]
    code = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(503); self.end_headers(); self.wfile.write(sys.argv[2].encode())\n"
        "    def log_message(self, *a): pass\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    command = [sys.executable, "-c", code, str(port), reason]
    waiting = served(command, f"http://127.0.0.1:{port}/", timeout_s=2)
    with pytest.raises(error, match=r"not ready after|will not get ready"), waiting:
        pass
