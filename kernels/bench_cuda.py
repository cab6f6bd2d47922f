"""Every operator on a GPU beside eager PyTorch and torch.compile: `python -m redline.kernels.bench_cuda OUT.json`.

What is timed comes from the operators' rivals.py. Times are medians of CUDA events, rounds interleaved, the caches
warm; a subject answers the timed inputs rightly before its row counts. Achieved operations/s count what the answer
needs, achieved bandwidth the bytes of the operator's inputs and output, each once. It has not run on a GPU yet; without
one it exits 3.
"""

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from redline.errors import MeasurementError, MissingError, RedlineError, UsageError
from redline.kernels.launch import need_driver
from redline.kernels.operators import brought
from redline.kernels.works import Work

_ROUNDS, _WARM_UP = 50, 5
_CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"


@dataclass(frozen=True, slots=True)
class Row:
    work: str
    subject: str
    median_us: float
    p10_us: float
    p90_us: float
    tera_ops_per_s: float
    gb_per_s: float
    largest_error: float


def measure(work: Work) -> list[Row]:
    """Raises MeasurementError where a subject's answer is wrong."""
    torch.compiler.reset()  # past eight shapes of one function it would run eagerly, and say so in a warning only
    errors = {}
    for name, subject in work.subjects.items():
        for _ in range(_WARM_UP):
            answer = subject.call()
        errors[name] = off = float((answer.float() - subject.wanted).abs().max())
        if not (answer.shape == subject.wanted.shape and off <= subject.allowed):
            raise MeasurementError(
                f"{work.name}: {name} is {list(answer.shape)} and {off:.2g} off, wanted {list(subject.wanted.shape)} "
                f"within {subject.allowed:g}; not timed"
            )
    times: dict[str, list[float]] = {name: [] for name in work.subjects}
    for _ in range(_ROUNDS):
        for name, subject in work.subjects.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            subject.call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) * 1e3)
    rows = []
    for name, took in times.items():
        cuts, median = statistics.quantiles(took, n=10), statistics.median(took)
        tera_ops_per_s, gb_per_s = work.operations / median / 1e6, work.bytes_needed / median / 1e3
        rows.append(Row(work.name, name, median, cuts[0], cuts[-1], tera_ops_per_s, gb_per_s, errors[name]))
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
    for work in brought("rivals", "works"):
        for row in measure(work):
            rows.append(row)
            speed = f"{row.median_us:9.1f} us {row.tera_ops_per_s:7.1f} Top/s {row.gb_per_s:7.0f} GB/s"
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
