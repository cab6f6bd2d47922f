"""The job: what the user hands over."""

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import JobError, RedlineError, RequestError
from redline.tensors import Arrays, Tensor, check_request
from redline.units import duration_ns

if TYPE_CHECKING:
    from torch import nn

    from redline.optimize.llm_job import LanguageJob
    from redline.optimize.recipe import Recipe

Predict = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What accuracy must survive, on the job's own metric (higher is better), decided on `validation`."""

    max_drop: float  # below the source model's figure
    floor: float = -math.inf  # absolute

    def __post_init__(self) -> None:
        if not math.isfinite(self.max_drop) or math.isnan(self.floor):
            raise JobError(f"gate: max_drop and floor must be numbers, got {self.max_drop} and {self.floor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SLA:
    """The red line: this quantile of latency, at this rate of requests of this size."""

    p99: str = "50ms"
    rate: float = 250.0  # requests/s
    rows: int = 1  # in a request

    def __post_init__(self) -> None:
        if self.p99_ms <= 0 or not 0 < self.rate < math.inf or self.rows < 1:
            raise JobError(f"SLA: p99, rate and rows must be above zero, got {self.p99!r}, {self.rate}, {self.rows}")

    @property
    def p99_ms(self) -> float:
        return duration_ns(self.p99) / 1e6

    @property
    def max_rows(self) -> int:
        """The most that one request may hold."""
        return max(1024, 4 * self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    name: str
    model: "Callable[[], nn.Module]"  # a function at module level: the baseline is served by its name
    inputs: tuple[Tensor, ...]
    calibration: Callable[[], Arrays]  # real inputs; min-max quantization wants many rows (tens of thousands)
    evaluate: Callable[[Predict, str], float]  # (predict, "validation" | "test") → metric, higher is better
    gate: Gate
    sla: SLA
    outputs: tuple[str, ...] = ("score",)
    metric: str = "metric"
    finetune: "Callable[[nn.Module], None] | None" = None  # trains it on in place, a little; unlocks pruning and QAT
    requests: Callable[[int, int], list[Arrays]] | None = None  # (count, rows) → real requests; else calibration rows
    preprocess: str | None = None  # "module:function", run by the predictor
    postprocess: str | None = None
    recipes: "tuple[Recipe, ...]" = ()  # the expert's own

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name) or self.name.startswith("."):
            raise JobError(f"job name {self.name!r}: letters, digits, `-`, `_` and `.` only")
        names = [t.name for t in self.inputs]
        if not names or len(set(names) | set(self.outputs)) != len(names) + len(self.outputs):
            raise JobError(f"job {self.name}: inputs {names} and outputs {list(self.outputs)} need distinct names")
        for what in ("model", "calibration", "evaluate"):
            if not callable(getattr(self, what)):
                raise JobError(f"job {self.name}: {what} must be a function, got {type(getattr(self, what)).__name__}")

    @property
    def factory(self) -> str:
        """`model` as "module:function", as the process that serves the baseline finds it."""
        module, name = getattr(self.model, "__module__", ""), getattr(self.model, "__qualname__", "<")
        if "<" in name:
            raise JobError(
                f"job {self.name}: model must be a function at module level (not {name}), so it can be served"
            )
        return f"{module}:{name}"

    def call(self, what: str, *args: Any) -> Any:
        """What the job's own function gives.

        Raises:
            JobError: it raised; where.
        """
        try:
            return getattr(self, what)(*args)
        except RedlineError:
            raise
        except (Exception, SystemExit) as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            where = f"{Path(at.filename).name}:{at.lineno}"
            raise JobError(f"job {self.name}: {what} failed at {where}: {type(e).__name__}: {e}") from e

    def calibration_rows(self) -> Arrays:
        """The calibration inputs, checked against the declared inputs."""
        arrays = self.call("calibration")
        if not isinstance(arrays, Mapping) or not all(isinstance(a, np.ndarray) for a in arrays.values()):
            raise JobError(f"job {self.name}: calibration gave {type(arrays).__name__}, wanted {{input: NumPy array}}")
        if arrays.keys() != {t.name for t in self.inputs}:
            raise JobError(
                f"calibration gave {sorted(arrays)}, the job's inputs are {sorted(t.name for t in self.inputs)}"
            )
        for tensor in self.inputs:
            tensor.check(arrays[tensor.name])
        counts = {len(a) for a in arrays.values()}
        if len(counts) != 1 or counts == {0}:
            raise JobError(
                f"calibration: inputs have {sorted(counts)} rows, wanted one count above 0 (batch axis first?)"
            )
        return {t.name: np.ascontiguousarray(arrays[t.name]) for t in self.inputs}

    def real_requests(self, count: int, rows: int) -> list[Arrays]:
        """Real requests of exactly `rows` rows."""
        if self.requests is not None:
            found = self.call("requests", count, rows)
            if not isinstance(found, list):
                raise JobError(f"job {self.name}: requests({count}, {rows}) gave {type(found).__name__}, wanted a list")
            try:
                sizes = [check_request(self.inputs, request, rows) for request in found]
            except RequestError as e:
                raise JobError(f"job {self.name}: requests({count}, {rows}): {e}") from e
            if sizes != [rows] * count:
                raise JobError(f"job {self.name}: requests({count}, {rows}) gave requests of {sizes} rows")
            return found
        pool = self.calibration_rows()
        total = len(next(iter(pool.values())))
        picks = np.arange(count * rows).reshape(count, rows) % total
        return [{name: a[pick] for name, a in pool.items()} for pick in picks]

    def score(self, predict: Predict, split: str) -> float:
        """The metric on a split.

        Raises:
            JobError: the metric is not a finite number.
        """
        value = self.call("evaluate", predict, split)
        if not isinstance(value, int | float | np.floating) or not math.isfinite(value):
            raise JobError(f"job {self.name}: evaluate gave {value!r} on {split}, wanted a finite number")
        return float(value)


def load_job(path: Path) -> "Job | LanguageJob":
    """Import a Python file with `job = Job(...)`; its folder goes first on sys.path.

    Raises:
        JobError: no such file, it fails to import, or holds no Job.
    """
    if not path.is_file():
        raise JobError(f"no job at {path}; wanted a Python file with `job = Job(...)`")
    if path.suffix != ".py":
        raise JobError(f"{path}: wanted a Python file with `job = Job(...)`, see examples/recommender/job.py")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except JobError:
        raise
    except (Exception, SystemExit) as e:  # exit code 0 would say that all is well
        raise JobError(f"{path} fails to import: {type(e).__name__}: {e}") from e
    found: Any = getattr(module, "job", None)
    from redline.optimize.llm_job import LanguageJob

    if not isinstance(found, Job | LanguageJob):
        raise JobError(f"{path} has no `job = Job(...)`: found {type(found).__name__}")
    return found
