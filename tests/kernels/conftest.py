"""What several kernels' tests need: a kernel with one line changed, and a GPU."""

from collections.abc import Callable
from pathlib import Path

import pytest

from redline.errors import MissingError
from redline.kernels import nvcc
from redline.kernels.launch import Kernel, need_driver

KERNELS = Path(nvcc.__file__).parent


@pytest.fixture
def mutant(tmp_path: Path) -> Callable[[Kernel, str, str], Kernel]:
    """The kernel with one text in its .cu, or in attention.cuh, replaced, in a folder of its own."""

    def make(kernel: Kernel, old: str, new: str) -> Kernel:
        for folder, source in (("kernel", kernel.source), ("common", KERNELS / "common" / "attention.cuh")):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / source.name).write_text(source.read_text().replace(old, new))
        originals = kernel.source.read_text() + (KERNELS / "common" / "attention.cuh").read_text()
        assert originals.count(old) == 1, f"{old!r} stands there {originals.count(old)} times"
        (tmp_path / "common" / "device.cuh").write_text((KERNELS / "common" / "device.cuh").read_text())
        (tmp_path / "host").symlink_to(KERNELS / "host")
        return Kernel(tmp_path / "kernel" / "kernel.cu", kernel.name)

    return make


@pytest.fixture
def gpu() -> None:
    """Skips where there is none."""
    try:
        need_driver()
    except MissingError as e:
        pytest.skip(str(e))
