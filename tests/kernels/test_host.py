"""kernels/host: right answers in every thread order, every planted bug named with its lines, no alarm without a bug."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from redline.errors import UsageError
from redline.kernels.host.bug import DeviceBugError
from redline.kernels.host.run import ORDERS, Counts, Order, run
from redline.kernels.launch import Argument, Kernel, launch

PLANTED = Path(__file__).parent / "planted"
CORRECT = PLANTED / "correct.cu"

# (file, kernel, kind, blocks, threads, n). One array in, n, one out.
BUGS = [
    ("memory.cu", "read_past_end", "out of bounds", 3, 32, 64),
    ("memory.cu", "write_before_start", "out of bounds", 1, 32, 32),
    ("memory.cu", "static_shared", "shared memory out of bounds", 1, 64, 64),
    ("memory.cu", "dynamic_shared", "shared memory out of bounds", 1, 64, 64),
    ("memory.cu", "uninitialized", "uninitialized shared memory", 1, 32, 32),
    ("memory.cu", "misaligned", "misaligned access", 1, 32, 32),
    ("races.cu", "missing_barrier", "race", 1, 64, 64),
    ("races.cu", "no_trailing_barrier", "race", 1, 64, 128),
    ("races.cu", "missing_syncwarp", "race", 1, 32, 64),
    ("races.cu", "two_blocks", "race between blocks", 2, 32, 64),
    ("races.cu", "half_atomic", "race", 1, 64, 64),
    ("races.cu", "write_after_reads", "race", 1, 32, 64),
    ("barriers.cu", "two_barriers", "divergent barrier", 1, 64, 32),
    ("barriers.cu", "early_return", "divergent barrier", 1, 64, 32),
    ("barriers.cu", "barrier_and_shuffle", "divergent barrier", 1, 64, 10),
    ("barriers.cu", "outside_mask", "bad lane", 1, 32, 16),
    ("tensor.cu", "forgotten_wait", "copy not waited for", 1, 16, 64),
    ("tensor.cu", "misaligned_copy", "misaligned access", 1, 16, 64),
    ("tensor.cu", "unsynced_row", "race", 1, 32, 64),
    ("tensor.cu", "misaligned_row", "misaligned access", 1, 32, 64),
]


def marked_lines(source: Path, kernel: str) -> set[int]:
    """Lines that end in `// <-`, from the kernel's name to its export."""
    lines = source.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if f" {kernel}(" in line)
    end = lines.index(f"REDLINE_EXPORT({kernel})")
    return {i + 1 for i in range(start, end) if lines[i].endswith("// <-")}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("file", "name", "kind", "blocks", "threads", "n"), BUGS)
def test_a_planted_bug_is_named(
    file: str, name: str, kind: str, blocks: int, threads: int, n: int, order: Order
) -> None:
    x, y = np.ones(128 if name == "no_trailing_barrier" else 64, np.int32), np.zeros(64, np.int32)
    with pytest.raises(DeviceBugError) as caught:
        run(Kernel(PLANTED / file, name), (blocks, 1, 1), (threads, 1, 1), 128, [x, n, y], order=order, seed=7)
    bug = caught.value
    assert bug.kind == kind, str(bug)
    assert {place.line for place in bug.places if place.file} == marked_lines(PLANTED / file, name), str(bug)
    assert {place.file.name for place in bug.places if place.file} == {file}
    assert all(0 <= place.thread < threads and 0 <= place.block < blocks for place in bug.places)
    assert str(bug).startswith(f"{name}: {kind}: thread ") and f" at planted/{file}:" in str(bug)


def test_the_words_of_a_bug() -> None:
    """Who, where and what, for a person who has only this line."""
    x, y = np.ones(64, np.int32), np.zeros(64, np.int32)
    with pytest.raises(
        DeviceBugError, match=r"thread 32 .* writes at .*: offset 128 of dynamic .* which has 128 bytes"
    ):
        run(Kernel(PLANTED / "memory.cu", "dynamic_shared"), (1, 1, 1), (64, 1, 1), 128, [x, 64, y])
    with pytest.raises(DeviceBugError, match=r"thread 31 of block 0 reads at .*: offset 128 of shared tile$"):
        run(Kernel(PLANTED / "memory.cu", "uninitialized"), (1, 1, 1), (32, 1, 1), 0, [x, 32, y])
    with pytest.raises(DeviceBugError, match=r"is at a barrier at .*:17, while thread 32 of block 0 has returned"):
        run(Kernel(PLANTED / "barriers.cu", "early_return"), (1, 1, 1), (64, 1, 1), 0, [x, 32, y])
    assert not y.any()  # a launch that failed leaves its outputs alone


