"""Runs Triton and outlives everybody: when the predictor or Triton goes, by whatever signal, nothing of it stays.

python triton_guard.py SHM_PREFIX FOLDER COMMAND... (standard library only). Its stdin is a pipe that the predictor
holds: its end asks Triton to stop, a byte in it kills a Triton that is past asking.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_STOP_S = 8.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(prefix: str, folder: str, *command: str) -> int:
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the pipe alone says when to stop

    def in_child() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=in_child)
    threading.Thread(target=_stop_when_told, args=(child,), daemon=True).start()
    code = child.wait()
    _kill_group(child.pid)
    with contextlib.suppress(ChildProcessError):
        while True:  # a subreaper buries Triton's stubs too
            os.waitpid(-1, 0)
    for left in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108
        left.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _stop_when_told(child: "subprocess.Popen[bytes]") -> None:
    if os.read(0, 1):
        _kill_group(child.pid)
        return
    child.terminate()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        _kill_group(child.pid)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
