"""What this machine is: the conditions that stand beside every figure."""

import hashlib
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path

# Weakest first; a machine's ISA is the strongest set whose flags it all has.
_ISAS = {
    "portable": frozenset[str](),
    "avx2": frozenset({"avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl"}),
    "avx512_vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}),
    "avx512_vnni_bf16": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"}),
}
ISAS = tuple(_ISAS)
_LIBRARIES = (
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "kserve",
    "torch-pruning",
    "tensorrt-rtx-cu13-bindings",
)


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def isa() -> str:
    """The strongest instruction set of this CPU that Redline's engines tell apart."""
    flags = set(_cpuinfo("flags").split())
    return [name for name, needs in _ISAS.items() if needs <= flags][-1]


def weaker(isa_here: str, isa_wanted: str) -> bool:
    return ISAS.index(isa_here) < ISAS.index(isa_wanted)


def versions() -> dict[str, str]:
    """Version of each library that can change an answer or a time, where installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def conditions() -> dict[str, str | int | dict[str, str]]:
    return {
        "cpu": _cpuinfo("model name"),
        "cores": len(os.sched_getaffinity(0)),
        "isa": isa(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


def code_sha256(*rooms: str) -> str:
    """Redline's own code in these rooms: a cached result is only as good as the code that made it."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(
        p for room in rooms for p in ([root / room] if room.endswith(".py") else (root / room).rglob("*"))
    ):
        if path.suffix in (".py", ".j2", ".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where data, built steps and servers are kept between runs ($REDLINE_CACHE, else ~/.cache/redline)."""
    return Path(os.environ.get("REDLINE_CACHE") or Path.home() / ".cache" / "redline")