def test_a_module_runs_again_after_a_bug() -> None:
    x, y = np.arange(64, dtype=np.int32), np.zeros(64, np.int32)
    kernel = Kernel(PLANTED / "memory.cu", "dynamic_shared")
    with pytest.raises(DeviceBugError):
        run(kernel, (1, 1, 1), (64, 1, 1), 128, [x, 64, y])
    run(kernel, (1, 1, 1), (64, 1, 1), 256, [x, 64, y])
    np.testing.assert_array_equal(y, x)


def test_barriers_are_checked_in_fast_mode_too() -> None:
    x, y = np.ones(64, np.int32), np.zeros(64, np.int32)
    with pytest.raises(DeviceBugError) as caught:
        run(Kernel(PLANTED / "barriers.cu", "two_barriers"), (1, 1, 1), (64, 1, 1), 0, [x, 32, y], checked=False)
    assert {place.line for place in caught.value.places} == marked_lines(PLANTED / "barriers.cu", "two_barriers")


def correct(name: str, checked: bool, order: Order) -> Counts:
    """Runs one of correct.cu on random input and compares its answer."""
    x = np.random.default_rng(3).integers(0, 37, 1000).astype(np.int32)
    grid, threads, smem = 1, 64, 0
    if name == "scale":
        grid, threads, args = 4, 256, [x.astype(np.float32), 1000, 2.5, np.zeros(1000, np.float32)]
        wanted = x.astype(np.float32) * 2.5
    elif name == "sum":
        grid, threads, args, wanted = 3, 128, [x, 1000, np.zeros(1, np.int32)], x.sum(keepdims=True)
    elif name == "histogram":
        smem, args, wanted = 37 * 4, [x, 1000, 37, np.zeros(37, np.int32)], np.bincount(x, minlength=37)
    else:
        x, args = x[:64], [x[:64], np.zeros(64, np.int32)]
        warps = x.reshape(2, 32)
        odd, most = (warps & 1).sum(1, keepdims=True), warps.max(1, keepdims=True)
        wanted = (np.roll(warps, -1, 1) + 1000 * odd + 100000 * most + [[2], [3]]).ravel()
    counts = run(Kernel(CORRECT, name), (grid, 1, 1), (threads, 1, 1), smem, args, checked=checked, order=order, seed=5)
    np.testing.assert_array_equal(args[-1], wanted)
    return counts


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", ["scale", "sum", "histogram", "neighbors"])
def test_no_alarm_on_a_correct_kernel(name: str, checked: bool, order: Order) -> None:
    correct(name, checked, order)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles_and_atomics(order: Order) -> None:
    x, y = np.random.default_rng(6).permutation(100)[:32].astype(np.int32), np.zeros((5, 32), np.int32)
    ends = np.array([1000, -1, 0, 0, 0], np.int32)
    run(Kernel(CORRECT, "lanes"), (1, 1, 1), (32, 1, 1), 0, [x, 7, y, ends], order=order)
    halves, t = x.reshape(2, 16), np.arange(16)
    np.testing.assert_array_equal(y[0], np.repeat(halves[:, 3], 16))
    np.testing.assert_array_equal(y[1], halves[:, np.where(t < 2, t, t - 2)].ravel())
    np.testing.assert_array_equal(y[2], halves[:, np.where(t > 13, t, t + 2)].ravel())
    np.testing.assert_array_equal(y[3], x[np.arange(32) ^ 5])
    np.testing.assert_array_equal(y[4, :8], [x[:7].sum()] * 7 + [0])
    wanted = [x.min(), x.max(), np.bitwise_xor.reduce(x), np.bitwise_or.reduce(x), x.sum()]
    np.testing.assert_array_equal(ends, wanted)


def test_bytes_are_counted() -> None:
    assert correct("scale", True, "forward") == Counts((4000, 0), (0, 4000))
    assert correct("sum", True, "random") == Counts((4000, 12), (0, 12))  # one atomic a block reads and writes
    assert correct("histogram", True, "reverse") == Counts((4000, 0), (0, 148))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", ["tile_f16", "tile_bf16", "tile_s8"])
