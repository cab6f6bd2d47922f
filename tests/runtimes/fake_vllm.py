"""Stands in vLLM's place: its command line, health, metrics and completions over HTTP, with a "model" of arithmetic.

Run by a fake environment's `bin/python`; only the standard library. A prompt's word says how it behaves: `slow` streams
a token every 0.1 s, `hang` streams one and then nothing, `die` kills the process after two tokens.
"""

import argparse
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTEXT, BLOCKS, BLOCK = 256, 12, 16
RUNNING, PAUSE_S, LOSS = 0, 0.0, 1.0
LOCK = threading.Lock()


def logprob(tokens: list[int], token: int) -> float:
    return -((sum(tokens) * 31 + token) % 97) / 10


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer(200, b"")
        elif self.path == "/metrics":
            cache = f'vllm:cache_config_info{{block_size="{BLOCK}",engine="0",num_gpu_blocks="{BLOCKS}"}} 1.0'
            self.answer(200, f"{cache}\nvllm:num_requests_running {RUNNING}\n".encode(), "text/plain")
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        global RUNNING
        ask = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            RUNNING += 1
        try:
            self.complete(ask)
        except OSError:
            self.close_connection = True  # the reader left
        finally:
            with LOCK:
                RUNNING -= 1

    def complete(self, ask: dict[str, Any]) -> None:
        prompt = ask.get("prompt") or ask["messages"][-1]["content"]
        if len(prompt) + (ask.get("max_tokens") or 1) > CONTEXT:
            text = f"This model's maximum context length is {CONTEXT} tokens. However, your prompt has {len(prompt)}."
            self.answer(400, json.dumps({"error": {"message": text, "code": 400}}).encode())
        elif ask.get("prompt_logprobs") is not None:
            told = [{str(t): {"logprob": logprob(prompt[:i], t) * LOSS}} for i, t in enumerate(prompt)]
            rows = [None, *told[1:]]
            self.answer(200, json.dumps({"choices": [{"prompt_logprobs": rows}]}).encode())
        elif ask.get("stream"):
            self.stream(str(prompt), ask.get("max_tokens", 4))
        elif ask.get("logprobs"):
            top = {f"token_id:{t}": logprob(prompt, t) for t in range(20)}
            top = dict(sorted(top.items(), key=lambda item: -item[1]))
            self.answer(200, json.dumps({"choices": [{"logprobs": {"top_logprobs": [top]}}]}).encode())
        else:
            time.sleep(1.0 if "slow" in str(prompt) else 0.0)
            if "die" in str(prompt):
                os.kill(os.getpid(), signal.SIGKILL)
            start = time.thread_time()
            while time.thread_time() < start + PAUSE_S:
                pass  # computes, since CPU time is what is compared
            usage = {"completion_tokens": ask.get("max_tokens")}
            self.answer(200, json.dumps({"choices": [{"text": "done"}], "usage": usage}).encode())

    def stream(self, prompt: str, tokens: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(tokens):
            if i == 2 and "die" in prompt:
                os.kill(os.getpid(), signal.SIGKILL)
            if i == 1 and "hang" in prompt:
                self.connection.recv(1)  # until the reader leaves
                raise BrokenPipeError
            self.event({"choices": [{"delta": {"content": f"w{i} "}}]})
            time.sleep(0.1 if "slow" in prompt or "die" in prompt else 0.0)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def event(self, value: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n" % len(data) + data + b"\r\n")


def main() -> None:
    global PAUSE_S, LOSS, CONTEXT
    parser = argparse.ArgumentParser()
    parser.add_argument("-m")
    parser.add_argument("verb", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    known, _ = parser.parse_known_args()
    CONTEXT = known.max_model_len
    config = json.loads((known.model / "config.json").read_text())
    PAUSE_S = config.get("pause_s", 0.0)
    if "quantization_config" in config:  # faster, and a little worse
        PAUSE_S, LOSS = PAUSE_S / 2, config.get("loss", 1.001)
    if config.get("broken") == "start":
        raise SystemExit("the fake engine can not start")
    Path(os.environ["FAKE_VLLM_PID"]).write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ThreadingHTTPServer(("127.0.0.1", known.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
