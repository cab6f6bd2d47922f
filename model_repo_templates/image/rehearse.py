"""Run the built image the way a cluster would, without one: runc, uid 10001, read-only root, no capabilities.

    python -m redline.model_repo_templates.image.rehearse ARTIFACT

Golden replay gates readiness, a short load test follows, SIGTERM must drain and leave nothing behind.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redline import artifact
from redline.artifact import Artifact
from redline.bench.measuring import Load, Subject, measure
from redline.bench.questions import golden_questions
from redline.bench.results import Report
from redline.bench.serving import free_ports, split_cores
from redline.errors import BrokenError, MissingError, RedlineError, UsageError
from redline.model_repo_templates.image.build import IMAGE, call, ensure_tools, say

UID = 10001
_READY_S, _STOP_S = 120.0, 30.0  # the second is the pod's terminationGracePeriodSeconds
_BENCH_S = 8.0
_DEVICES = ["nosuid", "strictatime", "mode=755", "size=65536k"]
_LOCKED = ["nosuid", "noexec", "nodev", "ro"]
# What a process inside can find out about its own cage.
_PROBE = """
import errno, json, os
def write(path):
    try:
        open(path, "w").close()
    except OSError as e:
        return errno.errorcode[e.errno]
    os.unlink(path)
    return "written"
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "no new privileges": int(status["NoNewPrivs"]),
    "/x": write("/x"), "/opt/redline/x": write("/opt/redline/x"), "/mnt/models/x": write("/mnt/models/x"),
    "/tmp/x": write("/tmp/x"),
}))
"""
_CAGED = {"uid": UID, "gid": UID, "capabilities": 0, "no new privileges": 1, "/x": "EROFS", "/opt/redline/x": "EROFS",
          "/mnt/models/x": "EROFS", "/tmp/x": "written"}  # fmt: skip  # noqa: S108


def bundle_config(image: dict[str, Any], root: str, artifact_folder: Path, ports: list[int]) -> dict[str, Any]:
    """The image's own entry point, user and environment under the limits that the ServingRuntime sets.

    The host's network, so that the load generator reaches it: a cluster gives a pod its own.
    """
    user = str(image["User"])
    if user != f"{UID}:{UID}":
        raise BrokenError(f"the image runs as {user or 'root'!r}, wanted {UID}:{UID}")
    options = ["--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
    none: dict[str, list[str]] = {kind: [] for kind in ("bounding", "effective", "permitted", "ambient")}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": UID, "gid": UID},
            "args": [*image["Entrypoint"], *image["Cmd"], *options],
            "env": image["Env"],
            "cwd": "/",
            "capabilities": none,
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": _DEVICES},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},  # noqa: S108
            {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", *_LOCKED]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"]},  # noqa: S108
            {"destination": "/mnt/models", "type": "none", "source": str(artifact_folder.resolve()),
             "options": ["bind", "ro", "nosuid", "nodev"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }  # fmt: skip


@contextmanager
def unpacked() -> Iterator[tuple[dict[str, Any], str]]:
    """(the image's configuration, its mounted file system) until the block ends."""
    try:
        container = call("buildah", "from", "--pull-never", IMAGE)
    except RedlineError as e:
        raise MissingError(f"no image {IMAGE} here; build it first (`make image`): {e}") from e
    try:
        found = json.loads(call("buildah", "inspect", "--type", "image", IMAGE))
        yield found["OCIv1"]["config"], call("buildah", "mount", container)
    finally:
        call("buildah", "rm", container)  # unmounts, too


def on_cores(cores: set[int]) -> list[str]:
    return ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))]


