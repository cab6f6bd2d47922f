"""Open-loop load through Locust, for its web page, its workers, and many machines.

locust -f bench/locustfile.py --headless -u 4 -t 30s -H http://127.0.0.1:8080 --rate 250 --p99 50ms --ask ARTIFACT

Each of the -u users sends its share of --rate, on a schedule of its own; latency counts from the scheduled time. At the
end the exit code is the verdict's: 0 held, 1 broken, 4 invalid. Locust patches the standard library by gevent when it
is imported, so this file is for a process of its own.
"""

import itertools
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import gevent
import numpy as np
from geventhttpclient import HTTPClient
from locust import User, events, task

from redline.bench.arrivals import schedule
from redline.bench.connections import Answer
from redline.bench.load import Run
from redline.bench.questions import read_questions
from redline.bench.stats import MISS, Latencies
from redline.bench.verdict import EXIT_CODES, RedLine, judge
from redline.bench.wire import PROTOCOLS, Reader, encode_binary, encode_json, encode_v1, parse_target
from redline.units import duration_ns

_NAME = "infer"
_HOUR_S = 3600.0
_seeds = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _options(parser: Any) -> None:  # Locust's own parser
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second of all users together")
    parser.add_argument("--p99", default="50ms", help="the red line")
    parser.add_argument("--ask", required=True, help="artifact or .npz with the requests")
    parser.add_argument("--model", dest="served_model", default="", help="the model's name on the server")
    parser.add_argument("--wire", choices=[p for p in PROTOCOLS if p != "grpc"], default="http-binary")
    parser.add_argument("--timeout", default="2s", dest="answer_timeout", help="a later answer is a miss")


class OpenLoop(User):
    def on_start(self) -> None:
        options: Namespace = self.environment.parsed_options
        asked = read_questions(Path(options.ask))
        self._target = parse_target(self.host or "", options.served_model or asked.model, options.wire)
        self._bodies = [self._body(arrays) for arrays in asked.requests]
        timeout_s = duration_ns(options.answer_timeout) / 1e9
        self._client = HTTPClient(
            self._target.host,
            self._target.port,
            concurrency=512,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
        )
        self._rate = options.rate / max(self.environment.parsed_options.num_users or 1, 1)

    def _body(self, arrays: Any) -> tuple[bytes, dict[str, str]]:
        if self._target.protocol == "http-binary":
            body, size = encode_binary(arrays)
            return body, {"Inference-Header-Content-Length": str(size), "Content-Type": "application/octet-stream"}
        body = encode_v1(arrays) if self._target.protocol == "v1" else encode_json(arrays)
        return body, {"Content-Type": "application/json"}

    @task
    def arrivals(self) -> None:
        """Never waits for an answer: each request is a greenlet of its own."""
        seed = next(_seeds) * 1009 + id(self) % 1000
        start_s = time.perf_counter()
        for i, due_ns in enumerate(schedule(self._rate, _HOUR_S, "poisson", seed).tolist()):
            due_s = start_s + due_ns / 1e9
            gevent.sleep(max(due_s - time.perf_counter(), 0))
            gevent.spawn(self._ask, i, due_s)

    def _ask(self, i: int, due_s: float) -> None:
        body, headers = self._bodies[i % len(self._bodies)]
        size, problem = 0, None
        try:
            answer = self._client.post(self._target.path, body=body, headers=headers)
            content = bytes(answer.read())
            fields = {k.lower().encode(): v.encode() for k, v in answer.items()}
            size = len(content)
            problem = Reader(self._target.protocol).http(Answer(answer.status_code, fields, content, size))
        except Exception as e:  # whatever the client raises, the request failed
            problem = type(e).__name__
        self.environment.events.request.fire(
            request_type="POST", name=_NAME, response_time=1e3 * (time.perf_counter() - due_s), response_length=size,
            exception=RuntimeError(problem) if problem else None, context={},
        )  # fmt: skip


def _latencies(total: Any) -> Latencies:
    """From Locust's histogram, which workers share; it doesn't say which requests failed, so the fastest are struck."""
    times = sorted((ms, n) for ms, n in total.response_times.items())
    latency_ns = np.repeat([int(ms * 1e6) for ms, _ in times], [n for _, n in times]).astype(np.int64)
    latency_ns[: total.num_failures] = MISS
    return np.random.default_rng(0).permutation(latency_ns)  # its order is lost: no drift to be seen


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _verdict(environment: Any, **_: object) -> None:
    if environment.parsed_options is None or type(environment.runner).__name__ == "WorkerRunner":
        return
    total, options = environment.stats.total, environment.parsed_options
    latency_ns = _latencies(total)
    errors = {"failed": total.num_failures} if total.num_failures else {}
    nothing = np.zeros(len(latency_ns), np.int64)  # Locust can't say how late it was: what it adds counts as latency
    run = Run(rate_rps=options.rate, due_ns=nothing, late_ns=nothing, latency_ns=latency_ns, errors=errors)
    finding = judge(run, RedLine(p99_ms=duration_ns(options.p99) / 1e6))
    print(f"{finding.status}: {finding.why}", file=sys.stderr)
    environment.process_exit_code = EXIT_CODES[finding.status]
