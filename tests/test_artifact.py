"""An artifact is written whole or not at all, and read only when it is whole, known and for this machine."""

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redline import artifact
from redline.cli import main
from redline.errors import ArtifactError, UsageError
from redline.tensors import Tensor

FIELDS: dict[str, Any] = {
    "name": "tiny",
    "engine": "onnxruntime",
    "model": "model/model.onnx",
    "inputs": (Tensor(name="x", dtype="int64", shape=("rows", 2), max=(3, 4), columns=("a", "b")),),
    "outputs": (Tensor(name="y", dtype="float32", shape=("rows",)),),
    "recipe": {"name": "test", "passes": []},
    "batchable": True,
    "batchable_why": "rows do not mix",
    "replay_tolerance": 1e-5,
    "source_tolerance": 1e-3,
    "max_rows": 8,
    "sla": {"p99_ms": 50.0, "rate_rps": 5.0, "rows": 1},
    "proof": "unproven",
    "proof_why": "a test",
}
CASES = [({"x": np.full((n, 2), n)}, {"y": np.ones(n, np.float32)}, {"y": np.zeros(n, np.float32)}) for n in (1, 12)]


def make(out: Path, **fields: Any) -> Path:
    with artifact.writing(out) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "model.onnx").write_bytes(b"a model")
        artifact.save_golden(folder / "golden.npz", CASES)
        artifact.seal(folder, artifact.Manifest(**FIELDS | fields))
    return out


def edit(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))

    return change


