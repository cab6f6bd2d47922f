"""What several kernels' tests need: a kernel with one line changed, and a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redline.errors import MissingError
from redline.kernels import nvcc
from redline.kernels.host.bug import DeviceBugError
from redline.kernels.host.compile import included
from redline.kernels.host.run import ORDERS, run
from redline.kernels.launch import Kernel, Shape, need_driver

KERNELS = Path(nvcc.__file__).parent.resolve()


@pytest.fixture
def mutant(tmp_path: Path) -> Callable[[Kernel, str, str], Kernel]:
    """The kernel with one text in its .cu, or in a header of it, replaced, in a folder of its own."""

    def make(kernel: Kernel, old: str, new: str) -> Kernel:
        texts = {path: path.read_text() for path in included(kernel.source) if path.parent != KERNELS / "host"}
        count = sum(text.count(old) for text in texts.values())
        assert count == 1, f"{old!r} stands there {count} times"
        for path, text in texts.items():
            copy = tmp_path / path.relative_to(KERNELS)
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text.replace(old, new))
        (tmp_path / "host").symlink_to(KERNELS / "host")
        return Kernel(tmp_path / kernel.source.resolve().relative_to(KERNELS), kernel.name)

    return make


@pytest.fixture
def planted(mutant: Callable[[Kernel, str, str], Kernel]) -> Callable[..., list[str]]:
    """What is said of a mutant, in every order of threads: "right", "wrong", or a bug's kind and the lines it names."""

    def find(
        kernel: Kernel, shape: Shape, args: list[Any], old: str, new: str, is_right: Callable[[Any], bool]
    ) -> list[str]:
        bad, said = mutant(kernel, old, new), []
        for order in ORDERS:
            try:
                run(bad, shape.grid, shape.block, shape.smem, args, order=order)
                said.append("right" if is_right(args[-1]) else "wrong")
            except DeviceBugError as e:
                files = [(place.file.resolve(), place.line) for place in e.places if place.file]
                assert {file for file, _ in files} <= included(bad.source), str(e)
                lines = [file.read_text().splitlines()[line - 1].strip() for file, line in files]
                said.append(f"{e.kind}: {' | '.join(lines)}")
        return said

    return find


@pytest.fixture
def gpu() -> None:
    """Skips where there is none."""
    try:
        need_driver()
    except MissingError as e:
        pytest.skip(str(e))
