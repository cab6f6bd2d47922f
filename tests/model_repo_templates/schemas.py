"""What an API server would refuse: Kubernetes' own schemas, and the CRDs' as structural schemas.

The CRDs lie beside the repository, in shared/crds; where they don't, their checks are skipped. No controller and no
webhook of KServe's runs here: rules.py restates what they refuse.
"""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

Doc = dict[str, Any]
CRDS = Path(__file__).parents[3] / "shared" / "crds"
KUBERNETES = "1.37"
_FILES = {"InferenceService": "inferenceservices.yaml", "ServingRuntime": "servingruntimes.yaml"}
_CUSTOM = "serving.kserve.io/"


def kustomize(folder: Path) -> list[Doc]:
    tool = ["kubectl", "kustomize"] if shutil.which("kubectl") else ["kustomize", "build"]
    text = subprocess.run([*tool, str(folder)], capture_output=True, text=True, check=True).stdout
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def schema_faults(doc: Doc) -> Iterator[str]:
    """Kubernetes' own kinds, and KServe's where their CRDs are at hand."""
    if doc["apiVersion"].startswith(_CUSTOM):
        validator, default = _crd(doc["kind"], doc["apiVersion"])
        default(doc)
        yield from (f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(doc))
        return
    try:
        kubernetes_validate.validate(doc, KUBERNETES, strict=True)
    except jsonschema.ValidationError as e:
        yield f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}"


@cache
def _crd(kind: str, api_version: str) -> tuple[Any, Any]:
    """(a validator that knows no unknown fields, what fills in defaults): what an API server does with a CRD."""
    crd = yaml.load((CRDS / _FILES[kind]).read_text(), Loader=yaml.CSafeLoader)
    version = next(v for v in crd["spec"]["versions"] if api_version.endswith(f"/{v['name']}"))
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    closed = _closed(schema)
    validator = jsonschema.validators.extend(
        jsonschema.Draft4Validator, {"x-kubernetes-list-map-keys": _unique, "x-kubernetes-validations": _unsupported}
    )
    return validator(closed), lambda doc: _fill(doc, schema)


def _closed(schema: Doc) -> Doc:
    """A structural schema as JSON Schema: what it does not name is a fault."""
    out = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}], **{k: v for k, v in out.items() if k == "pattern"}}
    if "properties" in out:
        out["properties"] = {name: _closed(value) for name, value in out["properties"].items()}
    if isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = _closed(out["additionalProperties"])
    elif out.get("type") == "object" and not out.get("x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    if "items" in out:
        out["items"] = _closed(out["items"])
    if out.get("nullable"):
        out["type"] = [out["type"], "null"]
    return out


def _fill(value: Any, schema: Doc) -> None:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if "default" in inner:
                value.setdefault(name, inner["default"])
            _fill(value.get(name), inner)
    elif isinstance(value, list):
        for item in value:
            _fill(item, schema.get("items", {}))


def _unique(_: Any, keys: list[str], items: Any, __: Doc) -> Iterator[jsonschema.ValidationError]:
    found = [tuple(item.get(k) for k in keys) for item in items if isinstance(item, dict)]
    if len(set(found)) < len(found):
        yield jsonschema.ValidationError(f"duplicate {keys} in {found}")


def _unsupported(*_: Any) -> Iterator[jsonschema.ValidationError]:
    raise NotImplementedError("this CRD has CEL rules, which are not evaluated here: KServe's two have none")
