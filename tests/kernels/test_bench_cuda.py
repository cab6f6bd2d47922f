"""The GPU benchmark, as far as a CPU can tell: rivals do the same as the kernel, no row without the right answer."""

import ctypes
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from redline.errors import MeasurementError, MissingError
from redline.kernels import bench_cuda, works
from redline.kernels.embedding_interaction import cuda as interaction
from redline.kernels.embedding_interaction import operator as interactions
from redline.kernels.embedding_interaction import rivals as interaction_rivals
from redline.kernels.embedding_interaction import shapes as interaction_shapes
from redline.kernels.fused_mlp import operator as mlp
from redline.kernels.fused_mlp import rivals as mlp_rivals
from redline.kernels.fused_mlp import shapes as mlp_shapes
from redline.kernels.fused_recommender import operator as recommender
from redline.kernels.fused_recommender import rivals as recommender_rivals
from redline.kernels.fused_recommender import shapes as recommender_shapes
from redline.kernels.host.run import run
from redline.kernels.launch import Kernel, Shape
from redline.kernels.works import Subject, Work

ROWS = 40


def chain() -> tuple[Work, Any]:
    x = np.random.default_rng(0).standard_normal((ROWS, mlp_shapes.DLRM_TOP[0])).astype(np.float32)
    return mlp_rivals.work(ROWS, "cpu"), mlp.reference(x, mlp_shapes.chain(mlp_shapes.DLRM_TOP, "sigmoid"))


def dots(case: int, int8: bool) -> tuple[Work, Any]:
    op = interaction_shapes.interaction(case)
    op = interactions.stored(op, "int8") if int8 else op
    request = interaction_shapes.request(op, ROWS)
    return interaction_rivals.work(op, ROWS, "cpu"), interactions.reference(*request, op)


def whole(case: int, int8: bool) -> tuple[Work, Any]:
    op = recommender_shapes.cases(tables="int8" if int8 else "fp32")[case]
    request = recommender_shapes.request(op, ROWS)
    return recommender_rivals.work(op, ROWS, "cpu"), recommender.reference(*request, op)


@pytest.mark.parametrize(
    "make",
    [chain]
    + [lambda i=i, t=t: dots(i, t) for i in (3, 6) for t in (False, True)]
    + [lambda i=i, t=t: whole(i, t) for i in (0, 1, 2) for t in (False, True)],
)
def test_what_eager_rivals_answer_is_what_the_reference_says(
    make: Callable[[], tuple[Work, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call: call)  # its import alone takes seconds
    work, wanted = make()
    eager = work.subjects["eager"]
    for answer in (eager.wanted, eager.call(), work.subjects["redline"].wanted):
        np.testing.assert_allclose(answer.numpy(), wanted, rtol=0, atol=eager.allowed)
    if half := work.subjects.get("eager, float16"):
        assert 0 < float((half.call() - half.wanted).abs().max()) < half.allowed
    assert work.operations > 0 and work.bytes_needed > wanted.nbytes


def test_a_launch_is_queued_with_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the GPU: a CPU's tensor is the array itself, so the addresses are known."""
    op = interactions.stored(interaction_shapes.interaction(3), "int8")
    request = interaction_shapes.request(op, 9)
    kernel, shape, args = interaction.arguments(*request, interaction.pack(op))

    def launch_on_host(stream: int, device: int, kernel: Kernel, shape: Shape, values: list[Any]) -> None:
        assert (stream, device) == (7, 3)
        came = [int(value) for value in values]
        assert came == [arg.ctypes.data if isinstance(arg, np.ndarray) else arg for arg in args]
        run(kernel, shape.grid, shape.block, shape.smem, args)

    monkeypatch.setattr(works, "launch_on", launch_on_host)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    answer = works.queued(kernel, shape, args, "cpu")()
    np.testing.assert_array_equal(answer.numpy(), interactions.reference(*request, op))


@pytest.mark.parametrize("answer", [torch.full((2, 3), 1.1), torch.ones(1, 3), torch.full((2, 3), torch.nan)])
def test_a_wrong_answer_is_no_measurement(answer: torch.Tensor) -> None:
    work = Work("w", {"s": Subject(lambda: answer, torch.ones(2, 3), 0.05)}, 1, 1)
    with pytest.raises(MeasurementError, match=r"w: s is \[., 3\] and .* off, wanted \[2, 3\] within 0.05; not timed"):
        bench_cuda.measure(work)


def test_every_kernel_has_rivals() -> None:
    folders = {path.parent for path in Path(bench_cuda.__file__).parent.glob("*/kernel.cu")}
    assert folders == {path.parent for path in Path(bench_cuda.__file__).parent.glob("*/rivals.py")}
    for folder in folders:
        assert import_module(f"redline.kernels.{folder.name}.rivals").works


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_driver(*_: object) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(MissingError, match="needs NVIDIA's driver") as caught:
        bench_cuda.main(tmp_path / "out.json")
    assert caught.value.exit_code == 3
