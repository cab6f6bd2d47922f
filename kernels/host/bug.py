"""What the checks found, in words: runner.cpp's report → DeviceBugError with kind, file and line."""

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redline.errors import BrokenError
from redline.kernels.launch import Argument, Kernel

# In the order of runner.cpp's enums.
KINDS = (
    "",
    "out of bounds",
    "shared memory out of bounds",
    "uninitialized shared memory",
    "race",
    "race between blocks",
    "divergent barrier",
    "misaligned access",
    "bad lane",
    "copy not waited for",
)
_ACTS = (
    "indexes",
    "reads",
    "writes",
    "atomically updates",
    "is at a barrier",
    "is at a warp collective",
    "has returned",
)
_STATIC = -1  # in place of a buffer: static shared memory; -2: dynamic
_HERE = Path(__file__).resolve().parent


class RawPlace(ctypes.Structure):
    _fields_ = (
        ("act", ctypes.c_uint),
        ("thread", ctypes.c_uint),
        ("block", ctypes.c_uint),
        ("line", ctypes.c_uint),
        ("file", ctypes.c_char_p),
        ("pc", ctypes.c_size_t),
    )


class RawReport(ctypes.Structure):
    _fields_ = (
        ("bug", ctypes.c_uint),
        ("places", ctypes.c_uint),
        ("place", RawPlace * 4),
        ("buffer", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("type", ctypes.c_char_p),
    )


@dataclass(frozen=True, slots=True)
class Place:
    act: str
    file: Path | None  # none where the thread has already left the kernel
    line: int
    thread: int
    block: int

    def __str__(self) -> str:
        where = f" at {self.file.parent.name}/{self.file.name}:{self.line}" if self.file else ""
        return f"thread {self.thread} of block {self.block} {self.act}{where}"


class DeviceBugError(BrokenError):
    """A kernel is wrong: what kind (one of KINDS), and the one or two places that it concerns."""

    def __init__(self, kernel: str, kind: str, places: tuple[Place, ...], detail: str) -> None:
        super().__init__(f"{kernel}: {kind}: {', while '.join(map(str, places))}: {detail}")
        self.kind, self.places = kind, places


def explain(report: RawReport, kernel: Kernel, args: Sequence[Argument], library: Path) -> DeviceBugError:
    places = tuple(_place(report.place[i], library) for i in range(report.places))
    return DeviceBugError(kernel.name, KINDS[report.bug], places, _detail(report, args, library))


def _detail(report: RawReport, args: Sequence[Argument], library: Path) -> str:
    arrays = [(i, arg) for i, arg in enumerate(args) if isinstance(arg, np.ndarray)]
    memory, offset, size = "dynamic shared memory", report.offset, report.size
    if report.buffer == _STATIC:
        memory, offset = _shared_variable(library, offset)
    elif report.buffer >= 0 and arrays:
        memory, size = f"argument {arrays[report.buffer][0]}", arrays[report.buffer][1].nbytes
    match KINDS[report.bug]:
        case "out of bounds":
            return f"{report.size} bytes at offset {offset} of {memory}, which has {size} bytes"
        case "shared memory out of bounds" if report.type:
            return f"index {report.offset} of {report.type.decode()}"
        case "shared memory out of bounds":
            return f"offset {offset} of {memory}, which has {size} bytes"
        case "misaligned access":
            return f"offset {offset} of {memory} is no multiple of {report.size}"
        case "divergent barrier":
            return "every thread of the block (every lane of the mask) must meet it, at one line"
        case "bad lane":
            return f"lane {report.offset} takes no part in it"
        case _:
            return f"offset {offset} of {memory}"


def _place(raw: RawPlace, library: Path) -> Place:
    file, line = (Path(raw.file.decode()), raw.line) if raw.file else _line(library, raw.pc) if raw.pc else (None, 0)
    return Place(_ACTS[raw.act], file, line, raw.thread, raw.block)


def _line(library: Path, pc: int) -> tuple[Path | None, int]:
    """The innermost frame that is not the shim's. pc is a return address, hence the - 1."""
    for frame in _run("addr2line", "-i", "-e", str(library), hex(pc - 1)):
        file, _, line = frame.partition(" ")[0].rpartition(":")
        if Path(file).resolve().parent != _HERE and line.isdecimal():
            return Path(file), int(line)
    return None, 0


def _shared_variable(library: Path, offset: int) -> tuple[str, int]:
    """The __shared__ variable at this offset of the module's thread-local segment, and the offset within it."""
    for symbol in _run("readelf", "-sWC", str(library)):
        fields = symbol.split(maxsplit=7)
        if len(fields) == 8 and fields[3] == "TLS":
            start, size = int(fields[1], 16), int(fields[2], 0)
            if start <= offset < start + size:
                return f"shared {fields[7].rpartition('::')[2]}", offset - start
    return "static shared memory", offset


def _run(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
