"""Bytes of FlashAttention counted on the CPU beside what unfused attention moves: a plot, and every count compared.

python -m redline.kernels.flash_attention.traffic docs/attention-bytes.svg
"""

import sys
from pathlib import Path

from redline import page
from redline.errors import BrokenError
from redline.kernels.flash_attention import cuda, shapes
from redline.kernels.host.run import run

LENGTHS = (64, 128, 256, 512, 1024)  # of n = m
HEAD_DIM = 64


def counted(n: int, m: int, d: int, *, causal: bool = False) -> tuple[int, int]:
    """Read and written by kernel.cu for one head, as the CPU runner saw them.

    Raises:
        BrokenError: they are not those of FlashAttention's formula.
    """
    kernel, shape, args = cuda.arguments(*shapes.qkv(n, m, d), causal=causal, scale=d**-0.5)
    counts = run(kernel, shape.grid, shape.block, shape.smem, args)
    found = sum(counts.read_bytes), sum(counts.written_bytes)
    if found != (wanted := cuda.bytes_moved(n, m, d, causal=causal)):
        raise BrokenError(f"{kernel.name} with n={n}, m={m} moved {found} bytes, the formula says {wanted}")
    return found


def svg(lengths: tuple[int, ...] = LENGTHS) -> str:
    fused = [sum(counted(n, n, HEAD_DIM)) for n in lengths]
    causal = [sum(counted(n, n, HEAD_DIM, causal=True)) for n in lengths]
    unfused = [sum(cuda.unfused_bytes(n, n, HEAD_DIM)) for n in lengths]
    with page.drawing(7.5, 3.4) as (fig, ax):
        for values, label, color, style in (
            (unfused, "unfused: scores, softmax, answer (least possible)", page.RED, "o--"),
            (fused, "flash_attention, counted", page.BLUE, "o-"),
            (causal, "flash_attention, causal, counted", page.GREEN, "o-"),
        ):
            ax.plot(lengths, [v / 2**20 for v in values], style, color=color, label=label)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=10)
        ax.set_xticks(lengths, [str(n) for n in lengths])
        ax.set_xlabel(f"n = m; one head, head_dim {HEAD_DIM}, float16, blocks of {cuda.ROWS} rows")
        ax.set_ylabel("MiB of global memory")
        ax.legend()
        return page.figure_svg(fig, "bytes moved by flash attention and by unfused attention")


def main(path: Path) -> None:
    ground = '<svg style="background:#fff;color:#0a0b0c" '  # a page of any color may show it
    path.write_text(str(svg()).replace("<svg ", ground, 1) + "\n")
    for n in LENGTHS:
        fused, unfused = sum(cuda.bytes_moved(n, n, HEAD_DIM)), sum(cuda.unfused_bytes(n, n, HEAD_DIM))
        print(f"n = m = {n:5}: {fused >> 10:6} KiB, unfused {unfused >> 10:6} KiB, {unfused / fused:4.1f} times")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
