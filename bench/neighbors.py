"""Who else used the server's cores: a run that a neighbor disturbed proves nothing against the server."""

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Neighbors:
    """CPU time on `cores` that neither this process nor its descendants used. Reads /proc; without it, sees nobody.

    Pin the server and its generator apart, so that on the server's cores only the server is expected.
    """

    def __init__(self, cores: Iterable[int]) -> None:
        self._cores = {f"cpu{core}" for core in cores}
        self._start_s, self._busy_s, self._own_s = time.monotonic(), self._busy(), _descendants_s()

    def share(self) -> float:
        """Of the cores' time since the start, 0 to 1."""
        passed_s = (time.monotonic() - self._start_s) * len(self._cores)
        others_s = (self._busy() - self._busy_s) - (_descendants_s() - self._own_s)
        return max(others_s, 0.0) / passed_s if passed_s else 0.0

    def _busy(self) -> float:
        """Seconds of user, nice, system and stolen time."""
        try:
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        except OSError:
            return 0.0
        return _TICK_S * sum(sum(int(f[i]) for i in (1, 2, 3, 8)) for f in lines if f[0] in self._cores)


def _descendants_s() -> float:
    """CPU seconds that all living descendants of this process have used."""
    import psutil

    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
