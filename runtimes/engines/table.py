"""Which engine serves what: (kind of artifact, device) → engine, where it runs, and why. Said here and nowhere else."""

from dataclasses import dataclass

from redline.errors import UsageError

JUDGED = "the recipe's"  # several engines can serve this: the leaderboard chose one
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Choice:
    engine: str
    runs: str  # where
    why: str

    def __str__(self) -> str:
        return f"{self.engine}, {self.runs}: {self.why}"


_IN_PROCESS = "in process or inside Triton's Python backend"

# kind: what lies in model/. Rows are read from top to bottom by people only: keys are unique.
_TABLE = {
    ("module", "cpu"): Choice("torch_eager", _IN_PROCESS, "the unoptimized model, for comparison"),
    ("onnx", "cpu"): Choice(JUDGED, _IN_PROCESS, "the engine that the leaderboard timed it with"),
    ("fused", "cpu"): Choice(JUDGED, _IN_PROCESS, "both engines load Redline's kernels out of the model folder"),
    ("onnx", "cuda"): Choice("triton-onnxruntime", "NVIDIA's Triton", "lets TensorRT build for the device it meets"),
    ("tensorrt", "cuda"): Choice("tensorrt", "in process, or NVIDIA's Triton", "a plan is for one architecture"),
    ("llm", "cpu"): Choice("vllm", "a supervised process", "PagedAttention (CPU_ATTN here) and continuous batching"),
    ("llm", "cuda"): Choice("vllm", "a supervised process", "PagedAttention and continuous batching"),
}
KINDS = tuple(dict.fromkeys(kind for kind, _ in _TABLE))


def device(target: str) -> str:
    """cpu → cpu, cuda:sm_86 → cuda."""
    return target.partition(":")[0]


def pick(kind: str, target: str, judged_with: str) -> Choice:
    """The engine for an artifact of this kind on this target; judged_with: the recipe's own.

    Raises:
        UsageError: no row for it; which there are.
    """
    found = _TABLE.get((kind, device(target)))
    if found is None:
        rows = ", ".join(f"{k} on {d}" for k, d in _TABLE)
        raise UsageError(f"no engine serves {kind!r} on {target!r}; known: {rows}")
    return Choice(judged_with, found.runs, found.why) if found.engine == JUDGED else found
