"""Compiling .cu: which nvcc, every architecture, resources as data, bounds that hold."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from redline.errors import BrokenError, MissingError, UsageError
from redline.kernels import check, nvcc
from redline.kernels.host.compile import source_hash
from redline.kernels.launch import Kernel
from redline.kernels.nvcc import Resources, compile_cuda, find_nvcc, parse_ptxas
from redline.kernels.operators import brought

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"]
SOURCES = sorted(Path(nvcc.__file__).parent.glob("*/kernel.cu"))
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_75'
ptxas info    : Function properties for a
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 103 registers, used 1 barriers, 424 bytes cmem[0]
ptxas info    : Compile time = 90.272 ms
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : Function properties for b
    64 bytes stack frame, 40 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem
"""


def have_nvcc() -> bool:
    try:
        return bool(find_nvcc())
    except MissingError:
        return False


needs_nvcc = pytest.mark.skipif(not have_nvcc(), reason="no nvcc here: pip install 'redline[nvcc]'")


@pytest.fixture
def simple(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .cu of one kernel for one architecture, in a folder and cache of its own; bounds.toml is the test's."""
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "simple" / "kernel.cu"
    source.parent.mkdir()
    source.write_text(
        'extern "C" __global__ void __launch_bounds__(32, 1) simple(const float* x, int n, float* y) {\n'
        "    __shared__ float tile[32];\n"
        "    tile[threadIdx.x] = x[threadIdx.x];\n"
        "    __syncthreads();\n"
        "    y[threadIdx.x] = tile[(threadIdx.x + n) % 32];\n"
        "}\n"
    )
    return source


def bound(source: Path, registers: int, shared: int = 128, kernel: str = "simple") -> None:
    table = f"[{kernel}]\nregisters = {{ sm_80 = {registers} }}\nstatic_shared_bytes = {shared}\n"
    source.with_name("bounds.toml").write_text(table)


def test_ptxas_is_parsed() -> None:
    assert parse_ptxas(PTXAS) == (Resources("a", "sm_75", 103, 0, 0), Resources("b", "sm_90a", 32, 64, 1024))


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.parent.name)
def test_it_compiles_for_every_architecture_within_its_bounds(source: Path) -> None:
    compiled = compile_cuda(source)
    attention = source.parent.name.endswith("attention")  # needs mma.m16n8k16 and cp.async
    wanted = {(kernel, arch) for kernel in compiled.bounds for arch in ARCHITECTURES[attention:]}
    assert {(r.kernel, r.arch) for r in compiled.resources} == wanted
    assert all(r.registers > 16 and r.spill_bytes == 0 for r in compiled.resources)
    assert compiled.fatbin.read_bytes()[:4] == bytes.fromhex("50ed55ba")  # a fatbin's magic number


