"""report.html: one self-contained page."""

from typing import Any


def render(board: dict[str, Any], sla: dict[str, Any] | None) -> str:
    return ""
