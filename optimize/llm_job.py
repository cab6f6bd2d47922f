"""The job of a language model: a folder, text, how much worse it may get, the token SLA."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline.bench.tokens import TokenSLA
from redline.errors import JobError, RedlineError
from redline.optimize.passes.llm_quantize import SmoothQuantW8A8, read_config

SPLITS = ("calibration", "validation", "test")
WINDOW = 512  # tokens
_WINDOWS = {"calibration": 8, "validation": 16, "test": 16}  # at most


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageJob:
    name: str
    model: Callable[[], Path]  # a Hugging Face folder: config.json, model.safetensors, tokenizer.json
    text: Callable[[str], str]  # split → text; perplexity is judged on `validation`, reported on `test`
    sla: TokenSLA
    max_rise: float = 0.01  # of perplexity, as a share of the source model's
    context: int = 2048  # tokens of prompt and answer together
    streams: int = 16  # at once
    kv_cache_gib: int = 1
    quantize: tuple[SmoothQuantW8A8, ...] = (SmoothQuantW8A8(),)  # candidates beside bf16

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or not self.name[0].isalnum():
            raise JobError(f"job name {self.name!r}: letters, digits, `-`, `_` and `.` only")
        for what in ("model", "text"):
            if not callable(getattr(self, what)):
                raise JobError(f"job {self.name}: {what} must be a function, got {type(getattr(self, what)).__name__}")
        if not math.isfinite(self.max_rise) or min(self.streams, self.kv_cache_gib) < 1:
            raise JobError(f"job {self.name}: max_rise must be a number, streams and kv_cache_gib at least 1")
        if self.context <= WINDOW:
            raise JobError(f"job {self.name}: wanted a context of more than {WINDOW} tokens, got {self.context}")
        if self.sla.prompt_tokens + self.sla.output_tokens > self.context:
            raise JobError(f"job {self.name}: {self.sla.words} do not fit a context of {self.context}")

    def folder(self) -> Path:
        """The model's folder, checked.

        Raises:
            JobError: it is none, or its context is shorter than the job's.
        """
        folder = self._call("model")
        if not isinstance(folder, Path):
            raise JobError(f"job {self.name}: model() gave {type(folder).__name__}, wanted the Path of a model folder")
        longest = read_config(folder).get("max_position_embeddings", self.context)
        if longest < self.context:
            raise JobError(f"job {self.name}: a context of {self.context} tokens, the model's is {longest}")
        return folder

    def windows(self, split: str, tokenizer: Any) -> list[list[int]]:
        """The split's text as whole windows of tokens."""
        text = self._call("text", split)
        if not isinstance(text, str):
            raise JobError(f"job {self.name}: text({split!r}) gave {type(text).__name__}, wanted a string")
        tokens = tokenizer.encode(text, add_special_tokens=False).ids
        whole = [tokens[i : i + WINDOW] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
        if not whole:
            raise JobError(f"job {self.name}: text({split!r}) has {len(tokens)} tokens, wanted {WINDOW} at least")
        return whole[: _WINDOWS[split]]

    def _call(self, what: str, *args: Any) -> Any:
        try:
            return getattr(self, what)(*args)
        except RedlineError:
            raise
        except (Exception, SystemExit) as e:
            raise JobError(f"job {self.name}: {what} failed: {type(e).__name__}: {e}") from e
