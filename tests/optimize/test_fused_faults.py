"""Faults of fused kernels on the user's road: no compiler, a CPU without the ISA, a library that is gone."""

from pathlib import Path

import pytest
from tiny_job import write_job

from redline import artifact, machine
from redline.cli import main
from redline.errors import ArtifactError
from redline.kernels import build

FORCED = """
from redline.optimize.recipe import EXPERT

forced = Recipe(name="forced", passes=EXPERT[0].passes, engine="onnxruntime", options={"isa": "avx512_vnni"})
job = Job("""


def optimize(*options: str) -> int:
    return main(["optimize", "job.py", "--no-prove", *options])


def test_without_a_compiler(
    clean_process: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(clean_process)
    monkeypatch.setenv("CXX", "no-such-g++")
    fused = "onnxruntime-int8-fused,native-int8-fused"
    assert optimize("--recipes", fused, "--fresh", "--out", "made") == 3
    assert capsys.readouterr().err.splitlines()[-1] == (
        "redline optimize: CPU kernels need a C++ compiler, no 'no-such-g++' here: `apt-get install g++`, or set $CXX"
    )
    assert not Path("made").exists()
    assert optimize("--recipes", f"onnxruntime-fp32,{fused}", "--out", "made") == 0  # what needs none goes on
    assert "rejected: CPU kernels need a C++ compiler" in capsys.readouterr().err
    assert artifact.load(Path("made")).manifest.recipe["name"] == "onnxruntime-fp32"


def test_an_isa_that_this_cpu_lacks(
    clean_process: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(clean_process, ("job = Job(", FORCED.strip()), ("recipes=()", "recipes=(forced,)"))
    monkeypatch.setattr(machine, "isa", lambda: "avx2")
    assert optimize("--recipes", "forced", "--out", "made") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "redline optimize: onnxruntime: isa avx512_vnni was forced, this CPU has avx2"


def test_an_artifact_whose_library_is_not_what_it_was(clean_process: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_job(clean_process)
    assert optimize("--recipes", "onnxruntime-int8-fused", "--out", "made") == 0
    made = Path("made")
    names = [f"model/{build.file_name(isa)}" for isa in build.isas()]
    assert set(names) < artifact.load(made).manifest.files.keys()
    assert main(["inspect", "made", "--replay"]) == 0
    for name in names:
        library = made / name
        whole = library.read_bytes()
        library.unlink()  # not written over: it may be loaded
        with pytest.raises(ArtifactError, match=f"{name} is missing"):
            artifact.load(made)
        library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=f"{name} was changed after it was written"):
            artifact.load(made)
        library.write_bytes(whole)
    (made / names[0]).unlink()
    capsys.readouterr()
    assert main(["inspect", "made", "--replay"]) == 2
    assert f"{names[0]} is missing" in capsys.readouterr().err
