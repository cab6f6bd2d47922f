"""Compiles a .cu for every architecture it declares into one fatbin (with PTX for the ones to come), and bounds it.

Beside each .cu lies bounds.toml: a table a kernel, with the registers it may use by architecture, which also says which
architectures are built, and its bytes of static shared memory. A spill, or a growth over a bound, is an error.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from redline import machine
from redline.errors import BrokenError, UsageError, missing_extra
from redline.kernels.host.compile import run_compiler, source_hash

_PTXAS = re.compile(
    r"entry function '(?P<kernel>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Resources:
    kernel: str
    arch: str  # "sm_80"
    registers: int  # a thread
    spill_bytes: int
    shared_bytes: int  # static; dynamic shared memory is the launch's


@dataclass(frozen=True, slots=True)
class Bounds:
    """A table of bounds.toml."""

    registers: dict[str, int]  # by architecture
    static_shared_bytes: int


@dataclass(frozen=True, slots=True)
class Compiled:
    fatbin: Path
    resources: tuple[Resources, ...]
    bounds: dict[str, Bounds]  # by kernel


def find_nvcc() -> Path:
    """$CUDA_HOME, then PATH, then what pip installed.

    Raises:
        MissingError: none of them has it; the message has the pip line.
    """
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise missing_extra("nvcc", "compiling a .cu (no nvcc in $CUDA_HOME, on PATH or in site-packages)")


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin" / "nvcc"
    if found := shutil.which("nvcc"):
        yield Path(found)
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True)


def compile_cuda(source: Path) -> Compiled:
    """The fatbin, from the cache where sources, bounds and compiler are the same.

    Raises:
        MissingError: no nvcc.
        UsageError: the source does not compile; the message is nvcc's.
        BrokenError: a kernel spills, has outgrown its bound or has none.
    """
    nvcc, bounds = find_nvcc(), _bounds(source)
    architectures = sorted({arch for table in bounds.values() for arch in table.registers}, key=_generation)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    folder = machine.cache_folder() / "kernels" / source_hash(source, version, *architectures)
    record = folder / "resources.json"
    if not record.exists():
        _build(nvcc, source, architectures, folder)
    resources = tuple(Resources(**entry) for entry in json.loads(record.read_text()))
    if broken := [why for found in resources if (why := _over_bound(found, bounds))]:
        raise BrokenError(f"{source.parent.name}/{source.name}: {'; '.join(broken)}")
    return Compiled(folder / "kernel.fatbin", resources, bounds)


def _bounds(source: Path) -> dict[str, Bounds]:
    path = source.with_name("bounds.toml")
    try:
        return {kernel: Bounds(**table) for kernel, table in tomllib.loads(path.read_text()).items()}
    except (OSError, tomllib.TOMLDecodeError, TypeError) as e:
        raise UsageError(
            f"{source.name} needs bounds.toml beside it: a table a kernel with registers = {{ sm_80 = ... }} and "
            f"static_shared_bytes, got {e}"
        ) from e


def _generation(arch: str) -> int:
    return int(re.sub(r"\D", "", arch))


def _build(nvcc: Path, source: Path, architectures: list[str], folder: Path) -> None:
    virtual = [arch.replace("sm_", "compute_") for arch in architectures]
    targets = [f"arch={v},code={arch}" for v, arch in zip(virtual, architectures, strict=True)]
    targets.append(f"arch={virtual[0]},code={virtual[0]}")  # PTX of the oldest: any later GPU takes it
    flags = ["-std=c++17", "-Xptxas", "-v", *(flag for target in targets for flag in ("-gencode", target))]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        printed = run_compiler([str(nvcc), *flags, "-fatbin", str(source), "-o", str(made / "kernel.fatbin")], source)
        record = [asdict(found) for found in parse_ptxas(printed)]
        (made / "resources.json").write_text(json.dumps(record))
        with suppress(OSError):  # another process was quicker
            made.rename(folder)


def parse_ptxas(printed: str) -> tuple[Resources, ...]:
    """What `-Xptxas -v` says, a kernel and architecture each."""
    found = []
    for m in _PTXAS.finditer(printed):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        spilled = int(m["stores"]) + int(m["loads"])
        found.append(Resources(m["kernel"], m["arch"], int(m["registers"]), spilled, int(shared[1]) if shared else 0))
    return tuple(found)


def _over_bound(found: Resources, bounds: dict[str, Bounds]) -> str | None:
    what, bound = f"{found.kernel} on {found.arch}", bounds.get(found.kernel)
    if found.spill_bytes:
        return f"{what} spills {found.spill_bytes} bytes: keep fewer values alive, or bound it to fewer blocks"
    if bound is None or found.arch not in bound.registers:
        return f"{what} has no bound in bounds.toml; it uses {found.registers} registers"
    for name, came, allowed in (
        ("registers", found.registers, bound.registers[found.arch]),
        ("bytes of static shared memory", found.shared_bytes, bound.static_shared_bytes),
    ):
        if came > allowed:
            return f"{what} uses {came} {name}, its bound is {allowed}; shrink it, or raise the bound with a reason"
    return None
