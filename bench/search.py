"""The highest rate that holds: bracket by doubling, bisect on a log scale, confirm with a longer run."""

from collections.abc import Callable
from dataclasses import dataclass

from redline.bench.verdict import HELD


@dataclass(frozen=True, slots=True)
class Trial:
    rate_rps: float
    status: str  # held | broken | invalid
    p99_ms: float
    why: str
    confirming: bool = False

    @property
    def held(self) -> bool:
        return self.status == HELD


@dataclass(frozen=True, slots=True)
class Found:
    """rate_rps: highest confirmed rate, or 0; limit: the lowest rate tried that did not hold, with its reason."""

    rate_rps: float
    limit: Trial | None
    trials: tuple[Trial, ...]  # in the order they ran


def highest(
    trial: Callable[[float], Trial],
    confirm: Callable[[float], Trial],
    *,
    start_rps: float,
    precision: float = 0.05,
    floor_rps: float = 1.0,
    ceiling_rps: float = 100_000.0,
    confirmations: int = 5,
) -> Found:
    """`trial` is short and may be lucky; only `confirm` makes a rate count, else it steps down and asks again."""
    trials: list[Trial] = []
    held, broken = 0.0, ceiling_rps * (1 + precision)
    rate = min(max(start_rps, floor_rps), ceiling_rps)
    while broken / max(held, floor_rps / 2) > 1 + precision:
        trials.append(trial(rate))
        if trials[-1].held:
            held = rate
            if rate >= ceiling_rps:
                break
            rate = min(2 * rate, ceiling_rps) if broken > ceiling_rps else (held * broken) ** 0.5
        else:
            broken = rate
            if held == 0 and rate <= floor_rps:
                break
            rate = (held * broken) ** 0.5 if held else max(rate / 2, floor_rps)
    for step in range(confirmations if held else 0):
        trials.append(confirm(held))
        if trials[-1].held:
            break
        held = max(
            held / (1 + max(precision, 0.05) * 2**step), floor_rps
        )  # 5, 10, 20 %: a lucky trial is soon behind us
    else:
        held = 0.0
    limits = sorted((t for t in trials if not t.held), key=lambda t: t.rate_rps)
    return Found(held, limits[0] if limits else None, tuple(trials))
