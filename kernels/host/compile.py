"""A .cu → a shared library for the CPU: g++ with the shim of device.h, linked with runner.cpp in place of libtsan."""

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from redline import machine
from redline.errors import MissingError, UsageError

_HERE = Path(__file__).resolve().parent
_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)
_COMMON = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-g")
# -fno-extern-tls-init: an `extern __shared__` array is no C++ object that its file must initialize.
_KERNEL = (
    *("-x", "c++", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-extern-tls-init"),
    *("-Wno-unknown-pragmas", "-Wno-attributes"),
)
# -fno-tree-sra: an int4 load stays one access of 16 bytes, so that its alignment is seen.
_CHECKED = ("-O1", "-fsanitize=thread,bounds", "--param=tsan-instrument-func-entry-exit=0", "-fno-tree-sra")
_FAST = ("-O3",)


def included(source: Path) -> set[Path]:
    """The file, what it includes in quotes, and so on, resolved; one that isn't there is the compiler's to tell."""
    found, ahead = set[Path](), [source.resolve()]
    while ahead:
        path = ahead.pop()
        if path not in found and path.is_file():
            found.add(path)
            ahead += [(path.parent / name).resolve() for name in _INCLUDE.findall(path.read_text())]
    return found


def source_hash(source: Path, *more: str) -> str:
    """Of the .cu, all that it includes, and the runner."""
    digest = hashlib.sha256("\0".join((source.name, *more)).encode())
    for path in sorted(included(source)) + sorted(included(_HERE / "runner.cpp")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def run_compiler(command: Sequence[str], source: Path) -> str:
    """What it printed on stderr; its own words are the error where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"{Path(command[0]).name} can't compile {source}:\n{done.stdout}{done.stderr}".rstrip())
    return done.stderr


def compiled(source: Path, *, checked: bool) -> Path:
    """Path of the library, from the cache where the sources are the same."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise MissingError("running a .cu on the CPU needs g++ and binutils: `apt-get install g++`")
    mode = _CHECKED if checked else _FAST
    key = source_hash(source, *_COMMON, *_KERNEL, *mode, str(source.resolve()))  # line tables hold the path
    library = machine.cache_folder() / "kernels" / f"{key}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    runner = _runner(compiler, library.parent)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        kernel, out = (str(Path(folder) / name) for name in ("kernel.o", "out.so"))
        run_compiler([compiler, *_COMMON, *_KERNEL, *mode, "-c", str(source.resolve()), "-o", kernel], source)
        names = _dynamic_shared(kernel)
        run_compiler(["objcopy", *(f"--redefine-sym={n}=redline_dynamic_shared" for n in names), kernel], source)
        run_compiler([compiler, "-shared", "-Wl,-z,defs", kernel, str(runner), "-o", out], source)
        Path(out).replace(library)
    return library


def _runner(compiler: str, folder: Path) -> Path:
    """Its object file, which every kernel is linked with."""
    source = _HERE / "runner.cpp"
    made = folder / f"{source_hash(source, *_COMMON)}.o"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "runner.o"
            run_compiler([compiler, *_COMMON, "-O2", "-c", str(source), "-o", str(out)], source)
            out.replace(made)
    return made


def _dynamic_shared(kernel: str) -> list[str]:
    """Every `extern __shared__` array is an undefined thread-local symbol; all of them are the same memory."""
    symbols = subprocess.run(["readelf", "-sW", kernel], capture_output=True, text=True, check=True).stdout
    fields = [line.split() for line in symbols.splitlines()]
    return sorted(f[7] for f in fields if len(f) == 8 and f[3] == "TLS" and f[6] == "UND")
