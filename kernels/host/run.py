"""Run a .cu on the CPU, a fiber a thread, and raise DeviceBugError for what a GPU would keep to itself.

checked: every load and store is looked at (bounds, uninitialized shared memory, races, alignment), bytes are counted.
Barriers and warp collectives are checked always. Not seen: weak memory order, what library memcpy does, spinning.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from redline.errors import UsageError
from redline.kernels.host.bug import RawReport, explain
from redline.kernels.host.compile import compiled
from redline.kernels.launch import Argument, Dimensions, Kernel, first_output

Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = ("forward", "reverse", "random")
MAX_THREADS, MAX_DYNAMIC_BYTES = 1024, 227 << 10  # as in runner.cpp
_GAP, _ALIGNED = 1 << 20, 256  # bytes between buffers that nobody may touch, hence never there; as cudaMalloc aligns
_one_at_a_time = Lock()  # a module has one set of fibers


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_size_t),
        ("bytes", ctypes.c_uint64),
        ("read", ctypes.c_uint64),
        ("written", ctypes.c_uint64),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("call", ctypes.c_void_p),
        ("args", ctypes.c_void_p),
        ("buffers", ctypes.c_void_p),
        ("buffer_count", ctypes.c_uint),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("smem", ctypes.c_uint),
        ("order", ctypes.c_uint),
        ("seed", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """Bytes of global memory, an entry an array argument; all 0 unless checked."""

    read_bytes: tuple[int, ...]
    written_bytes: tuple[int, ...]


def run(
    kernel: Kernel,
    grid: Dimensions,
    block: Dimensions,
    smem: int,
    args: Sequence[Argument],
    *,
    checked: bool = True,
    order: Order = "forward",
    seed: int = 0,
) -> Counts:
    """Run every block, one after the other; order is that of the threads and of the blocks.

    Raises:
        UsageError: the launch fits no device, or not the kernel's signature.
        DeviceBugError: the kernel is wrong. Outputs are left as they were.
        MissingError: no g++.
    """
    if not 0 < math.prod(block) <= MAX_THREADS or not 0 <= smem <= MAX_DYNAMIC_BYTES or min(grid) < 1:
        raise UsageError(
            f"{kernel.name}: wanted a grid of blocks of 1 to {MAX_THREADS} threads and at most {MAX_DYNAMIC_BYTES} "
            f"bytes of shared memory, got grid {grid}, block {block}, {smem} bytes"
        )
    path = compiled(kernel.source, checked=checked)
    library = ctypes.CDLL(str(path))
    call = _entry(library, kernel, args)
    arrays = {i: arg for i, arg in enumerate(args) if isinstance(arg, np.ndarray)}
    copies = dict(zip(arrays, _apart(list(arrays.values())), strict=True))
    values = [_value(copies.get(i, arg)) for i, arg in enumerate(args)]
    pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values))
    buffers = (_Buffer * len(arrays))(*[_Buffer(c.ctypes.data, c.nbytes) for c in copies.values()])
    plan = _Launch(call, ctypes.addressof(pointers), ctypes.addressof(buffers), len(arrays), grid, block, smem)
    plan.order, plan.seed = ORDERS.index(order), seed
    report = RawReport()
    with _one_at_a_time:
        library.redline_run(ctypes.byref(plan), ctypes.byref(report))
    if report.bug:
        raise explain(report, kernel, args, path)
    for i, copy in copies.items():
        if i >= first_output(args):
            np.copyto(arrays[i], copy)
    return Counts(tuple(b.read for b in buffers), tuple(b.written for b in buffers))


def _entry(library: ctypes.CDLL, kernel: Kernel, args: Sequence[Argument]) -> int:
    """Address of the kernel's launcher, once the arguments were compared with its signature."""
    try:
        describe, call = library[f"redline_signature_{kernel.name}"], library[f"redline_call_{kernel.name}"]
    except AttributeError as e:
        raise UsageError(f"{kernel.source} has no REDLINE_EXPORT({kernel.name})") from e
    describe.restype = ctypes.c_char_p
    wanted = describe().decode().split()
    came = [f"p{a.itemsize}" if isinstance(a, np.ndarray) else "i4" if isinstance(a, int) else "f4" for a in args]
    if wanted != came:
        raise UsageError(
            f"{kernel.name} takes ({' '.join(wanted)}), got ({' '.join(came)}); p, i, f: pointer, int, float, and bytes"
        )
    address = ctypes.cast(call, ctypes.c_void_p).value
    assert address is not None
    return address


def _apart(arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Copies with gaps between them, so that no overrun of one lands in another."""
    starts, end = [], _GAP
    for array in arrays:
        starts.append(end)
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED + _GAP
    arena = mmap.mmap(-1, end)
    copies = []
    for start, array in zip(starts, arrays, strict=True):
        copies.append(np.frombuffer(arena, array.dtype, array.size, start).reshape(array.shape))
        np.copyto(copies[-1], array)
    return copies


def _value(arg: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if isinstance(arg, np.ndarray):
        return ctypes.c_void_p(arg.ctypes.data)
    return ctypes.c_int(arg) if isinstance(arg, int) else ctypes.c_float(arg)
