"""The C entries of every operator under sanitizers and valgrind: odd shapes, many threads on one kernel, wrong ids."""

import shutil
import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from redline import machine
from redline.kernels import build
from redline.kernels.embedding_interaction import shapes as interactions
from redline.kernels.fused_mlp import shapes as mlps
from redline.kernels.fused_recommender import shapes as recommenders

RUNNABLE = [isa for isa in build.isas() if not machine.weaker(machine.isa(), isa)]
ROOM = Path(build.__file__).parent
FORMATS = range(3)  # as api.h's RedlineFormat
PROGRAM = Path(__file__).with_name("odd_shapes.cpp")


def line(kind: str, *parts: Any) -> str:
    return f"{kind} {' / '.join(' '.join(str(int(number)) for number in part) for part in parts)}"


def lines(mlp_rows: Any, interaction_rows: Any, recommender_rows: Any, cases: slice = slice(None)) -> Iterator[str]:
    """Operators as odd_shapes.cpp reads them; cases: of each operator's shapes."""
    for widths in mlps.WIDTHS[cases]:
        yield from (line("mlp", (rows, *how), widths) for rows in mlp_rows for how in product(FORMATS, range(3)))
    for sizes, dim, vectors, lead in interactions.CASES[cases]:
        for rows in interaction_rows:
            yield from (line("interaction", (rows, code, dim), sizes, vectors, lead) for code in FORMATS)
    for case in (1, 3, 8):
        sizes, dim, vectors, lead = interactions.CASES[case]
        bottoms = {1: [(3, 5)], 3: [(13, 40, 17)], 8: []}[case]
        for rows in recommender_rows:
            for code in FORMATS:
                yield line("recommender", (rows, code, dim), sizes, vectors, lead, (33, 2), *bottoms)


def run(command: Any, asked: list[str]) -> None:
    done = subprocess.run(command, input="\n".join(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.split() == ["ran", str(len(asked))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("isa", "sanitizers"),
    [*((isa, "address,undefined") for isa in (*RUNNABLE, "wide")), (RUNNABLE[-1], "thread")],  # races have no ISA
)
def test_under_sanitizers(isa: str, sanitizers: str, tmp_path: Path) -> None:
    """Every shape on two threads, or some on eight that each have their own rows."""
    program = tmp_path / "odd_shapes"
    flags = [flag for flag in build.command(isa) if flag not in ("-shared", "-O3")]
    made = subprocess.run(
        [*flags, "-O1", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-uninitialized", f"-fsanitize={sanitizers}",
         "-fno-sanitize-recover=all", *sorted(ROOM.glob("*/kernel.cpp")), PROGRAM, "-I", ROOM, "-o", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    if sanitizers == "thread":
        run([program, "8"], [*lines((0, 3, 127), (3, 127), (3, 200), slice(1, None, 2))])
    else:
        few = [[rows for rows in shapes.ROWS if rows < 500] for shapes in (mlps, interactions, recommenders)]
        run([program, "2"], [*lines(*few)])


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
@pytest.mark.parametrize(
    "isa", [isa for isa in RUNNABLE if not isa.startswith("avx512")]
)  # which valgrind doesn't know
def test_under_valgrind(isa: str, tmp_path: Path) -> None:
    """The library as it ships: what nobody wrote is never branched on or given out, nothing leaks."""
    program, library = tmp_path / "odd_shapes", build.library(isa)
    compiler = build.command(isa)[0]
    made = subprocess.run(
        [compiler, "-std=c++17", "-g1", PROGRAM, library, "-I", ROOM, f"-Wl,-rpath,{library.parent}", "-o", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    memcheck = ["valgrind", "-q", "--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
    run([*memcheck, program, "2"], [*lines((0, 1, 13), (1, 3), (3,), slice(0, 4))])
