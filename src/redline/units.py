"""Durations and sizes that carry their unit: `50ms`, `30s`, `512MiB`."""

import re

from redline.errors import UsageError

_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "min": 60_000_000_000, "h": 3_600_000_000_000}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def _parse(text: str, units: dict[str, int], what: str) -> int:
    match = _QUANTITY.fullmatch(text) if text.isascii() else None
    if match is None or match[2] not in units:
        raise UsageError(f"wanted a {what} with a unit ({', '.join(units)}), got {text!r}")
    return round(float(match[1]) * units[match[2]])


def duration_ns(text: str) -> int:
    """`50ms` → 50_000_000."""
    return _parse(text, _NS, "duration")


def size_bytes(text: str) -> int:
    """`512MiB` → 536_870_912."""
    return _parse(text, _BYTES, "size")


def format_ns(ns: float) -> str:
    """Three significant digits with the largest unit that keeps them ≥ 1."""
    for unit in ("s", "ms", "us"):
        if abs(ns) >= _NS[unit]:
            return f"{ns / _NS[unit]:.3g} {unit}"
    return f"{ns:.0f} ns"
