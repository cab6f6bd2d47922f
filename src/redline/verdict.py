"""The one way of saying yes or no."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """ok and why; truthy when ok. A "no" always carries its reason."""

    ok: bool
    why: str

    def __bool__(self) -> bool:
        return self.ok
