"""`make kernels`: every .cu compiled for its architectures and bounded, then run on the CPU against its reference.

python -m redline.kernels.check
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.errors import BrokenError, MissingError, RedlineError
from redline.kernels.flash_attention import cuda as flash_cuda
from redline.kernels.flash_attention import operator as flash
from redline.kernels.flash_attention import shapes as flash_shapes
from redline.kernels.fused_mlp import cuda
from redline.kernels.fused_mlp.operator import Activation, Layer, reference
from redline.kernels.fused_mlp.shapes import DLRM_TOP, WIDTHS, chain
from redline.kernels.host.run import ORDERS, Counts, Order, run
from redline.kernels.launch import Kernel, Shape
from redline.kernels.nvcc import compile_cuda
from redline.kernels.paged_attention import cuda as paged_cuda
from redline.kernels.paged_attention import operator as paged
from redline.kernels.paged_attention import shapes as paged_shapes

ROWS = 19  # a tile and a tail
CASES: tuple[tuple[tuple[int, ...], Activation], ...] = (*((w, "none") for w in WIDTHS), (DLRM_TOP, "sigmoid"))
TOLERANCE = {"none": 0.0, "sigmoid": 1e-5}  # NumPy's exp and C's differ in the last place, all else must not


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel on one shape: what it is launched with (the answer is the last argument) and what it must answer."""

    label: str
    kernel: Kernel
    shape: Shape
    args: list[Any]
    wanted: NDArray[np.float32]
    allowed: float


def on_host(
    kernel: Kernel, shape: Shape, args: list[Any], order: Order, *, checked: bool = True
) -> tuple[NDArray[Any], Counts]:
    """The answer of a kernel.cu, run on the CPU."""
    counts = run(kernel, shape.grid, shape.block, shape.smem, args, checked=checked, order=order, seed=1)
    return args[-1], counts


def fused_mlp_on_host(
    x: NDArray[np.float32], layers: Sequence[Layer], order: Order, *, checked: bool = True
) -> tuple[NDArray[np.float32], Counts]:
    grid, block, smem, args = cuda.arguments(x, cuda.pack(layers))
    return on_host(cuda.KERNEL, Shape(grid, block, smem), args, order, checked=checked)


def cases() -> Iterator[Case]:
    for widths, last in CASES:
        layers = chain(widths, last)
        x = np.random.default_rng(1).normal(size=(ROWS, widths[0])).astype(np.float32)
        grid, block, smem, args = cuda.arguments(x, cuda.pack(layers))
        label, wanted = f"{ROWS} x {'-'.join(map(str, widths))}", reference(x, layers)
        yield Case(label, cuda.KERNEL, Shape(grid, block, smem), args, wanted, TOLERANCE[last])
    for dtype, d, n, m, causal in (("float16", 64, 65, 65, True), ("bfloat16", 128, 129, 65, False)):
        qkv, scale = flash_shapes.qkv(n, m, d, dtype), d**-0.5
        label, wanted = f"{n} x {m}{' causal' * causal}", flash.reference(*qkv, causal=causal, scale=scale)
        yield Case(label, *flash_cuda.arguments(*qkv, causal=causal, scale=scale), wanted, flash.TOLERANCE)
    for case, dtype in zip(paged_shapes.CASES[1:3], flash_shapes.DTYPES, strict=True):
        inputs, scale = paged_shapes.cache(*case, dtype), case[3] ** -0.5
        label, wanted = f"tokens {','.join(map(str, case[0]))}", paged.reference(*inputs, scale=scale)
        yield Case(label, *paged_cuda.arguments(*inputs, scale=scale), wanted, flash.TOLERANCE)


def _print_resources(source: Path) -> None:
    compiled = compile_cuda(source)
    print(f"{'kernel':25} {'arch':7} registers  bound  spills  shared")
    for r in compiled.resources:
        bound = compiled.bounds[r.kernel].registers[r.arch]
        print(f"{r.kernel:25} {r.arch:7} {r.registers:9} {bound:6} {r.spill_bytes:7} {r.shared_bytes:7}")
    ptx = compiled.resources[0].arch.replace("sm_", "compute_")
    print(f"{compiled.fatbin.name} holds them and PTX for {ptx}: {compiled.fatbin.stat().st_size / 1024:.0f} KiB\n")


def _run_cases() -> None:
    print(f"{'kernel':25} {'shape':23} order    largest error  read KiB  written KiB  seconds")
    for case in cases():
        for order in ORDERS:
            started = time.perf_counter()
            y, counts = on_host(case.kernel, case.shape, case.args, order)
            error = float(np.abs(y.astype(np.float32) - case.wanted).max())
            read, written = sum(counts.read_bytes) / 1024, sum(counts.written_bytes) / 1024
            name, took = case.kernel.name, time.perf_counter() - started
            print(f"{name:25} {case.label:23} {order:7} {error:14.1e} {read:9.1f} {written:12.1f} {took:8.2f}")
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
