"""The house itself: rooms, links, what loads when, public names, errors."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import redline
from redline import errors, hooks, machine

ROOT = Path(__file__).parents[1]
ROOMS = ("optimize", "runtimes", "kernels", "model_repo_templates", "bench")
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "openvino", "kserve", "matplotlib", "tritonclient", "locust")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_a_relative_link(room: str) -> None:
    link = ROOT / "src" / "redline" / room
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / room  # relative: a clone may lie anywhere
    assert link.resolve() == ROOT / room
    assert (ROOT / room).is_dir()


def test_kernels_is_no_package() -> None:
    """With an __init__.py, any run from the root would shadow Hugging Face's `kernels`, hence break transformers."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_runtimes_never_import_optimize() -> None:
    wrong = []
    for path in (ROOT / "runtimes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{a.name}" for a in node.names]
            wrong += [f"{path.name}: {n}" for n in names if n.startswith("redline.optimize")]
    assert not wrong


@pytest.mark.parametrize(
    "road",
    ["import redline", "main([])"]
    + [f"main([{c!r}, '--help'])" for c in ("optimize", "inspect", "serve", "bench", "deploy")],
)
def test_nothing_heavy_loads_before_it_is_needed(road: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "try:\n"
        "    from redline.cli import main\n"
        f"    {road}\n"
        "except SystemExit: pass\n"
        "print('LOADED', *sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded = run.stdout.rpartition("LOADED")[2].split()
    assert "redline" in loaded
    assert not set(HEAVY) & set(loaded)


def test_public_names() -> None:
    assert redline.__all__ == ["SLA", "Gate", "Job", "Recipe", "Tensor", "Verdict"]
    assert sorted(redline.__all__, key=lambda n: (not n.isupper(), n)) == redline.__all__
    assert [getattr(redline, name).__name__ for name in redline.__all__] == redline.__all__
    with pytest.raises(AttributeError, match="no attribute 'Artifact'"):
        _ = redline.Artifact  # type: ignore[attr-defined]


def test_every_error_has_its_exit_code() -> None:
    def tree(cls: type[errors.RedlineError]) -> dict[str, int]:
        found = {cls.__name__: cls.exit_code}
        for sub in cls.__subclasses__():
            if sub.__module__ == errors.__name__:
                found |= tree(sub)
        return found

    codes = tree(errors.RedlineError)
    assert codes == {
        "RedlineError": 1,
        "UsageError": 2,
        "JobError": 2,
        "GraphError": 2,
        "ArtifactError": 2,
        "RequestError": 2,
        "BrokenError": 1,
        "MissingError": 3,
        "MeasurementError": 4,
    }
    assert all(name in (errors.__doc__ or "") for name in codes)
    assert str(errors.missing_extra("serve", "this")) == "this needs `pip install 'redline[serve]'`"


@pytest.mark.parametrize("room", ROOMS)
def test_ruff_bans_the_bare_room(room: str) -> None:
    def check(code: str) -> subprocess.CompletedProcess[str]:
        ruff = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "tests/x.py", "-"]
        return subprocess.run(ruff, input=code, capture_output=True, text=True, cwd=ROOT, check=False)

    for banned in (f"import {room}\n", f"from {room} import x\n"):
        assert f"import redline.{room}" in check(banned).stdout
    assert check(f"import redline.{room}\n").returncode == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "wanted module:function, got 'json'"),
        ("json:", "wanted module:function"),
        (":dumps", "wanted module:function"),
        ("no_such_module:f", "can't find 'no_such_module:f'.*PYTHONPATH"),
        ("json:no_such", "can't find 'json:no_such'"),
        ("json:__name__", "'json:__name__' is not callable"),
    ],
)
def test_a_hook_that_can_not_be_found(name: str, message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        hooks.resolve(name)


def test_a_hook_is_found() -> None:
    assert hooks.resolve("json:JSONDecoder.decode") is json.JSONDecoder.decode


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        ("fpu sse4_2", "portable"),
        ("avx2", "portable"),  # without fma
        ("avx2 fma", "avx2"),
        ("avx2 fma avx512f", "avx2"),
        ("avx2 fma avx512f avx512bw avx512vl", "avx512"),
        ("avx2 fma avx512f avx512bw avx512vl avx512_vnni", "avx512_vnni"),
        ("avx2 fma avx512f avx512bw avx512vl avx512_vnni avx512_bf16 amx_tile", "avx512_vnni_bf16"),
    ],
)
def test_the_instruction_set_is_the_strongest_whole_one(flags: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda key: flags)
    assert machine.isa.__wrapped__() == isa


def test_a_checkout_without_links_says_so(tmp_path: Path) -> None:
    copy = tmp_path / "redline"
    copy.mkdir()
    for path in (ROOT / "src" / "redline").glob("*.py"):
        shutil.copy(path, copy)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", "import redline"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("ImportError: redline: src/redline has no room links")
    assert "core.symlinks true" in run.stderr
