"""`make kernels`: every .cu compiled for its architectures and bounded, then run on the CPU against its reference.

python -m redline.kernels.check
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redline.errors import BrokenError, MissingError, RedlineError
from redline.kernels.fused_mlp import cuda
from redline.kernels.fused_mlp.operator import Activation, Layer, reference
from redline.kernels.fused_mlp.shapes import DLRM_TOP, WIDTHS, chain
from redline.kernels.host.run import ORDERS, Counts, Order, run
from redline.kernels.nvcc import compile_cuda

ROWS = 19  # a tile and a tail
CASES: tuple[tuple[tuple[int, ...], Activation], ...] = (*((w, "none") for w in WIDTHS), (DLRM_TOP, "sigmoid"))
TOLERANCE = {"none": 0.0, "sigmoid": 1e-5}  # NumPy's exp and C's differ in the last place, all else must not


def fused_mlp_on_host(
    x: NDArray[np.float32], layers: Sequence[Layer], order: Order, *, checked: bool = True
) -> tuple[NDArray[np.float32], Counts]:
    """The answer of kernel.cu, run on the CPU."""
    grid, block, smem, args = cuda.arguments(x, cuda.pack(layers))
    counts = run(cuda.KERNEL, grid, block, smem, args, checked=checked, order=order, seed=1)
    return args[-1], counts


def _print_resources(source: Path) -> None:
    compiled = compile_cuda(source)
    print(f"{'kernel':12} {'arch':7} registers  bound  spills  shared")
    for r in compiled.resources:
        bound = compiled.bounds[r.kernel].registers[r.arch]
        print(f"{r.kernel:12} {r.arch:7} {r.registers:9} {bound:6} {r.spill_bytes:7} {r.shared_bytes:7}")
    ptx = compiled.resources[0].arch.replace("sm_", "compute_")
    print(f"{compiled.fatbin.name} holds them and PTX for {ptx}: {compiled.fatbin.stat().st_size / 1024:.0f} KiB\n")


def _run_cases() -> None:
    print("kernel     rows  widths             order    largest error  read KiB  written KiB  seconds")
    for widths, last in CASES:
        layers = chain(widths, last)
        x = np.random.default_rng(1).normal(size=(ROWS, widths[0])).astype(np.float32)
        for order in ORDERS:
            started = time.perf_counter()
            y, counts = fused_mlp_on_host(x, layers, order)
            error = float(np.abs(y - reference(x, layers)).max())
            read, written = sum(counts.read_bytes) / 1024, sum(counts.written_bytes) / 1024
            name, took = "-".join(map(str, widths)), time.perf_counter() - started
            print(f"fused_mlp {ROWS:5}  {name:17}  {order:7} {error:14.1e} {read:9.1f} {written:12.1f} {took:8.2f}")
            if error > TOLERANCE[last]:
                raise BrokenError(f"fused_mlp differs from its reference by {error:.1e}, allowed {TOLERANCE[last]:.0e}")
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
