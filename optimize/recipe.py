"""Recipes: a name, passes in order, an engine. Data you can read, and read back from an artifact."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from redline.errors import UsageError
from redline.optimize.passes import ExportOnnx, MergeEmbeddings, Pass, QuantizeDynamic, QuantizeStatic, retrains

_PASSES: dict[str, type[Pass]] = {p.__name__: p for p in (ExportOnnx, MergeEmbeddings, QuantizeDynamic, QuantizeStatic)}


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
        return str(self.options.get("precision", "fp32"))

    @property
    def kind(self) -> str:
        """What the last pass leaves in the artifact (a kind of redline.runtimes.engines.table)."""
        return str(getattr(type(self.passes[-1]), "KIND", "onnx")) if self.passes else "module"

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


def choose(asked: str, own: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    """The recipes that `--recipes auto|all|NAME,…` means.

    Raises:
        UsageError: a name that no recipe has, or two have.
    """
    known = {r.name: r for r in (*AUTO, *own)}
    if len({*known, BASELINE.name}) != 1 + len(AUTO) + len(own):
        raise UsageError(
            f"recipes need names of their own, got {[r.name for r in own]} beside {BASELINE.name} and auto"
        )
    if asked in ("auto", "all"):
        return AUTO if asked == "auto" else tuple(known.values())
    names = [n.strip() for n in asked.split(",") if n.strip()]
    if not names or (unknown := [n for n in names if n not in known]):
        raise UsageError(
            f"--recipes: no recipe {', '.join(unknown) if names else asked!r}; known: auto, all, {', '.join(known)}"
        )
    return tuple(known[n] for n in names)
