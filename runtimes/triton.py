"""Triton without a container: find it or install it by pinned hash, and supervise it as a child that leaves nothing."""

import asyncio
import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from redline import machine
from redline.errors import MissingError

_WHEEL = "nvidia-pytriton==0.7.0"  # carries NVIDIA's tritonserver 2.51.0 and its Python backend
_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
_TAIL = 4000  # characters of its log shown when it fails
_GUARD = Path(__file__).with_name("triton_guard.py")
_HOW = "run in NVIDIA's Triton image (NGC), or on x86-64 Linux with glibc 2.35; or use --engine embedded"


@dataclass(frozen=True, slots=True)
class Install:
    server: Path
    backends: Path
    caches: Path
    libraries: tuple[Path, ...]  # for LD_LIBRARY_PATH


def find() -> Install:
    """tritonserver on PATH, NVIDIA's image, or the wheel in the cache (installed if need be).

    Raises:
        MissingError: none of them works here, and how to get it.
    """
    on_path = shutil.which("tritonserver")
    for server in (Path(on_path) if on_path else None, Path("/opt/tritonserver/bin/tritonserver")):
        if server and server.exists():
            root = server.resolve().parent.parent
            return Install(server, root / "backends", root / "caches", (root / "lib",))
    folder = machine.cache_folder() / "triton" / _SHA256[:16]
    if not folder.is_dir():
        _install(folder)
    return Install(
        folder / "tritonserver" / "bin" / "tritonserver",
        folder / "backends",
        folder / "tritonserver" / "caches",
        (folder / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))),
    )


def _install(folder: Path) -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingError(f"Triton: no tritonserver on PATH, and {_WHEEL} is for x86-64 Linux; {_HOW}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".install.", dir=folder.parent) as scratch:
        whole = Path(scratch) / "whole"
        with zipfile.ZipFile(_download(Path(scratch))) as wheel:
            for member in wheel.namelist():
                if member.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/")) and "external" not in member:
                    wheel.extract(member, whole)
        (whole / "pytriton" / "tritonserver").rename(whole / "tritonserver")
        _lay_out(whole)
        try:
            whole.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster, with the same bytes
                raise


def _lay_out(whole: Path) -> None:
    """The stub belongs beside the Python backend, and zip files carry no run bits."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = whole / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise MissingError(f"Triton: {_WHEEL} has no stub for Python {version}; {_HOW}")
    python = whole / "backends" / "python"
    shutil.copytree(whole / "tritonserver" / "backends" / "python", python)
    shutil.copy(stub, python)
    shutil.rmtree(stub.parent.parent)
    for program in (python / stub.name, whole / "tritonserver" / "bin" / "tritonserver"):
        program.chmod(0o755)


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, _WHEEL, "-d", str(scratch)], capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise MissingError(f"Triton: `pip download {_WHEEL}` failed: {done.stderr.strip()[-500:]}; {_HOW}")
    with wheels[0].open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != _SHA256:
        raise MissingError(f"Triton: {wheels[0].name} has sha256 {digest}, wanted {_SHA256}: not installed")
    return wheels[0]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Triton:
    """A running server; its guard process ends it when this process ends, however that happens."""

    def __init__(self, install: Install, folder: Path) -> None:
        """folder: holds `repository/`; the guard removes it at the end."""
        self.port = free_port()
        self._log = folder / "triton.log"
        self._command = [
            str(install.server),
            f"--model-repository={folder / 'repository'}",
            f"--backend-directory={install.backends}",
            f"--cache-directory={install.caches}",
            f"--backend-config=python,shm-region-prefix-name={folder.name}-",
            "--http-address=127.0.0.1",
            f"--http-port={self.port}",
            "--allow-grpc=false",
            "--allow-metrics=false",
            "--exit-timeout-secs=5",
        ]
        libraries = ":".join([*map(str, install.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        self._environment = os.environ | {"LD_LIBRARY_PATH": libraries}
        self._folder = folder

    async def start(self) -> None:
        with self._log.open("wb") as log:
            self._guard = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                str(_GUARD),
                f"{self._folder.name}-",
                str(self._folder),
                *self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._read = self._log.open(errors="replace")  # still readable once the guard has removed the folder

    @property
    def exit_code(self) -> int | None:
        return self._guard.returncode

    async def ended(self) -> int:
        return await self._guard.wait()

    def tail(self) -> str:
        """The end of what it had to say, without its greetings and tables."""
        self._read.seek(0)
        return "".join(line for line in self._read if line[0] not in "I|+\n")[-_TAIL:]

    def kill(self) -> None:
        """For one that is past asking; ended() then returns."""
        if self._guard.stdin:
            self._guard.stdin.write(b"k")

    async def stop(self) -> None:
        if self._guard.stdin:
            self._guard.stdin.close()
        await self._guard.wait()
        self._read.close()
