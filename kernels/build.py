"""Builds the CPU kernels: one library per instruction set, `python -m redline.kernels.build`.

A library holds every operator: as ONNX Runtime custom operators and behind plain C entries. It lies in the cache under
its fingerprint, and appears there in one rename.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from redline import machine
from redline.errors import MissingError, RedlineError

# Arithmetic is the same IEEE operations on every ISA (but for the dot of BF16 and FP32): FMA only where the source says
# so, nothing that assumes away NaN.
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off",
          "-fno-math-errno", "-fno-trapping-math", "-Wl,--no-undefined")  # fmt: skip
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
_X86 = {"avx2": ("-mavx2", "-mfma"), "avx512_vnni": _AVX512, "avx512_vnni_bf16": (*_AVX512, "-mavx512bf16")}
# For tests only: the shapes of AVX-512 (16 lanes, 12 rows by 2 vectors, unsigned activations) in portable C++.
_TESTED = {"wide": ("-DREDLINE_WIDE", "-O1", "-Wno-psabi")}
_ROOM = Path(__file__).parent


def isas() -> tuple[str, ...]:
    """The instruction sets that a library can be built for here, weakest first."""
    return ("portable", *(_X86 if platform.machine() == "x86_64" else ()))


def strongest() -> str:
    """Of those, what this CPU can run."""
    return next(isa for isa in reversed(isas()) if not machine.weaker(machine.isa(), isa))


def file_name(isa: str) -> str:
    return f"libredline_{isa}.so"


def sources() -> list[Path]:
    return [_ROOM / "common" / "register.cpp", *sorted(_ROOM.glob("*/kernel.cpp")), *sorted(_ROOM.glob("*/op.cpp"))]


def command(isa: str) -> list[str]:
    """The compiler and its flags for an ISA, without sources and output.

    Raises:
        MissingError: no compiler.
    """
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise MissingError(f"CPU kernels need a C++ compiler, no {wanted!r} here: `apt-get install g++`, or set $CXX")
    return [found, *_FLAGS, *{**_X86, **_TESTED}.get(isa, ())]


@cache
def _compiler_version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout


def fingerprint(isa: str) -> str:
    """Of all that an ISA's library is made from: sources, flags, compiler, and the machine that it builds for.

    Raises:
        MissingError: no compiler.
    """
    line = command(isa)
    digest = hashlib.sha256(f"{line} {_compiler_version(line[0])} {platform.machine()}".encode())
    for path in [*sources(), *sorted(_ROOM.glob("*/*.h"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def library(isa: str) -> Path:
    """The library for an ISA, built now or before.

    Raises:
        MissingError: no compiler, or one that can't build it.
    """
    line, folder = command(isa), machine.cache_folder() / "kernels" / fingerprint(isa)
    made = folder / file_name(isa)
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        run = subprocess.run([*line, *map(str, sources()), "-o", scratch], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise MissingError(
                f"{line[0]} can't build the {isa} kernels, wanted g++ 12 or newer:\n{run.stderr.strip()[-2000:]}"
            )
        Path(scratch).chmod(0o644)
        Path(scratch).replace(made)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return made


def libraries() -> dict[str, Path]:
    """Every ISA's library, built side by side."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(isas(), pool.map(library, isas()), strict=True))


def main() -> int:
    try:
        for isa, path in libraries().items():
            print(f"{isa:16}  {path.stat().st_size / 1024:6.0f} KiB  {path}")
    except RedlineError as e:
        print(f"kernels: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