def test_tensor_cores(name: str, checked: bool, order: Order) -> None:
    """Small whole numbers: every format holds them and their sums."""
    k, rng = 96, np.random.default_rng(2)
    x, w = rng.integers(-8, 9, (16, k)), rng.integers(-8, 9, (8, k))
    dtype = {"tile_f16": np.float16, "tile_bf16": ml_dtypes.bfloat16, "tile_s8": np.int8}[name]
    y = np.zeros((16, 8), np.int32 if name == "tile_s8" else np.float32)
    args: list[Argument] = [x.astype(dtype), w.astype(dtype), k, y]
    run(Kernel(PLANTED / "tensor.cu", name), (1, 1, 1), (32, 1, 1), 0, args, checked=checked, order=order)
    np.testing.assert_array_equal(y, x @ w.T)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checked", [True, False])
def test_ldmatrix(checked: bool, order: Order) -> None:
    """A lane gets two neighbors of each tile: in row lane / 4, or, transposed, in column lane / 4."""
    x = np.random.default_rng(9).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    y = np.zeros((2, 4, 8, 4), np.int32)
    kernel = Kernel(PLANTED / "tensor.cu", "matrices")
    run(kernel, (1, 1, 1), (32, 1, 1), 0, [x.view(np.int32).ravel(), 128, y], checked=checked, order=order)
    np.testing.assert_array_equal(y.view(np.uint16).reshape(2, 4, 8, 8), [x, x.swapaxes(1, 2)])


def test_half_and_bfloat16_round_to_even() -> None:
    rng = np.random.default_rng(4)
    x = (rng.normal(size=500) * 10.0 ** rng.integers(-9, 9, 500)).astype(np.float32)
    x[:8] = [0, -0.0, np.inf, -np.inf, np.nan, 65520, 1.00390625, 1 + 3 / 256]  # ties, overflow of half
    half, bfloat16 = np.zeros_like(x), np.zeros_like(x)
    run(Kernel(PLANTED / "tensor.cu", "round_trip"), (1, 1, 1), (64, 1, 1), 0, [x, len(x), half, bfloat16])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(half, x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(bfloat16, x.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("checked", [True, False])
def test_asynchronous_copies(checked: bool, order: Order) -> None:
    x, y = np.arange(640, dtype=np.int32), np.zeros(64, np.int32)
    kernel = Kernel(PLANTED / "tensor.cu", "pipelined")
    counts = run(kernel, (1, 1, 1), (16, 1, 1), 0, [x, 640, y], checked=checked, order=order)
    np.testing.assert_array_equal(y, x.reshape(10, 64).sum(0))
    assert counts == (Counts((2560, 0), (0, 256)) if checked else Counts((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([np.ones(4, np.float32), 4, np.ones(4, np.float32)], r"takes \(p4 i4 f4 p4\), got \(p4 i4 p4\)"),
        ([np.ones(4), 4, 1.0, np.ones(4, np.float32)], r"got \(p8 i4 f4 p4\)"),
        ([np.ones(4, np.float32), 4, 1, np.ones(4, np.float32)], r"got \(p4 i4 i4 p4\)"),
    ],
)
def test_arguments_must_fit_the_signature(args: list[Argument], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(Kernel(CORRECT, "scale"), (1, 1, 1), (32, 1, 1), 0, args)


def test_launches_that_no_device_takes(tmp_path: Path) -> None:
    args: list[Argument] = [np.ones(4, np.float32), 4, 1.0, np.ones(4, np.float32)]
    with pytest.raises(UsageError, match=r"1 to 1024 threads"):
        run(Kernel(CORRECT, "scale"), (1, 1, 1), (64, 32, 1), 0, args)
    with pytest.raises(UsageError, match=r"no REDLINE_EXPORT\(nobody\)"):
        run(Kernel(CORRECT, "nobody"), (1, 1, 1), (32, 1, 1), 0, args)
    with pytest.raises(UsageError, match="argument 3 is an output"):
        launch(Kernel(CORRECT, "scale"), (1, 1, 1), (32, 1, 1), 0, [*args[:3], np.ones((4, 2))[:, 0]], "host")
    (tmp_path / "broken.cu").write_text("extern int")
    with pytest.raises(UsageError, match=r"can't compile .*broken.cu:(.|\n)*error"):
        run(Kernel(tmp_path / "broken.cu", "scale"), (1, 1, 1), (32, 1, 1), 0, args)
