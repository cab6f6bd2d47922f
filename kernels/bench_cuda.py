"""Attention on a GPU beside eager PyTorch, torch.compile and SDPA: `python -m redline.kernels.bench_cuda OUT.json`.

Times are medians of CUDA events, rounds interleaved, the caches warm; a subject answers the timed inputs as float32
SDPA does before its row counts. Achieved FLOP/s count what the answer needs, achieved bandwidth the bytes of the
operator's inputs and output, each once. It has not run on a GPU yet; without one it exits 3.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from redline.errors import MeasurementError, MissingError, RedlineError, UsageError
from redline.kernels import torch_face
from redline.kernels.flash_attention.operator import TOLERANCE
from redline.kernels.launch import need_driver

_ROUNDS, _WARM_UP = 50, 5
_CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


@dataclass(frozen=True, slots=True)
class Work:
    """One shape: its subjects, what they must answer, and what the answer needs at least."""

    name: str
    subjects: dict[str, Callable[[], Tensor]]
    wanted: Tensor  # float32
    operations: int
    bytes_needed: int


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    subject: str
    median_us: float
    p10_us: float
    p90_us: float
    tflops: float
    gb_per_s: float
    largest_error: float


def _eager(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    scores = q @ k.transpose(2, 3) * scale
    return (scores if hidden is None else scores.masked_fill(hidden, -torch.inf)).softmax(3) @ v


def prefill(dtype: torch.dtype, d: int, n: int, causal: bool) -> Work:
    batch, heads, scale = max(1, 8192 // n), 2048 // d, d**-0.5
    q, k, v = (torch.randn(batch, heads, n, d, device="cuda", dtype=dtype) for _ in range(3))
    hidden = torch.ones(n, n, device="cuda", dtype=torch.bool).triu(1) if causal else None
    compiled = torch.compile(_eager)
    return Work(
        f"flash_attention {str(dtype).removeprefix('torch.')} batch {batch} heads {heads} n {n} d {d} causal {causal}",
        {
            "redline": lambda: torch_face.flash_attention(q, k, v, causal, scale),
            "sdpa": lambda: sdpa(q, k, v, is_causal=causal, scale=scale),
            "torch.compile": lambda: compiled(q, k, v, hidden, scale),
            "eager": lambda: _eager(q, k, v, hidden, scale),
        },
        sdpa(q.float(), k.float(), v.float(), is_causal=causal, scale=scale),
        4 * batch * heads * d * (n * (n + 1) // 2 if causal else n * n),
        4 * q.nbytes,
    )


def decode(dtype: torch.dtype, sequences: int, context: int, heads: int = 32, kv_heads: int = 8, d: int = 128) -> Work:
    """The rivals have no block tables: they are given keys and values gathered beforehand, and that isn't timed."""
    size, scale = 16, d**-0.5
    per = -(-context // size)
    table = torch.randperm(sequences * per, device="cuda").int().reshape(sequences, per)
    lens = torch.full((sequences,), context, device="cuda", dtype=torch.int32)
    caches = [torch.randn(sequences * per, size, kv_heads, d, device="cuda", dtype=dtype) for _ in range(2)]
    k, v = (c[table.long()].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for c in caches)
    q = torch.randn(sequences, heads, d, device="cuda", dtype=dtype)
    rows = q[:, :, None]

    def eager() -> Tensor:
        wide_k, wide_v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        return _eager(rows, wide_k, wide_v, None, scale)[:, :, 0]

    wanted = sdpa(rows.float(), k.float(), v.float(), scale=scale, enable_gqa=True)[:, :, 0]
    return Work(
        f"paged_attention {str(dtype).removeprefix('torch.')} sequences {sequences} context {context} "
        f"heads {heads}/{kv_heads} d {d}",
        {
            "redline": lambda: torch_face.paged_attention(q, *caches, table, lens, scale),
            "sdpa, gathered": lambda: sdpa(rows, k, v, scale=scale, enable_gqa=True)[:, :, 0],
            "torch.compile, gathered": torch.compile(eager),
            "eager, gathered": eager,
        },
        wanted,
        4 * sequences * heads * context * d,
        k.nbytes + v.nbytes + 2 * q.nbytes + table.nbytes,
    )


def works() -> Iterator[Work]:
    for dtype in (torch.float16, torch.bfloat16):
        for d in (64, 128):
            for n, causal in ((512, False), (2048, False), (2048, True), (8192, True)):
                yield prefill(dtype, d, n, causal)
        for sequences, context in ((1, 4096), (32, 1024), (128, 4096)):
            yield decode(dtype, sequences, context)


def measure(work: Work) -> list[Row]:
    """Raises MeasurementError where a subject's answer is wrong."""
    errors = {}
    for name, subject in work.subjects.items():
        for _ in range(_WARM_UP):
            answer = subject()
        errors[name] = float((answer.float() - work.wanted).abs().max())
        if not errors[name] <= TOLERANCE:
            raise MeasurementError(f"{work.name}: {name} is {errors[name]:.2g} off (allowed {TOLERANCE:g}); not timed")
    times: dict[str, list[float]] = {name: [] for name in work.subjects}
    for _ in range(_ROUNDS):
        for name, subject in work.subjects.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            subject()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) * 1e3)
    rows = []
    for name, took in times.items():
        cuts, median = statistics.quantiles(took, n=10), statistics.median(took)
        tflops, gb_per_s = work.operations / median / 1e6, work.bytes_needed / median / 1e3
        rows.append(Row(work.name, name, median, cuts[0], cuts[-1], tflops, gb_per_s, errors[name]))
    return rows


def conditions() -> dict[str, Any]:
    said = None
    if tool := shutil.which("nvidia-smi"):
        done = subprocess.run([tool, f"--query-gpu={_CLOCKS}", "--format=csv,noheader"], capture_output=True, text=True)
        said = dict(zip(_CLOCKS.split(","), done.stdout.partition("\n")[0].split(", "), strict=False))
    capability = "{}.{}".format(*torch.cuda.get_device_capability())
    return {
        "device": torch.cuda.get_device_name(),
        "capability": capability,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rounds": _ROUNDS,
        "nvidia-smi": said,  # clocks as they are when it is asked
    }


def main(path: Path) -> None:
    need_driver()
    if not torch.cuda.is_available():
        raise MissingError(f"the benchmark needs torch built for CUDA, this is {torch.__version__}: see pytorch.org")
    if torch.cuda.get_device_capability() < (8, 0):
        raise MissingError("the attention kernels need a GPU of sm_80 or newer")
    torch.manual_seed(0)
    before, rows = conditions(), list[Row]()
    for work in works():
        for row in measure(work):
            rows.append(row)
            speed = f"{row.median_us:9.1f} us {row.tflops:7.1f} TFLOP/s {row.gb_per_s:7.0f} GB/s"
            print(f"{row.work}  {row.subject:24} {speed}")
    found = {"before": before, "after": conditions(), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise UsageError("python -m redline.kernels.bench_cuda OUT.json")
        main(Path(sys.argv[1]))
    except RedlineError as e:
        print(f"kernels: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
