"""The whole road on a tiny job: `redline optimize` as a user runs it, its artifact, its cache, its refusals."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_job import write_job

from redline import artifact
from redline.cli import main
from redline.optimize.recipe import AUTO, recipe_from_json

Ran = subprocess.CompletedProcess[str]


def redline(folder: Path, cache: Path, *arguments: str) -> Ran:
    environment = os.environ | {"REDLINE_CACHE": str(cache), "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "redline", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def strict(text: str) -> Any:
    """Plain JSON: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def steps_of(cache: Path) -> dict[str, tuple[int, int]]:
    """Finished steps: folder → inode and time of the last change."""
    found = {p.name: p.stat() for p in (cache / "steps").glob("[!.]*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


@dataclasses.dataclass
class Road:
    folder: Path
    cache: Path
    ran: Ran
    board: dict[str, Any]
    made: dict[str, tuple[int, int]]

    def candidate(self, name: str) -> dict[str, Any]:
        return next(c for c in self.board["candidates"] if c["name"] == name)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Road:
    """One run of all auto recipes into an empty cache."""
    folder, cache = tmp_path_factory.mktemp("road"), tmp_path_factory.mktemp("road-cache")
    write_job(folder)
    ran = redline(folder, cache, "optimize", "job.py", "--no-prove", "--json", "--out", "made", "--baseline", "plain")
    assert ran.returncode == 0, ran.stderr
    return Road(folder, cache, ran, strict(ran.stdout), steps_of(cache))


def test_the_leaderboard_has_every_recipe(road: Road) -> None:
    assert [c["name"] for c in road.board["candidates"]] == [r.name for r in AUTO]
    assert road.board["baseline"]["name"] == "pytorch-eager"
    assert 0.75 < road.board["baseline"]["verdicts"]["accuracy"]["value"] < 0.9
    winner = road.candidate(road.board["winner"])
    assert winner["batchable"]
    assert winner["alive"]
    assert road.board["rows"] == [1, 4, 20]
    for found in road.board["speedup"].values():
        assert 0 < found["low"] <= found["ratio"] <= found["high"]
    for entry in road.board["candidates"]:
        assert all(v["why"] for v in entry["verdicts"].values())
        if entry["alive"]:
            assert list(entry["verdicts"]) == ["build", "parity", "invariance", "accuracy"]
            assert entry["latency_ms"].keys() == entry["rows_per_s_per_core"].keys() == {"1", "4", "20"}
    assert road.board["test"].keys() == {"source", "candidate"}  # looked at once, for the winner


def test_the_road_says_what_it_did(road: Road) -> None:
    lines = [line.split()[2] for line in road.ran.stderr.splitlines()]
    assert lines == ["source", *(r.name for r in AUTO), "latency,"]
    assert "Warning" not in road.ran.stderr


def test_dynamic_int8_is_not_put_behind_batching(road: Road) -> None:
    entry = road.candidate("onnxruntime-int8-dynamic")
    assert not entry["batchable"]
    assert entry["alive"]
    found = entry["verdicts"]["invariance"]
    assert found["worst"] == max(found["neighbors"], found["outliers_x10"], found["outliers_x100"]) > 5e-3
    static = road.candidate("onnxruntime-int8-static")
    assert static["batchable"]
    assert static["verdicts"]["invariance"]["worst"] <= 5e-3
    assert static["notes"][1] == "MergeEmbeddings: 3 tables in one"


def test_the_artifact_carries_its_evidence(road: Road) -> None:
    found = artifact.load(road.folder / "made")
    manifest = found.manifest
    entry = road.candidate(road.board["winner"])
    assert recipe_from_json(manifest.recipe).to_json().items() <= entry.items()
    assert (manifest.proof, manifest.proof_why) == ("unproven", "not asked")
    assert manifest.command.startswith("redline optimize job.py --no-prove")
    assert manifest.sla == {"p99_ms": 50.0, "rate_rps": 50, "rows": 20}
    assert manifest.metric["test"] == road.board["test"]
    assert manifest.metric["validation"]["candidate"] == entry["verdicts"]["accuracy"]["value"]
    assert set(manifest.files) == {"evidence/leaderboard.json", "golden.npz", "model/model.onnx", "report.html"}
    written = strict((found.path / "evidence" / "leaderboard.json").read_text())
    assert written == {k: v for k, v in road.board.items() if k != "artifact"}
    assert road.board["artifact"] == "made"
    page = (found.path / "report.html").read_text()
    assert all(r.name in page for r in AUTO)
    assert "unproven" in page
    assert not any(loaded in page for loaded in ("<script src", "<link", "@import", 'src="http'))  # self-contained
    golden = found.golden()
    assert sorted({len(inputs["ids"]) for inputs, _, _ in golden}) == [1, 3, 7, 20]
    for _, answers, source in golden:
        assert np.abs(answers["score"] - source["score"]).max() <= manifest.source_tolerance


def test_the_baseline_is_an_artifact_too(road: Road) -> None:
    found = artifact.load(road.folder / "plain")
    assert (found.manifest.engine, found.manifest.recipe["name"]) == ("torch_eager", "pytorch-eager")
    ran = redline(road.folder, road.cache, "inspect", "plain", "--replay")
    assert ran.returncode == 0, ran.stderr


def test_inspect_replays(road: Road, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = redline(road.folder, road.cache, "inspect", "made", "--replay")
    assert ran.returncode == 0, ran.stderr
    assert "19 golden requests replayed" in ran.stdout
    moved = tmp_path / "moved"
    shutil.copytree(road.folder / "made", moved)
    found = artifact.load(moved)
    cases = [(i, {"score": a["score"] + np.float32(0.01)}, s) for i, a, s in found.golden()]
    artifact.save_golden(moved / "golden.npz", cases)
    assert main(["inspect", str(moved), "--replay"]) == 2
    assert "golden.npz was changed after it was written" in capsys.readouterr().err
    artifact.seal(moved, found.manifest)
    assert main(["inspect", str(moved), "--replay"]) == 1
    assert "score" in capsys.readouterr().err


def test_a_second_run_builds_nothing(road: Road) -> None:
    ran = redline(road.folder, road.cache, "optimize", "job.py", "--no-prove", "--out", "again")
    assert ran.returncode == 0, ran.stderr
    assert steps_of(road.cache) == road.made
    said, speed = ran.stdout, road.board["speedup"]["20"]
    assert f"{speed['ratio']:.2f} x PyTorch eager at 20 rows, 95 % interval [{speed['low']:.2f}, " in said
    assert (
        f"test auc      {road.board['test']['source']:.4f} before, {road.board['test']['candidate']:.4f} after" in said
    )
    assert "proof         unproven: not asked\nartifact      again  (report: again/report.html)\n" in said
    assert all(r.name in said for r in AUTO)
    board = artifact.load(road.folder / "again").evidence("leaderboard")
    assert {c["verdicts"]["build"]["why"] for c in board["candidates"] if c["alive"]} == {"cached"}
    assert {c["name"]: c["latency_ms"] for c in board["candidates"]} == {
        c["name"]: c["latency_ms"] for c in road.board["candidates"]
    }
    built = {c["verdicts"]["build"]["why"] for c in road.board["candidates"] if c["alive"]}
    assert "built" in built  # the first run did


def test_a_change_of_the_metric_scores_anew_but_builds_nothing(road: Road, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(road.cache, cache)
    write_job(tmp_path, ("return float(auc)", "return float(auc) / 2"))
    ran = redline(tmp_path, cache, "optimize", "job.py", "--no-prove", "--json", "--recipes", "onnxruntime-int8-static")
    assert ran.returncode == 0, ran.stderr
    found = strict(ran.stdout)["candidates"][0]["verdicts"]
    before = road.candidate("onnxruntime-int8-static")["verdicts"]
    assert found["build"]["why"] == "cached"
    assert found["accuracy"]["value"] == before["accuracy"]["value"] / 2
    assert (tmp_path / "out" / "tiny-1" / "manifest.json").is_file()


def test_nothing_edits_an_artifact(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(road.folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = Path("made")
    before = {p: p.stat().st_mtime_ns for p in [path, *path.rglob("*")]}
    assert main(["optimize", "job.py", "--no-prove", "--out", "made"]) == 2
    assert {p: p.stat().st_mtime_ns for p in [path, *path.rglob("*")]} == before
    sys.modules.pop("job")


CLIPPED = (
    ("table.weight.mul_(0.3)", "table.weight.mul_(0.03)"),
    ("    arrays = draw(4000, 0)\n", "    arrays = draw(4000, 0)\n    arrays['dense'] *= 0.01\n"),
)


def test_ranges_that_clip_break_the_gate(clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parity holds on the calibration rows; only the job's own metric shows that real rows clip."""
    write_job(clean_process, *CLIPPED)
    names = "onnxruntime-fp32,onnxruntime-int8-static"
    assert main(["optimize", "job.py", "--no-prove", "--json", "--recipes", names, "--out", "out"]) == 0
    board = strict(capsys.readouterr().out)
    assert board["winner"] == "onnxruntime-fp32"
    static = board["candidates"][1]
    assert (static["alive"], static["latency_ms"]) == (False, {})
    found = static["verdicts"]["accuracy"]
    assert found["why"] == f"auc {found['value']:.4f}: drop {found['drop']:.4f} > 0.005"
    assert found["drop"] > 0.02
    assert static["verdicts"]["parity"]["ok"]
    assert artifact.load(clean_process / "out").manifest.recipe["name"] == "onnxruntime-fp32"


@pytest.mark.parametrize("as_json", [False, True])
def test_a_gate_that_nothing_keeps(as_json: bool, road: Road, tmp_path: Path) -> None:
    write_job(tmp_path, ("max_drop=0.005", "max_drop=0.005, floor=0.9999"))
    options = ["--recipes", "onnxruntime-fp32,onnxruntime-int8-static", "--out", "out/a", *["--json"][: int(as_json)]]
    ran = redline(tmp_path, road.cache, "optimize", "job.py", "--no-prove", *options)
    assert ran.returncode == 1, ran.stderr
    assert ran.stderr.splitlines()[-1] == ("redline optimize: no candidate kept the gate; no artifact was written")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.rejected"]
    board = strict((tmp_path / "out" / "a.rejected" / "evidence" / "leaderboard.json").read_text())
    assert board["winner"] is None
    drops = {c["name"]: c["verdicts"]["accuracy"]["drop"] for c in board["candidates"]}
    miss = board["nearest_miss"]
    assert miss["name"] == min(drops, key=lambda n: drops[n])
    assert miss["why"].endswith("< floor 0.9999")
    assert miss["why"] in (tmp_path / "out" / "a.rejected" / "report.html").read_text().replace("&lt;", "<")
    if as_json:
        assert strict(ran.stdout)["nearest_miss"] == miss
    else:
        assert f"nearest miss {miss['name']}: {miss['why']}" in ran.stdout


HELD = (
    ("import numpy as np\n", "import pathlib\nimport time\n\nimport numpy as np\n\ncalls = []\n"),
    (
        "    arrays = draw(4000, seed)\n",
        "    calls.append(split)\n"
        "    while len(calls) > 1 and pathlib.Path('hold').exists():\n"
        "        time.sleep(0.02)\n"
        "    arrays = draw(4000, seed)\n",
    ),
)


@contextlib.contextmanager
def started(folder: Path, cache: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {"REDLINE_CACHE": str(cache)}
    command = [sys.executable, "-m", "redline", *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_run_resumes(tmp_path: Path) -> None:
    """Killed while it scores its first candidate: two built steps and the baseline's score are finished."""
    cache, hold = tmp_path / "cache", tmp_path / "hold"
    write_job(tmp_path, *HELD)
    hold.touch()
    options = ("optimize", "job.py", "--no-prove", "--recipes", "onnxruntime-fp32", "--json", "--out", "made")
    with started(tmp_path, cache, *options) as process:
        deadline = time.monotonic() + 120
        while not (len(steps_of(cache)) == 4 and list((cache / "steps").glob(".making.*"))):
            assert process.poll() is None
            assert time.monotonic() < deadline, "the steps never came"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finished = steps_of(cache)
    assert not (tmp_path / "made").exists()
    hold.unlink()
    ran = redline(tmp_path, cache, *options)
    assert ran.returncode == 0, ran.stderr
    assert steps_of(cache).items() > finished.items()  # the same folders, not made again
    assert all((cache / "steps" / name / "key.json").is_file() for name in steps_of(cache))
    assert strict(ran.stdout)["candidates"][0]["verdicts"]["build"]["why"] == "cached"
    assert artifact.load(tmp_path / "made").manifest.recipe["name"] == "onnxruntime-fp32"
