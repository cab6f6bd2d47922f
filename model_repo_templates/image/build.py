"""Build the predictor image without Docker or a network inside the build: base, wheelhouse, lock, image.

    python -m redline.model_repo_templates.image.build

Needs root, buildah and mmdebstrap. The image lies in buildah's store as localhost/redline:VERSION.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from redline.errors import MissingError, RedlineError, UsageError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
IMAGE = f"localhost/redline:{version('redline')}"
EXTRAS = "serve,openvino,native"
TOOLS = ("buildah", "runc", "mmdebstrap")
_BASE = "localhost/redline-base:bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates,libgomp1,libstdc++6"
_EPOCH = "1700000000"  # every file's date: what is the same gets the same digest
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
# Whatever the building machine left in it: where its packages come from, what it is called.
_CLEAN = 'rm -rf "$1/etc/apt/sources.list"* "$1/var/log/"* && : >"$1/etc/hostname" && : >"$1/etc/resolv.conf"'
_SCRATCH = (".*", "out", "build", "dist", "*.egg-info", "__pycache__")


def ensure_tools() -> None:
    """Install what is missing where that is one line; else say the line.

    Raises:
        MissingError: this machine can't, and what would help.
    """
    if os.geteuid() != 0:
        raise MissingError("building and running the image needs root (mounts, chroot, runc): run `make image` as root")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    line = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    if missing and shutil.which("apt-get"):
        print(f"installing {', '.join(missing)}: {' '.join(line)}", flush=True)
        for command in (["apt-get", "update"], line):
            subprocess.run(
                command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, check=False
            )
    if still := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise MissingError(f"`make image` needs {', '.join(still)}: `{' '.join(line)}` (Debian, Ubuntu)")


def call(*command: str, cwd: Path | None = None) -> str:
    """Its output; raises with the end of what it said."""
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"SOURCE_DATE_EPOCH": _EPOCH}, check=False
    )
    if run.returncode:
        tail = "\n".join((run.stderr + run.stdout).splitlines()[-15:])
        raise RedlineError(f"{' '.join(command[:3])} … ended with {run.returncode}:\n{tail}")
    return run.stdout.strip()


def image_id(name: str) -> str:
    """Empty if there is none."""
    return call("buildah", "images", "--quiet", "--no-trunc", "--filter", f"reference={name}").partition("\n")[0]


def base() -> str:
    """A minimal Debian with Python, made once by mmdebstrap; its image id."""
    if found := image_id(_BASE):
        return found
    with tempfile.TemporaryDirectory() as scratch:
        tar = f"{scratch}/base.tar"
        sources = [str(p) for p in _SOURCES if p.exists()][:1]
        options = ["--variant=essential", f"--include={_PACKAGES}", f"--customize-hook={_CLEAN}"]
        call("mmdebstrap", *options, "bookworm", tar, *sources)
        container = call("buildah", "from", "scratch")
        try:
            call("buildah", "add", "--quiet", container, tar, "/")
            call("buildah", "commit", "--quiet", "--timestamp", _EPOCH, container, _BASE)
        finally:
            call("buildah", "rm", container)
    return image_id(_BASE)


def copy_source(target: Path) -> None:
    """The checkout without what was built in it: setuptools would take stale files from its build/."""
    shutil.copytree(ROOT, target, symlinks=True, ignore=shutil.ignore_patterns(*_SCRATCH))


def wheelhouse(context: Path) -> list[Path]:
    """Redline's wheel and all it needs, as pinned; requirements.lock has their hashes."""
    source, wheels = context / "source", context / "wheels"
    copy_source(source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    call(*pip, "--wheel-dir", str(wheels), "--constraint", str(ROOT / "constraints.txt"), f"{source}[{EXTRAS}]")
    shutil.rmtree(source)
    found = sorted(wheels.glob("*.whl"))
    (context / "requirements.lock").write_text("".join(pin(wheel) for wheel in found))
    return found


def pin(wheel: Path) -> str:
    name, number, *_ = wheel.name.split("-")
    with wheel.open("rb") as f:
        return f"{name}=={number} --hash=sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}\n"


def build() -> str:
    """The image's digest."""
    with tempfile.TemporaryDirectory(prefix="redline-image-") as scratch:
        context = Path(scratch)
        started = time.monotonic()
        say(started, f"base       {_BASE}@{base()[:19]}")
        wheels = wheelhouse(context)
        size = sum(w.stat().st_size for w in wheels) / 2**20
        say(started, f"wheelhouse {len(wheels)} wheels, {size:.0f} MiB, locked by sha256")
        options = ["--isolation", "chroot", "--timestamp", _EPOCH, "--build-arg", f"BASE={_BASE}"]
        options += ["--pull-never", "--format", "oci", "--file", str(HERE / "Containerfile"), "--tag", IMAGE]
        before = image_id(IMAGE)
        call("unshare", "--net", "buildah", "bud", *options, ".", cwd=context)  # offline, whatever a step tries
        if before not in ("", image_id(IMAGE)):
            call("buildah", "rmi", before)  # a gigabyte that nobody can name any more
        found = json.loads(call("buildah", "inspect", "--type", "image", IMAGE))
        say(started, f"image      {IMAGE}@{found['FromImageDigest']}")
        return str(found["FromImageDigest"])


def say(started: float, line: str) -> None:
    print(f"{time.monotonic() - started:5.1f} s  {line}", flush=True)


def main(argv: Sequence[str] = ()) -> int:
    try:
        if argv:
            raise UsageError(f"takes no arguments, got {' '.join(argv)}")
        if not (ROOT / "pyproject.toml").exists():
            raise UsageError("the image is built from a checkout of Redline, not from an installed one")
        ensure_tools()
        build()
    except RedlineError as e:
        print(f"image: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
