"""Cached steps: every step's result lies in a folder named by the fingerprint of all that went into it.

A folder appears in one rename: a killed run leaves finished steps and nothing half-written, a second run takes seconds.
"""

import hashlib
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline import machine
from redline.artifact import file_sha256
from redline.errors import GraphError, JobError
from redline.optimize.job import Job
from redline.optimize.passes import apply, retrains, writes
from redline.optimize.passes.registry import built_with, code
from redline.optimize.recipe import Recipe
from redline.tensors import Arrays
from redline.verdict import Verdict

if TYPE_CHECKING:
    from torch import nn


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def arrays_sha256(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Cache:
    def __init__(self, root: Path, *, fresh: bool = False) -> None:
        self._root, self._fresh = root, fresh
        self._made: set[str] = set()
        self.hits = 0
        root.mkdir(parents=True, exist_ok=True)

    def step(self, key: dict[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that make(folder) filled for this key, now or in an earlier run."""
        name = _digest(key)[:32]
        folder = self._root / name
        if folder.is_dir() and (not self._fresh or name in self._made):
            self.hits += 1
            return folder
        self._made.add(name)
        scratch = Path(tempfile.mkdtemp(prefix=".making.", dir=self._root))
        (scratch / "model").mkdir()
        try:
            make(scratch)
            (scratch / "key.json").write_text(json.dumps(key, indent=2, sort_keys=True))
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder

    def value(
        self, key: dict[str, Any], compute: Callable[[], Any], keep: Callable[[Any], bool] = lambda value: True
    ) -> Any:
        """A JSON value, computed once per key; one that `keep` says no to is computed anew the next time."""
        folder = self.step(key, lambda out: _write_json(out / "value.json", compute()))
        value = json.loads((folder / "value.json").read_text())
        if not keep(value):
            shutil.rmtree(folder)
        return value


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


@dataclass(frozen=True)
class Source:
    """The source model and the real inputs it is judged on, loaded once."""

    job: Job
    job_file: Path

    @cached_property
    def module(self) -> "nn.Module":
        import torch

        module: Any = self.job.call("model")
        if not isinstance(module, torch.nn.Module):
            raise JobError(f"job {self.job.name}: model() gave {type(module).__name__}, wanted a torch.nn.Module")
        return module.eval()

    @cached_property
    def calibration(self) -> Arrays:
        return self.job.calibration_rows()

    @cached_property
    def sha256(self) -> str:
        """Weights, structure and the code of every module class that isn't PyTorch's own."""
        digest = hashlib.sha256(str(self.module).encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
        for cls in sorted({type(m) for m in self.module.modules()}, key=lambda c: c.__qualname__):
            if not cls.__module__.startswith("torch."):
                digest.update(inspect.getsource(cls).encode())
        return digest.hexdigest()

    @cached_property
    def inputs_sha256(self) -> str:
        return _digest([arrays_sha256(self.calibration), [asdict(t) for t in self.job.inputs], list(self.job.outputs)])

    @cached_property
    def evaluation_sha256(self) -> str:
        """The job file and every module of its folder that it imported: the code that defines the metric."""
        import sys

        folder = self.job_file.resolve().parent
        files = {self.job_file.resolve()}
        for module in list(sys.modules.values()):
            path = Path(getattr(module, "__file__", None) or "")  # relative in PyTorch's synthetic modules: no file
            if path.is_absolute() and path.resolve().is_relative_to(folder) and "site-packages" not in path.parts:
                files.add(path.resolve())
        return _digest(sorted(file_sha256(f) for f in files))


@dataclass(frozen=True, slots=True)
class Candidate:
    recipe: Recipe
    model: Path  # what the engine loads; all that lies in its folder goes into the artifact
    fingerprint: str
    notes: tuple[str, ...]  # what each pass said of itself


def build(recipe: Recipe, source: Source, cache: Cache) -> Candidate:
    """Apply a recipe's passes from left to right, each cached under all that it depends on."""
    before: Path | None = None
    key: dict[str, Any] = {
        "source": source.sha256,
        "inputs": source.inputs_sha256,
        "versions": machine.versions(),
        "code": machine.code_sha256("optimize/passes"),
    }
    notes = []
    for step in recipe.passes:
        if retrains(step):
            if source.job.finetune is None:
                raise GraphError(
                    f"{type(step).__name__} needs a job with `finetune`: a function that trains the model on"
                )
            key["finetune"] = source.evaluation_sha256
        key = {"pass": type(step).__name__, **asdict(step), "before": _digest(key)}
        if rooms := code(step):
            key["code"] = machine.code_sha256(*rooms)
        if tools := built_with(step):
            key["built_with"] = tools

        def make(out: Path, step: Any = step, before: Path | None = before) -> None:
            said: Verdict = apply(step, before, source, out / "model" / writes(step))
            _write_json(out / "said.json", said.why)

        folder = cache.step(key, make)
        before = folder / "model" / writes(step)
        notes.append(f"{type(step).__name__}: {json.loads((folder / 'said.json').read_text())}")
    if before is None:
        folder = cache.step(
            key | {"factory": source.job.factory}, lambda out: _write_factory(out / "model", source.job)
        )
        before = folder / "model" / "factory.json"
    return Candidate(recipe, before, _digest([key, recipe.to_json()]), tuple(notes))


def _write_factory(out: Path, job: Job) -> None:
    _write_json(
        out / "factory.json",
        {"factory": job.factory, "inputs": [t.name for t in job.inputs], "outputs": list(job.outputs)},
    )