@needs_nvcc
@pytest.mark.parametrize("source", sorted((Path(__file__).parent / "planted").glob("*.cu")), ids=lambda p: p.name)
def test_what_runs_on_the_host_is_cuda(source: Path, tmp_path: Path) -> None:
    """nvcc takes every planted file too: the shim speaks no dialect of its own."""
    command = [find_nvcc(), "-std=c++17", "-arch=sm_80", "-cubin", source, "-o", tmp_path / "out.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_nvcc
def test_the_second_time_nothing_is_compiled(simple: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound(simple, 64)
    first = compile_cuda(simple)
    with monkeypatch.context() as patch:
        patch.setattr(nvcc, "_build", lambda *_: pytest.fail("compiled again"))
        assert compile_cuda(simple) == first
    simple.write_text(simple.read_text() + "// changed\n")
    assert compile_cuda(simple).fatbin != first.fatbin


def test_a_changed_header_is_compiled_again(mutant: Callable[[Kernel, str, str], Kernel]) -> None:
    """One in another operator's folder, too."""
    kernel = Kernel(next(s for s in SOURCES if s.parent.name == "fused_recommender"), "fused_recommender_int8")
    changed = mutant(kernel, "SIGMOID = 2", "SIGMOID = 3")
    assert kernel.source.read_bytes() == changed.source.read_bytes()
    assert source_hash(kernel.source) != source_hash(changed.source)


@needs_nvcc
@pytest.mark.parametrize(
    ("registers", "shared", "kernel", "words"),
    [
        (4, 128, "simple", r"simple/kernel.cu: simple on sm_80 uses \d+ registers, its bound is 4"),
        (64, 64, "simple", r"uses 128 bytes of static shared memory, its bound is 64"),
        (64, 128, "other", r"simple on sm_80 has no bound in bounds.toml"),
    ],
)
def test_growth_over_a_bound_fails(simple: Path, registers: int, shared: int, kernel: str, words: str) -> None:
    bound(simple, registers, shared, kernel)
    with pytest.raises(BrokenError, match=words):
        compile_cuda(simple)


@needs_nvcc
def test_a_spill_fails(simple: Path) -> None:
    """96 values that live across a loop, in the 32 registers that 64 warps leave."""
    simple.write_text(
        'extern "C" __global__ void __launch_bounds__(1024, 2) simple(const float* x, int n, float* y) {\n'
        "    float held[96];\n"
        "    #pragma unroll\n"
        "    for (int i = 0; i < 96; ++i) held[i] = x[i * 1024 + threadIdx.x];\n"
        "    for (int k = 0; k < n; ++k)\n"
        "        #pragma unroll\n"
        "        for (int i = 0; i < 96; ++i) held[i] = held[i] * held[(i + 1) % 96] + x[k];\n"
        "    #pragma unroll\n"
        "    for (int i = 0; i < 96; ++i) y[i * 1024 + threadIdx.x] = held[i];\n"
        "}\n"
    )
    bound(simple, 255)
    with pytest.raises(BrokenError, match=r"simple on sm_80 spills \d+ bytes"):
        compile_cuda(simple)


@needs_nvcc
def test_nvcc_s_own_words_are_the_error(simple: Path) -> None:
    bound(simple, 64)
    simple.write_text("not C++")
    with pytest.raises(UsageError, match=r"nvcc can't compile .*kernel.cu:(.|\n)*error"):
        compile_cuda(simple)


@needs_nvcc
@pytest.mark.parametrize("text", [None, "[simple]\nregisters = 5", "[simple", "[simple]\nspeed = 1"])
def test_bounds_are_needed(simple: Path, text: str | None) -> None:
    if text is not None:
        simple.with_name("bounds.toml").write_text(text)
    with pytest.raises(UsageError, match=r"kernel.cu needs bounds.toml beside it"):
        compile_cuda(simple)


def test_the_order_in_which_nvcc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("home/bin", "path", "site/nvidia/cu13/bin"):
        (tmp_path / place).mkdir(parents=True)
        tool = tmp_path / place / "nvcc"
        tool.touch()
        tool.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert find_nvcc() == tmp_path / "home/bin/nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert find_nvcc() == tmp_path / "path/nvcc"
    monkeypatch.setenv("PATH", "")
    assert find_nvcc() == tmp_path / "site/nvidia/cu13/bin/nvcc"
    shutil.rmtree(tmp_path / "site/nvidia/cu13")
    with pytest.raises(MissingError, match=r"pip install 'redline\[nvcc\]'") as caught:
        find_nvcc()
    assert caught.value.exit_code == 3


def test_every_cu_brings_its_cases() -> None:
    """And no folder is named anywhere."""
    assert {case.kernel.source.resolve() for case in brought("cuda", "cases")} == {
        source.resolve() for source in SOURCES
    }
    assert not [source for source in SOURCES if source.parent.name in Path(check.__file__).read_text()]


def test_make_kernels_without_nvcc_still_runs_the_cpu_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvcc, "_candidates", lambda: iter([Path("/nowhere/nvcc")]))
    assert check.main() == 3
    printed = capsys.readouterr()
    assert "no race, no divergent barrier" in printed.out
    assert printed.err.startswith("kernels: compiling a .cu") and "pip install 'redline[nvcc]'" in printed.err


@needs_nvcc
def test_make_kernels_fails_where_a_bound_breaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main() == 0
    table = capsys.readouterr().out
    assert all(f" {arch} " in table for arch in ARCHITECTURES)
    monkeypatch.setattr(nvcc, "_over_bound", lambda *_: "fused_mlp on sm_80 uses 130 registers, its bound is 112")
    assert check.main() == 1
    assert "130 registers" in capsys.readouterr().err
