"""Open-loop load tests with a verdict: `measure` one rate, or find the `highest_rate` that holds."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redline.bench.measuring import Load, Subject, highest_rate, measure, measure_pair
    from redline.bench.results import Report, SearchReport
    from redline.bench.serving import serve_artifact, served, split_cores
    from redline.bench.stats import quantile_ms, ratio_interval

_HOME = {
    "Load": "measuring",
    "Report": "results",
    "SearchReport": "results",
    "Subject": "measuring",
    "highest_rate": "measuring",
    "measure": "measuring",
    "measure_pair": "measuring",
    "quantile_ms": "stats",
    "ratio_interval": "stats",
    "serve_artifact": "serving",
    "served": "serving",
    "split_cores": "serving",
}
__all__ = [
    "Load",
    "Report",
    "SearchReport",
    "Subject",
    "highest_rate",
    "measure",
    "measure_pair",
    "quantile_ms",
    "ratio_interval",
    "serve_artifact",
    "served",
    "split_cores",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
