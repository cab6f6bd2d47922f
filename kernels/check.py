"""`make kernels`: every .cu compiled for its architectures and bounded, then run on the CPU against its reference.

python -m redline.kernels.check
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import BrokenError, MissingError, RedlineError
from redline.kernels.host.run import ORDERS, Counts, Order, run
from redline.kernels.launch import Kernel, Shape
from redline.kernels.nvcc import compile_cuda
from redline.kernels.operators import brought


def on_host(
    kernel: Kernel, shape: Shape, args: list[Any], order: Order, *, checked: bool = True
) -> tuple[NDArray[Any], Counts]:
    """The answer of a kernel.cu, run on the CPU."""
    counts = run(kernel, shape.grid, shape.block, shape.smem, args, checked=checked, order=order, seed=1)
    return args[-1], counts


def _print_resources(source: Path) -> None:
    compiled = compile_cuda(source)
    print(f"{'kernel':26} {'arch':7} registers  bound  spills  shared")
    for r in compiled.resources:
        bound = compiled.bounds[r.kernel].registers[r.arch]
        print(f"{r.kernel:26} {r.arch:7} {r.registers:9} {bound:6} {r.spill_bytes:7} {r.shared_bytes:7}")
    ptx = compiled.resources[0].arch.replace("sm_", "compute_")
    print(f"{compiled.fatbin.name} holds them and PTX for {ptx}: {compiled.fatbin.stat().st_size / 1024:.0f} KiB\n")


def _run_cases() -> None:
    print(f"{'kernel':26} {'shape':23} order    largest error  read KiB  written KiB  seconds")
    for case in brought("cuda", "cases"):
        for order in ORDERS:
            started = time.perf_counter()
            y, counts = on_host(case.kernel, case.shape, case.args, order)
            error = float(np.abs(y.astype(np.float32) - case.wanted).max())
            read, written = sum(counts.read_bytes) / 1024, sum(counts.written_bytes) / 1024
            name, took = case.kernel.name, time.perf_counter() - started
            print(f"{name:26} {case.label:23} {order:7} {error:14.1e} {read:9.1f} {written:12.1f} {took:8.2f}")
            if not error <= case.allowed:
                raise BrokenError(f"{name} differs from its reference by {error:.1e}, allowed {case.allowed:.0e}")
    print("no access out of bounds, no race, no divergent barrier, no uninitialized shared memory in any order")


def main() -> int:
    missing = None
    try:
        for source in sorted(Path(__file__).parent.glob("*/kernel.cu")):
            try:
                _print_resources(source)
            except MissingError as e:  # the CPU can still tell a lot
                missing = e
        _run_cases()
    except RedlineError as e:
        print(f"kernels: {e}", file=sys.stderr)
        return e.exit_code
    if missing:
        print(f"kernels: {missing}", file=sys.stderr)
        return missing.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
