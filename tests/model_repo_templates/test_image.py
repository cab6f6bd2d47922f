"""The image without building it: its Containerfiles, its wheel, its cage. `make image` builds and runs it for real."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from containerfile import containerfile_faults

from redline.errors import BrokenError, MissingError
from redline.model_repo_templates.image import build, rehearse

ROOT = Path(__file__).parents[2]
CPU, GPU = (build.HERE / name for name in ("Containerfile", "Containerfile.gpu"))


@pytest.mark.parametrize("file", [CPU, GPU], ids=lambda f: f.name)
def test_a_careful_image(file: Path) -> None:
    assert list(containerfile_faults(file.read_text())) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 10001:10001\n", "", "USER"),
        ("USER 10001:10001", "USER 0:0", "root"),
        ("USER 10001:10001", "USER redline", "numbers"),
        ("3.11-slim-bookworm", "latest", "latest"),
        (":3.11-slim-bookworm", "", "wanted a tag"),
        ("COPY --from", "ADD https://example.test/x.tar /x\nCOPY --from", "ADD"),
        ('ENTRYPOINT ["redline"]', "ENTRYPOINT redline", "SIGTERM"),
        ("--require-hashes ", "", "--require-hashes"),
        ("EXPOSE", "HEALTHCHECK CMD true\nEXPOSE", "HEALTHCHECK"),
        ("FROM ${BASE}\nCOPY", "FROM ${BASE}\nRUN wget x\nCOPY", "pinned"),
    ],
)
def test_a_careless_one_is_noticed(old: str, new: str, fault: str) -> None:
    assert old in CPU.read_text()
    assert any(fault in found for found in containerfile_faults(CPU.read_text().replace(old, new)))


def test_image_manifest_and_rehearsal_agree() -> None:
    """Who runs, which ports, how it is started: said in three places, once each way of reading it."""
    runtime = (build.HERE.parent / "kserve" / "servingruntime.yaml.j2").read_text()
    rollout = (build.HERE.parent / "rollout.py").read_text()
    for text in (CPU.read_text(), GPU.read_text()):
        assert re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)[-1] == (str(rehearse.UID),) * 2
        (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
        assert f'"args": {command}' in rollout
        (ports,) = re.findall(r"^EXPOSE (.*)$", text, re.MULTILINE)
        assert set(re.findall(r"containerPort: (\d+)", runtime)) <= set(ports.split())
    assert set(re.findall(r"runAs(?:User|Group): (\d+)", runtime)) == {str(rehearse.UID)}


def test_the_cage_is_the_pod_s(tmp_path: Path) -> None:
    image = {"User": "10001:10001", "Entrypoint": ["redline"], "Cmd": ["serve", "/mnt/models"], "Env": ["HOME=/tmp"]}
    config = rehearse.bundle_config(image, "/rootfs", tmp_path, [1, 2])
    assert config["process"]["args"] == ["redline", "serve", "/mnt/models", "--http-port", "1", "--grpc-port", "2"]
    assert config["root"] == {"path": "/rootfs", "readonly": True}
    assert config["process"]["noNewPrivileges"] and not any(config["process"]["capabilities"].values())
    writable = {m["destination"] for m in config["mounts"] if "ro" not in m.get("options", [])}
    assert writable == {"/proc", "/dev", "/dev/shm", "/tmp"}  # noqa: S108
    for user in ("", "0:0", "redline"):
        with pytest.raises(BrokenError, match="wanted 10001:10001"):
            rehearse.bundle_config(image | {"User": user}, "/rootfs", tmp_path, [1, 2])


def test_the_wheel_has_all_that_serving_reads(tmp_path: Path) -> None:
    """Rooms are links: a wheel without their files would install and then fail at the first request."""
    context = tmp_path / "context"
    build.copy_source(context)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(context)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    rooms = ("runtimes", "model_repo_templates", "kernels")
    wanted = [p for room in rooms for p in (ROOT / room).rglob("*") if p.suffix in (".py", ".j2", ".pbtxt")]
    assert len(wanted) > 30
    assert not [p for p in wanted if f"redline/{p.relative_to(ROOT).as_posix()}" not in inside]


def test_the_lock_pins_by_hash(tmp_path: Path) -> None:
    wheel = tmp_path / "some_name-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert build.pin(wheel) == f"some_name==1.2.3 --hash=sha256:{digest}\n"


def test_a_machine_without_the_tools_hears_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "geteuid", lambda: 0)
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    with pytest.raises(MissingError, match=r"`apt-get install --yes .*buildah runc mmdebstrap`"):
        build.ensure_tools()
    monkeypatch.setattr(build.os, "geteuid", lambda: 1000)
    with pytest.raises(MissingError, match="as root"):
        build.ensure_tools()


def test_rehearse_without_an_artifact(capsys: pytest.CaptureFixture[str]) -> None:
    assert rehearse.main([]) == 2
    assert "wanted one ARTIFACT" in capsys.readouterr().err
