"""Serve an LLM artifact, show one chat as it streams, then load it: python examples/llm/chat.py ARTIFACT"""

import json
import subprocess
import sys
from pathlib import Path

import httpx

from redline import artifact
from redline.bench.tokens import serving
from redline.errors import RedlineError

_QUESTION = "What is the capital of France, and what is it known for?"


def chat(url: str, model: str) -> None:
    """Any OpenAI client would do; base_url is `url`/v1."""
    ask = {"model": model, "messages": [{"role": "user", "content": _QUESTION}], "stream": True, "max_tokens": 80}
    print(f"\nyou     {_QUESTION}\nmodel   ", end="", flush=True)
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=ask | {"temperature": 0}, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:]).get("choices", ()):
                    print(choice["delta"].get("content", ""), end="", flush=True)
    print("\n")


def main(folder: str) -> int:
    try:
        found = artifact.load(Path(folder))
        with serving(found) as url:
            print(f"serving {found.manifest.name} ({found.manifest.recipe['name']}) at {url}/v1")
            chat(url, found.manifest.name)
            bench = [sys.executable, "-m", "redline", "bench", url, "--requests", folder]
            return subprocess.run(bench, check=False).returncode
    except RedlineError as e:
        print(f"chat: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
