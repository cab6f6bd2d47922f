"""Recipes: a name, passes in order, an engine. Data you can read, and read back from an artifact."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from redline.errors import UsageError
from redline.optimize.job import SLA
from redline.optimize.passes import (
    ExportOnnx,
    FuseKernels,
    MergeEmbeddings,
    Pass,
    Prune,
    Qat,
    QuantizeDynamic,
    QuantizeStatic,
    TensorRT,
    retrains,
)
from redline.optimize.passes.tensorrt import TARGETS

_PASSES: dict[str, type[Pass]] = {
    p.__name__: p
    for p in (ExportOnnx, FuseKernels, MergeEmbeddings, Prune, Qat, QuantizeDynamic, QuantizeStatic, TensorRT)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str
    passes: tuple[Pass, ...]  # applied from left to right
    engine: str  # a key of redline.runtimes.engines
    options: Mapping[str, Any] = field(default_factory=lambda: {"threads": 1})
    track: str = "expert"  # "auto" recipes come with Redline

    @property
    def precision(self) -> str:
        if any(isinstance(p, QuantizeDynamic | QuantizeStatic) for p in self.passes):
            return "int8"
        fused = next((p.precision for p in self.passes if isinstance(p, FuseKernels)), "fp32")
        return str(self.options.get("precision", fused))

    @property
    def kind(self) -> str:
        """What the last pass leaves in the artifact (a kind of redline.runtimes.engines.table)."""
        return str(getattr(type(self.passes[-1]), "KIND", "onnx")) if self.passes else "module"

    @property
    def target(self) -> str:
        """cpu, or what the last pass builds for (cuda:sm_86)."""
        return str(getattr(self.passes[-1], "target", "cpu")) if self.passes else "cpu"

    @property
    def retrained(self) -> bool:
        return any(retrains(p) for p in self.passes)

    def to_json(self) -> dict[str, Any]:
        passes = [{"pass": type(p).__name__, **asdict(p)} for p in self.passes]
        return {
            "name": self.name,
            "track": self.track,
            "passes": passes,
            "engine": self.engine,
            "options": dict(self.options),
        }


def recipe_from_json(table: Mapping[str, Any]) -> Recipe:
    """Inverse of Recipe.to_json.

    Raises:
        UsageError: unknown key or pass.
    """
    if unknown := table.keys() - {f.name for f in fields(Recipe)}:
        raise UsageError(f"recipe: unknown keys {sorted(unknown)}; known: {[f.name for f in fields(Recipe)]}")
    return Recipe(**{**table, "passes": tuple(_pass_from_json(p) for p in table["passes"])})


def _pass_from_json(table: Mapping[str, Any]) -> Pass:
    name, options = table.get("pass"), {k: v for k, v in table.items() if k != "pass"}
    if name not in _PASSES:
        raise UsageError(f"recipe: unknown pass {name!r}; known: {sorted(_PASSES)}")
    known = {f.name for f in fields(_PASSES[name])}
    if unknown := options.keys() - known:
        raise UsageError(f"{name}: unknown keys {sorted(unknown)}; known: {sorted(known)}")
    return _PASSES[name](**options)


def _auto(name: str, passes: tuple[Pass, ...], engine: str, **options: str) -> Recipe:
    return Recipe(name=name, passes=passes, engine=engine, options={"threads": 1, **options}, track="auto")


_FP32 = (ExportOnnx(), MergeEmbeddings())
_STATIC = (*_FP32, QuantizeStatic())

BASELINE = _auto("pytorch-eager", (), "torch_eager")
AUTO = (
    _auto("onnxruntime-fp32", _FP32, "onnxruntime"),
    _auto("onnxruntime-int8-dynamic", (*_FP32, QuantizeDynamic()), "onnxruntime"),
    _auto("onnxruntime-int8-static", _STATIC, "onnxruntime"),
    _auto("openvino-fp32", _FP32, "openvino", precision="fp32"),
    _auto("openvino-bf16", _FP32, "openvino", precision="bf16"),
    _auto("openvino-int8-static", _STATIC, "openvino", precision="fp32"),
)

# Hand-tuned, with fused kernels: tried with `--recipes all` or by name.
EXPERT = (
    Recipe(name="onnxruntime-int8-fused", passes=(*_STATIC, FuseKernels()), engine="onnxruntime"),
    Recipe(name="native-int8-fused", passes=(*_STATIC, FuseKernels()), engine="native"),
    Recipe(name="native-bf16-fused", passes=(*_FP32, FuseKernels(precision="bf16")), engine="native"),
    Recipe(name="native-fp32-fused", passes=(*_FP32, FuseKernels(precision="fp32")), engine="native"),
)

# Tried with `--recipes all` where the job has `finetune`, or by name.
RETRAINED = (
    _auto("onnxruntime-fp32-pruned", (Prune(), *_FP32), "onnxruntime"),
    _auto("openvino-bf16-pruned", (Prune(), *_FP32), "openvino", precision="bf16"),
    _auto("onnxruntime-int8-pruned", (Prune(), *_STATIC), "onnxruntime"),
    _auto("openvino-int8-pruned", (Prune(), *_STATIC), "openvino", precision="fp32"),
    Recipe(name="onnxruntime-int8-pruned-fused", passes=(Prune(), *_STATIC, FuseKernels()), engine="onnxruntime"),
    Recipe(name="native-int8-pruned-fused", passes=(Prune(), *_STATIC, FuseKernels()), engine="native"),
    _auto("onnxruntime-int8-qat", (Qat(), *_STATIC), "onnxruntime"),
    _auto("openvino-int8-qat", (Qat(), *_STATIC), "openvino", precision="fp32"),
)


def auto_recipes(target: str, sla: SLA) -> tuple[Recipe, ...]:
    """Those that come with Redline. What is tried for a GPU is not timed here: the first that keeps the gate is chosen.

    Raises:
        UsageError: an unknown target; which there are.
    """
    if target == "cpu":
        return AUTO
    if target not in TARGETS:
        raise UsageError(f"--target: no {target!r}; known: cpu, {', '.join(TARGETS)}")
    build = TensorRT(target=target, rows=sla.rows, max_rows=sla.max_rows)
    passes = {"tensorrt-int8": (*_STATIC, build), "tensorrt-fp32": (*_FP32, build)}
    return tuple(Recipe(name=n, passes=p, engine="tensorrt", options={}, track="auto") for n, p in passes.items())


def choose(
    asked: str, own: tuple[Recipe, ...], auto: tuple[Recipe, ...] = AUTO, *, finetune: bool = False
) -> tuple[Recipe, ...]:
    """The recipes that `--recipes auto|all|NAME,…` means, of one target; `all` retrains only what the job can finetune.

    Raises:
        UsageError: a name that no recipe has, or two have.
    """
    more = (*EXPERT, *RETRAINED, *own)
    if len({BASELINE.name, *(r.name for r in (*auto, *more))}) != 1 + len(auto) + len(more):
        raise UsageError(
            f"recipes need names of their own, got {[r.name for r in own]} beside {BASELINE.name} and auto"
        )
    known = {r.name: r for r in (*auto, *(r for r in more if r.target == auto[0].target))}
    if asked == "auto":
        return auto
    if asked == "all":
        return tuple(r for r in known.values() if finetune or r not in RETRAINED)
    names = [n.strip() for n in asked.split(",") if n.strip()]
    if not names or (unknown := [n for n in names if n not in known]):
        raise UsageError(
            f"--recipes: no recipe {', '.join(unknown) if names else asked!r}; known: auto, all, {', '.join(known)}"
        )
    return tuple(known[n] for n in names)
