"""launch(): one call, three backends; what a machine without a GPU can tell of the other two."""

import ctypes
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from redline.errors import MissingError, UsageError
from redline.kernels.launch import Backend, Kernel, first_output, launch, need_driver, run_on_device

SCALE = Kernel(Path(__file__).parent / "planted" / "correct.cu", "scale")


def scale_arguments() -> list[Any]:
    return [np.arange(10, dtype=np.float32), 10, 2.0, np.zeros(10, np.float32)]


class HostAsDevice:
    """Device memory that is the host's: addresses are real, so copies are too."""

    stream = 0

    def here(self) -> nullcontext[None]:
        return nullcontext()

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        room = ctypes.create_string_buffer(size_bytes)
        return ctypes.addressof(room), room

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self) -> None:
        pass


def no_driver(*_: object) -> None:
    raise OSError("libcuda.so.1: cannot open shared object file")


def test_the_host_backend() -> None:
    args = scale_arguments()
    launch(SCALE, (1, 1, 1), (32, 1, 1), 0, args, backend="host")
    np.testing.assert_array_equal(args[-1], args[0] * 2)


@pytest.mark.parametrize("backend", ["cuda.core", "pycuda"])
def test_without_a_driver_a_gpu_backend_says_so(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(MissingError, match=r"needs NVIDIA's driver \(libcuda.so.1\).*the backend 'host'") as caught:
        launch(SCALE, (1, 1, 1), (32, 1, 1), 0, scale_arguments(), backend=backend)
    assert caught.value.exit_code == 3


def test_a_driver_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802 (the driver's name)
            return 100

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    with pytest.raises(MissingError, match=r"finds no device to launch on .cuInit gave 100"):
        need_driver()


@pytest.mark.parametrize(("backend", "extra"), [("cuda.core", "gpu"), ("pycuda", "pycuda")])
def test_a_missing_library_names_its_extra(backend: Backend, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("redline.kernels.launch.need_driver", lambda: None)
    for module in ("cuda.core", "pycuda", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match=rf"pip install 'redline\[{extra}\]'"):
        launch(SCALE, (1, 1, 1), (32, 1, 1), 0, scale_arguments(), backend=backend)


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'opencl'; known: host, cuda.core, pycuda"):
        launch(SCALE, (1, 1, 1), (32, 1, 1), 0, scale_arguments(), backend=cast(Backend, "opencl"))


def test_arrays_travel_and_numbers_have_the_kernel_s_types() -> None:
    args = scale_arguments()

    def submit(values: list[Any]) -> None:
        assert [type(v) for v in values] == [np.uint64, np.int32, np.float32, np.uint64]
        x, y = ((ctypes.c_float * 10).from_address(int(values[i])) for i in (0, 3))
        for i in range(values[1]):
            y[i] = x[i] * values[2]

    run_on_device(HostAsDevice(), args, submit)
    np.testing.assert_array_equal(args[-1], np.arange(10) * 2)
    np.testing.assert_array_equal(args[0], np.arange(10))


def test_outputs_stand_behind_the_last_number() -> None:
    a = np.zeros(1)
    assert first_output([a, a, 1, 2.0, a]) == 4
    assert first_output([a, a]) == 0
