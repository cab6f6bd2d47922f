"""Attention in PyTorch: opcheck and torch.compile on a CPU; the CUDA side up to its launch, and on a GPU."""

import ctypes
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from redline.errors import UsageError
from redline.kernels import torch_face
from redline.kernels.flash_attention import operator as flash
from redline.kernels.flash_attention.shapes import DTYPES, qkv
from redline.kernels.host.run import run
from redline.kernels.launch import Kernel, Shape
from redline.kernels.paged_attention import operator as paged
from redline.kernels.paged_attention.shapes import CASES, cache

OPS = torch.ops.redline
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def tensor(x: np.ndarray[Any, Any]) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def flash_inputs(dtype: str = "float16") -> tuple[list[Any], np.ndarray[Any, Any]]:
    arrays = qkv(40, 70, 64, dtype, batch=2, heads=4, kv_heads=2)
    return [*map(tensor, arrays), True, 0.125], flash.reference(*arrays, causal=True, scale=0.125)


def paged_inputs(dtype: str = "float16") -> tuple[list[Any], np.ndarray[Any, Any]]:
    arrays = cache(*CASES[1], dtype)
    return [*map(tensor, arrays), 0.125], paged.reference(*arrays, scale=0.125)


both = pytest.mark.parametrize(
    ("op", "make"), [(OPS.flash_attention, flash_inputs), (OPS.paged_attention, paged_inputs)], ids=["flash", "paged"]
)


@both
@every_dtype
def test_a_cpu_answers_as_the_reference(op: Any, make: Any, dtype: str) -> None:
    args, wanted = make(dtype)
    np.testing.assert_allclose(op(*args).float().numpy(), wanted, rtol=0, atol=flash.TOLERANCE)


@both
def test_opcheck(op: Any, make: Any) -> None:
    torch.library.opcheck(op, make()[0])


@both
def test_torch_compile_takes_it_whole(op: Any, make: Any) -> None:
    args, _ = make()
    compiled = torch.compile(lambda q, *rest: op(q * 2, *rest) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), op(args[0] * 2, *args[1:]) + 1)


def launch_on_host(stream: int, device: int, kernel: Kernel, shape: Shape, values: Sequence[Any]) -> None:
    """Stands in for the GPU: reads the addresses as arrays, whose sizes the test has put down."""
    assert (stream, device) == (7, 3)
    sizes = iter(launch_on_host.sizes)  # type: ignore[attr-defined]
    args: list[Any] = []
    for value in values:
        if isinstance(value, np.uint64):
            dtype, count = next(sizes)
            raw = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(int(value))
            args.append(np.frombuffer(raw, dtype, count))
        else:
            assert type(value) in (np.int32, np.float32)
            args.append(value.item())
    run(kernel, shape.grid, shape.block, shape.smem, args)


@every_dtype
@pytest.mark.parametrize("which", ["flash", "paged"])
def test_the_cuda_side_hands_the_kernel_what_it_takes(which: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the GPU: addresses, numbers and grid go to the very kernel.cu, run on the CPU."""
    args, wanted = flash_inputs(dtype) if which == "flash" else paged_inputs(dtype)
    tensors = [x for x in args if isinstance(x, torch.Tensor)]
    numpy_types = [np.int32 if x.dtype == torch.int32 else DTYPES[dtype] for x in tensors]
    sizes = [(kind, x.numel()) for kind, x in zip(numpy_types, tensors, strict=True)]
    monkeypatch.setattr(launch_on_host, "sizes", [*sizes, sizes[0]], raising=False)
    monkeypatch.setattr(torch_face, "launch_on", launch_on_host)
    monkeypatch.setattr(torch_face, "_current", lambda device: nullcontext((7, 3)))
    args[1] = args[1].transpose(1, 2).contiguous().transpose(1, 2)  # strided: it must be made whole
    cuda = torch_face._flash_attention_cuda if which == "flash" else torch_face._paged_attention_cuda
    np.testing.assert_allclose(cuda(*args).float().numpy(), wanted, rtol=0, atol=flash.TOLERANCE)


def test_what_the_cuda_side_refuses() -> None:
    (q, k, v, *rest), _ = flash_inputs()
    with pytest.raises(UsageError, match="one dtype, got bfloat16, float16"):
        torch_face._flash_attention_cuda(q, k.bfloat16(), v, *rest)
    with pytest.raises(UsageError, match="got float32 with 64"):
        torch_face._flash_attention_cuda(q.float(), k.float(), v.float(), *rest)
    (q, k, v, table, lens, scale), _ = paged_inputs()
    with pytest.raises(UsageError, match="must be int32"):
        torch_face._paged_attention_cuda(q, k, v, table.long(), lens, scale)


@pytest.mark.gpu
@both
@every_dtype
def test_a_gpu_answers_as_the_reference(op: Any, make: Any, dtype: str, gpu: None) -> None:
    args, wanted = make(dtype)
    there = [x.cuda() if isinstance(x, torch.Tensor) else x for x in args]
    for call in (op, torch.compile(op, fullgraph=True)):
        np.testing.assert_allclose(call(*there).float().cpu().numpy(), wanted, rtol=0, atol=flash.TOLERANCE)
