"""The kernels' benchmark: no figure without the right answer, and figures that mean what they say."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from redline import machine
from redline.errors import MeasurementError
from redline.kernels import bench, build
from redline.kernels.fused_mlp import operator, shapes
from redline.kernels.fused_mlp.operator import Layer
from redline.runtimes.engines import Engine
from redline.tensors import Arrays


class Answer:
    """The reference, plus a little."""

    def __init__(self, extra: float = 0.0, rows: int | None = None, layers: Sequence[Layer] = bench._LAYERS) -> None:
        self._extra, self._rows, self._layers = extra, rows, layers

    def infer(self, inputs: Arrays) -> Arrays:
        return {"y": operator.reference(inputs["x"], self._layers)[: self._rows] + np.float32(self._extra)}


REQUESTS: dict[int, list[Arrays]] = {2: [{"x": np.ones((2, shapes.DLRM_TOP[0]), np.float32)}]}
RIGHT: dict[str, Engine] = {
    **dict.fromkeys(bench._ALLOWED, Answer()),
    **dict.fromkeys(bench._FLOATS_ALLOWED, Answer(layers=bench._FP32)),
}


def test_right_answers_pass() -> None:
    assert bench.verify(RIGHT, REQUESTS) == []


@pytest.mark.parametrize("wrong", [Answer(0.1), Answer(float("nan")), Answer(rows=1)])
def test_a_rival_that_answers_otherwise_is_not_compared(wrong: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.verify(RIGHT | {"openvino": wrong}, REQUESTS) == ["openvino"]
    assert "openvino is not compared, at 2 rows: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "wrong", "why"),
    [
        ("fused", Answer(1e-5), "fused at 2 rows: .* 1e-05 off the reference"),
        ("kernel", Answer(rows=1), r"kernel at 2 rows: \[1, 1\], inf off"),
        ("fused, bf16", Answer(0.03, layers=bench._FP32), "fused, bf16 at 2 rows: .* 0.03 off"),
    ],
)
def test_a_wrong_answer_is_no_measurement(name: str, wrong: Engine, why: str) -> None:
    with pytest.raises(MeasurementError, match=why):
        bench.verify(RIGHT | {name: wrong}, REQUESTS)


def test_figures() -> None:
    """The rival is the faster of the two graphs; the peak's share leaves out what the call costs."""
    ns = {"fused": 10, "onnxruntime": 40, "onnxruntime, lean": 30, "openvino": 20, "kernel": 9, "call": 1, "peak": 4}
    ns |= {"fused, bf16": 20, "openvino, bf16": 30, "fused, fp32": 40, "onnxruntime, fp32": 44, "openvino, fp32": 48}
    times = {name: {rows: np.full(5, t * 1000, np.int64) for rows in bench._ROWS} for name, t in ns.items()}
    figures = bench.figures_of(times, bench._OPERATIONS * 100)
    assert figures["fused_mlp_over_onnxruntime_100"].value == pytest.approx(3.0)
    assert figures["fused_mlp_over_openvino_100"].value == pytest.approx(2.0)
    assert figures["fused_mlp_bf16_over_openvino_512"].value == pytest.approx(1.5)
    assert figures["fused_mlp_fp32_over_onnxruntime_512"].value == pytest.approx(1.1)
    assert figures["fused_mlp_peak_share_100"].value == pytest.approx(0.5)  # 4 us of peak for the work done in 8


def test_every_subject_runs(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs redline[openvino]")
    running = bench.subjects(tmp_path, build.library("portable"))
    refused = bench.verify({name: running[name] for name in RIGHT if name in running}, REQUESTS)
    # OpenVINO's INT8 sums overflow on a CPU without VNNI.
    assert set(refused) <= ({"openvino"} if machine.weaker(machine.isa(), "avx512_vnni") else set())