class Container:
    """`redline serve` in its cage, on cores of its own."""

    def __init__(self, bundle: Path, name: str, cores: set[int]) -> None:
        self.name, self.log = name, bundle / "log"
        command = [*on_cores(cores), "runc", "run", "--bundle", str(bundle), name]
        with self.log.open("w") as out:
            self._runc = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def await_probe(self, url: str) -> None:
        """Until it answers 200."""
        deadline, answer = time.monotonic() + _READY_S, "no answer"
        while time.monotonic() < deadline and self._runc.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 # our own http://127.0.0.1
                return
            except urllib.error.HTTPError as e:
                answer = e.read(1000).decode(errors="replace")
            except OSError:
                pass
            time.sleep(0.1)
        raise BrokenError(f"not ready ({answer}):\n{self.log.read_text()[-3000:]}")

    def look_inside(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(call("runc", "exec", self.name, "python3", "-c", _PROBE))
        return found

    def memory_mib(self) -> float:
        """Resident, at its highest."""
        pid = json.loads(call("runc", "state", self.name))["pid"]
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """SIGTERM, as a cluster would; the exit code."""
        call("runc", "kill", self.name, "TERM")
        try:
            return self._runc.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise BrokenError(f"still running {_STOP_S:g} s after SIGTERM:\n{self.log.read_text()[-3000:]}") from None

    def remove(self) -> None:
        if self._runc.poll() is None:
            with suppress(RedlineError):
                call("runc", "delete", "--force", self.name)
            self._runc.wait(_STOP_S)


def rehearse(folder: Path) -> int:
    """The load test's exit code.

    Raises:
        BrokenError: the cage leaks, it does not get ready, or it does not stop.
    """
    started, name = time.monotonic(), f"redline-{os.getpid()}"
    found, ports = artifact.load(folder), free_ports(2)
    model, url = found.manifest.name, f"http://127.0.0.1:{ports[0]}"
    cores, generator, placement = split_cores()
    with tempfile.TemporaryDirectory(prefix="redline-bundle-") as scratch, unpacked() as (image, root):
        bundle = Path(scratch)
        (bundle / "config.json").write_text(json.dumps(bundle_config(image, root, folder, ports)))
        size = sum(p.lstat().st_size for p in Path(root).rglob("*") if p.is_file() and not p.is_symlink())
        say(started, f"unpacked   {size / 2**20:.0f} MiB")
        container = Container(bundle, name, cores)
        try:
            for probe in ("live", "ready"):  # as the ServingRuntime's probes ask
                container.await_probe(f"{url}/v2/health/{probe}")
            say(started, f"ready      {model}: golden requests replayed inside; {placement}")
            if (cage := container.look_inside()) != _CAGED:
                raise BrokenError(f"wanted a cage of {_CAGED}, got {cage}")
            say(started, f"caged      {', '.join(f'{k} {v}' for k, v in cage.items())}")
            report = _bench(found, url, Load(cpus=generator, server_cpus=cores - generator, placement=placement))
            say(started, f"{report.status:10} {report.why}")
            say(started, f"memory     {container.memory_mib():.0f} MiB at its highest")
            if code := container.stop():
                raise BrokenError(f"exit code {code} after SIGTERM, wanted 0:\n{container.log.read_text()[-3000:]}")
            say(started, "stopped    SIGTERM, exit code 0")
        finally:
            container.remove()
    _nothing_left(name, ports, root)
    say(started, "left       no container, no mount, no port")
    return report.exit_code


def _bench(found: Artifact, url: str, load: Load) -> Report:
    """The SLA's own question, shortly; every golden answer is compared before the first figure."""
    asked, sla = golden_questions(found), found.manifest.sla
    subject = Subject(url, asked.model, asked.requests, asked.expected, asked.tolerance)
    rate, p99_ms = float(sla.get("rate_rps") or 100), float(sla["p99_ms"])
    return measure(subject, rate_rps=rate, duration_s=_BENCH_S, p99_ms=p99_ms, load=load)


def _nothing_left(name: str, ports: list[int], root: str) -> None:
    listening = Path("/proc/net/tcp").read_text()
    left = [f"port {p}" for p in ports if f":{p:04X} 00000000:0000 0A" in listening]
    if name in call("runc", "list", "--quiet").split():
        left.append(f"container {name}")
    if root in Path("/proc/mounts").read_text():
        left.append(f"mount {root}")
    if left:
        raise BrokenError(f"left behind: {', '.join(left)}")


def main(argv: Sequence[str]) -> int:
    try:
        if len(argv) != 1:
            raise UsageError(f"wanted one ARTIFACT, got {list(argv)}")
        ensure_tools()
        return rehearse(Path(argv[0]))
    except RedlineError as e:
        print(f"image: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
