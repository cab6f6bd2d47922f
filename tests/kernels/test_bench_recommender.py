"""The recommenders' benchmark: who is compared, with whom, and that no wrong answer is timed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redline.bench.goals import read_goals
from redline.errors import MeasurementError, MissingError
from redline.kernels import bench_recommender as bench
from redline.kernels.fused_recommender import job as synthetic
from redline.optimize.build import Cache, Source
from redline.runtimes.engines import Engine
from redline.tensors import Arrays
from redline.verdict import Verdict

RIGHT = np.linspace(0.1, 0.9, 1024, dtype=np.float32)


class Answer:
    """What is right, or something else."""

    def __init__(self, change: Callable[[Any], Any] = lambda y: y) -> None:
        self._change = change

    def infer(self, inputs: Arrays) -> Arrays:
        return {"score": np.asarray(self._change(inputs["x"]), np.float32)}


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        (lambda y: y, True),
        (lambda y: y + 0.009, True),
        (lambda y: y + 0.011, False),  # in the mean
        (lambda y: y + 0.06 * (y > 0.899), False),  # in the worst row
        (lambda y: 0.5 + 0 * y + np.random.default_rng(0).normal(0, 1e-3, len(y)), False),
        (lambda y: y * np.nan, False),
    ],
)
def test_like_accuracy(change: Callable[[Any], Any], ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.synthetic, "answered", lambda seed: ({"x": RIGHT}, RIGHT))
    judged = bench.judge_synthetic(Answer(change))
    assert judged.ok is ok, judged.why


def admitted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    found: dict[str, Callable[[], Engine]],
    refused: tuple[str, ...] = (),
) -> dict[str, Engine]:
    monkeypatch.setattr(bench, "subjects", lambda *_: found)
    judged: list[Verdict] = [Verdict(name not in refused, "as judged") for name in found]
    source = Source(synthetic.job, Path(synthetic.__file__))
    requests: dict[int, list[Arrays]] = {4: [{"x": RIGHT[:4]}]}
    return bench.admitted(source, Cache(tmp_path), lambda _: judged.pop(0), requests, 0.05)


def test_who_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> Engine:
        raise MissingError("bf16 needs a better CPU")

    names = ("pytorch-eager", "onnxruntime-int8-dynamic", "native-int8-fused")
    # One that can't run is never judged.
    found: dict[str, Callable[[], Engine]] = {**dict.fromkeys(names, Answer), "openvino-bf16": missing}
    running = admitted(monkeypatch, tmp_path, found, refused=("onnxruntime-int8-dynamic",))
    assert list(running) == ["pytorch-eager", "native-int8-fused"]
    said = capsys.readouterr().out
    assert "onnxruntime-int8-dynamic as judged: too far off to be compared" in said
    assert "openvino-bf16            bf16 needs a better CPU" in said


@pytest.mark.parametrize(
    ("change", "refused", "why"),
    [
        (lambda y: y, ("native-int8-fused",), "native-int8-fused is not as accurate as asked: as judged"),
        (lambda y: y[:-1], (), r"native-int8-fused answers \[3\], wanted \[4\]"),
        (lambda y: y + 0.3, (), "native-int8-fused answers .*; 0.3 off"),
        (lambda y: y * np.nan, (), "native-int8-fused answers"),
    ],
)
def test_a_wrong_answer_is_no_measurement(
    change: Callable[[Any], Any], refused: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: dict[str, Callable[[], Engine]] = {"pytorch-eager": Answer, "native-int8-fused": lambda: Answer(change)}
    with pytest.raises(MeasurementError, match=why):
        admitted(monkeypatch, tmp_path, found, refused)


class Peak:
    operations = 2 * synthetic.OPERATIONS


def test_figures() -> None:
    """Another rival at each size; the bf16 goal has a rival of its own; every goal has its figure."""
    us = {
        "pytorch-eager": (300, 300, 300), "onnxruntime-fp32": (20, 90, 90), "openvino-bf16": (80, 40, 60),
        "openvino-int8-static": (90, 50, 50), "native-int8-fused": (5, 10, 20), "onnxruntime-int8-fused": (10, 20, 25),
        "native-bf16-fused": (8, 30, 30), "peak": (1, 2, 3),
    }  # fmt: skip
    times = {
        name: {rows: np.full(5, x * 1000, np.int64) for rows, x in zip(bench.ROWS, found, strict=True)}
        for name, found in us.items()
    }
    shares = bench.peak_shares(times, Peak())  # type: ignore[arg-type]
    assert shares["synthetic_peak_share_512"].value == pytest.approx(3 / 20 * 512 / 2)
    del times["peak"]
    figures = bench.figures_of("synthetic", times)
    assert [figures[f"synthetic_native_int8_fused_{rows}"].value for rows in bench.ROWS] == [4.0, 4.0, 2.5]
    assert figures["synthetic_onnxruntime_int8_fused_512"].value == 2.0
    assert figures["synthetic_bf16_over_openvino_512"].value == 2.0
    figures |= bench.figures_of("movielens", times) | shares
    assert {goal.metric for goal in read_goals(suite="recommender")} <= figures.keys()