def list_file(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        files = json.loads((path / "manifest.json").read_text())["files"]
        edit("files", files | {name: "0" * 64})(path)

    return change


def unlink(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()

    return change


def flip(path: Path) -> None:
    file = path / "model" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)


def link_out(path: Path) -> None:
    """The very bytes that were hashed, but outside of the folder."""
    file = path / "model" / "model.onnx"
    file.rename(path.parent / "elsewhere.onnx")
    file.symlink_to("../../elsewhere.onnx")


def text(value: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / "manifest.json").write_bytes(value)

    return change


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped byte": (flip, "model/model.onnx was changed after it was written"),
    "missing file": (unlink("golden.npz"), "golden.npz is missing"),
    "no manifest": (unlink("manifest.json"), "not an artifact: no manifest.json"),
    "not JSON": (text(b"{"), "not a manifest"),
    "not an object": (text(b"[]"), "not a manifest"),
    "not text": (text(b"\xff\xfe"), "not a manifest"),
    "nested past reason": (text(b"[" * 100_000), "not a manifest"),
    "schema of tomorrow": (edit("schema", 2), "schema 2, this Redline reads 1"),
    "no schema": (text(b'{"name": "x"}'), "schema None"),
    "unknown key": (edit("autotune", True), r"unknown keys \['autotune'\]"),
    "unknown proof": (edit("proof", "surely"), "proof 'surely' is not one of held, broken, unproven"),
    "unknown tensor key": (edit("inputs", [{"name": "x", "kind": 1}]), "not a manifest"),
    "bad tensor": (edit("inputs", [{"name": "x", "dtype": "int64", "shape": [2]}]), "must name its batch axis first"),
    "absolute path": (list_file("/etc/hostname"), "'/etc/hostname' leads outside the artifact"),
    "parent folder": (list_file("model/../../secret"), r"'model/../../secret' leads outside"),
    "backslash": (list_file("model\\x"), "leads outside the artifact"),
    "NUL in a name": (list_file("a\0b"), "a.*b"),
    "model outside": (edit("model", "../model.onnx"), r"\.\./model.onnx is not among the hashed files"),
    "link that leads out": (link_out, "'model/model.onnx' is a link that leads outside"),
    "model not hashed": (edit("model", "model/other.onnx"), "model/other.onnx is not among the hashed files"),
    "golden not hashed": (edit("files", {}), "golden.npz is not among the hashed files"),
    "unknown ISA": (edit("isa", "avx1024"), "judged on avx1024"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_with_its_reason(damage: str, tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    change, message = DAMAGES[damage]
    change(path)
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.load(path)
    assert caught.value.exit_code == 2


def test_inspect_says_in_one_line_what_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path / "a")
    assert main(["inspect", str(path)]) == 0
    assert "tiny" in capsys.readouterr().out
    flip(path)
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert said.err.count("\n") == 1
    assert "model/model.onnx was changed" in said.err
    assert main(["inspect", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize(
    ("judged", "here", "runs"),
    [
        ("portable", "portable", True),
        ("avx2", "avx512_vnni", True),
        ("avx512_vnni", "avx512_vnni", True),
        ("avx512_vnni", "avx512", False),
        ("avx512", "avx2", False),
        ("avx2", "portable", False),
    ],
)
def test_a_weaker_instruction_set_is_refused(judged: str, here: str, runs: bool, tmp_path: Path) -> None:
    path = make(tmp_path / "a", isa=judged)
    if runs:
        assert artifact.load(path, here=here).manifest.isa == judged
        return
    with pytest.raises(ArtifactError, match=f"judged on {judged}, this CPU has {here}.*redline optimize"):
        artifact.load(path, here=here)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(key=st.sampled_from([*FIELDS, "files", "isa", "schema", "engine_options", "metric"]), value=_JSON)
def test_any_value_in_a_manifest_is_read_or_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if not path.exists():
        make(path)
        (path / "manifest.json").rename(tmp_path / "good.json")
    table = json.loads((tmp_path / "good.json").read_text()) | {key: value}
    (path / "manifest.json").write_text(json.dumps(table))
    try:
        found = artifact.load(path)
    except ArtifactError:
        return
    assert found.model == path / "model" / "model.onnx"
    assert len(found.golden()) == 2


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    found = artifact.load(make(tmp_path / "deep" / "er" / "a"))
    for name, value in FIELDS.items():
        assert getattr(found.manifest, name) == value
    assert set(found.manifest.files) >= {"golden.npz", "model/model.onnx"}
    assert found.evidence("leaderboard") is None
    for (inputs, answers, source), case in zip(CASES, found.golden(), strict=True):
        np.testing.assert_equal(case, (inputs, answers, source))
    assert (found.path.stat().st_mode & 0o777) == 0o755
    assert [p.name for p in found.path.parent.iterdir()] == ["a"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="halfway"), artifact.writing(tmp_path / "a") as folder:
        (folder / "model").mkdir()
        raise RuntimeError("halfway")
    assert not list(tmp_path.iterdir())


def test_an_existing_artifact_is_never_edited(tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    before = {p: p.stat() for p in path.rglob("*")}
    with pytest.raises(UsageError, match="exists already; artifacts are never edited"), artifact.writing(path):
        pytest.fail("the block ran")
    assert {p: p.stat() for p in path.rglob("*")} == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["under a file", "a file", "a dangling link", "no such mount"])
def test_a_place_that_can_not_be_written_is_refused_before_the_work(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    places = {"under a file": file / "a", "a file": file, "a dangling link": link, "no such mount": Path("/proc/x/a")}
    with pytest.raises(UsageError, match=r"can't write to|exists already"), artifact.writing(places[kind]):
        pytest.fail("the block ran")
    assert file.read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert artifact.load(make(tmp_path / "a")).manifest.name == "tiny"


def pickled(path: Path) -> None:
    np.savez(path, **{"0/in/x": np.array([{}], dtype=object)})


def not_a_case(path: Path) -> None:
    np.savez(path, x=np.zeros(3))


def not_a_zip(path: Path) -> None:
    path.write_bytes(b"not a zip")


def truncated(path: Path) -> None:
    np.savez(path, **{"0/in/x": np.zeros(3)})
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("0/in/y.npy", b"\x93NUMPY")


@pytest.mark.parametrize("write", [pickled, not_a_case, truncated, not_a_zip])
def test_golden_requests_that_are_not_plain_arrays_are_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = make(tmp_path / "a")
    (path / "golden.npz").unlink()
    write(path / "golden.npz")
    files = copy.copy(artifact.parse_manifest((path / "manifest.json").read_bytes(), "m").files)
    edit("files", files | {"golden.npz": artifact.file_sha256(path / "golden.npz")})(path)
    with pytest.raises(ArtifactError, match=r"golden\.npz"):
        artifact.load(path).golden()
