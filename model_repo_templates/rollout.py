"""Artifact → a kustomize tree for KServe in Standard mode: stable, canary, promote, rollback.

DIR/base        ServingRuntime(s), InferenceService of the stable side, PodDisruptionBudget
DIR/overlays    what `kubectl apply -k` is given: stable, canary, promote, rollback
DIR/repository  of an artifact for a GPU: what NVIDIA's Triton loads, to be put where the storage URI leads
DIR/deploy.json what the next artifact's tree reads of this one
"""

import hashlib
import json
import math
import re
import shutil
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from redline.artifact import Artifact, Manifest
from redline.errors import BrokenError, UsageError
from redline.runtimes.engines.table import device

CANARY_PERCENT = 10
_HEADROOM = 0.7  # of the highest rate that held: p99 climbs steeply just below it
_SERVICE = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # KServe's own rule
_LONGEST = 32  # SERVICE-v-12345678-rehearsal-predictor names a Service: 63 at most
_OVERLAYS = ("stable", "canary", "promote", "rollback")
CPUID = {  # Node Feature Discovery's names
    "portable": (),
    "avx2": ("AVX2", "FMA3"),
    "avx512": ("AVX512F",),
    "avx512_vnni": ("AVX512F", "AVX512VNNI"),
    "avx512_vnni_bf16": ("AVX512F", "AVX512VNNI", "AVX512BF16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One version of the model, as it runs alone."""

    storage_uri: str
    runtime: str
    replicas: int
    why: str  # so many

    @property
    def name(self) -> str:
        """Changes with the URI and only with it: KServe refuses another name for the same model."""
        return f"v-{hashlib.sha256(self.storage_uri.encode()).hexdigest()[:8]}"


def service_name(name: str) -> str:
    """recommender_v2.1 → recommender-v2-1."""
    service = re.sub(r"[._]", "-", name.lower())
    if not _SERVICE.fullmatch(service) or len(service) > _LONGEST:
        raise UsageError(
            f"{name!r} can't name a Kubernetes service: wanted letters, digits, '-', '_' or '.', a letter first and at "
            f"most {_LONGEST} of them; rename the job and optimize again"
        )
    return service


def content_id(found: Artifact) -> str:
    """Of the manifest, which has the hash of every other file."""
    return hashlib.sha256((found.path / "manifest.json").read_bytes()).hexdigest()[:12]


def replicas(found: Artifact) -> tuple[int, str]:
    """How many pods hold the SLA's rate, and why so many."""
    manifest, sla = found.manifest, found.evidence("sla") or {}
    server = "triton" if device(manifest.target) == "cuda" else "embedded"  # what the image runs
    highest = float(sla.get("engines", {}).get(server, {}).get("highest_rate") or 0)
    asked = float(manifest.sla.get("rate_rps") or 0)
    if manifest.proof != "held":
        return 1, f"{manifest.proof}: nobody knows what a replica holds"
    if not highest:
        raise BrokenError(
            f"{found.path}: served by {server}, as the image serves it, it held no rate when proven; "
            "`redline inspect` shows what did"
        )
    count = max(2, math.ceil(asked / (_HEADROOM * highest)))
    return count, f"{asked:g}/s asked, {highest:.0f}/s held by one, {_HEADROOM:.0%} of it used; 2 at least, to lose one"


def render_tree(
    found: Artifact, out: Path, *, image: str, storage_uri: str, namespace: str, stable: Path | None
) -> None:
    """Fill `out`. stable: the tree that runs now; without it this artifact is the first of its service."""
    service = service_name(found.manifest.name)
    runtime, runtime_text = _runtime(found, image)
    count, why = replicas(found)
    after = Side(storage_uri=storage_uri, runtime=runtime, replicas=count, why=why)
    before = after if stable is None else _running(stable, service, namespace)
    if stable and before.storage_uri == after.storage_uri:
        raise UsageError(f"{stable} deploys {storage_uri} already: nothing to roll out; name the new artifact's URI")
    values: dict[str, Any] = {
        "service": service,
        "stable": before,
        "next": after,
        "percent": CANARY_PERCENT,
        "rehearsal": stable is None,
        # Two deployments of one service never share a name.
        "canary_name": after.name if stable else f"{after.name}-rehearsal",
    }
    base = out / "base"
    base.mkdir()
    (base / "servingruntime.yaml").write_text(runtime_text)
    if stable and before.runtime != runtime:
        shutil.copyfile(stable / "base" / "servingruntime.yaml", base / "servingruntime-stable.yaml")
    for kind in ("inferenceservice", "poddisruptionbudget"):
        (base / f"{kind}.yaml").write_text(_text(f"{kind}.yaml", values))
    resources = sorted(p.name for p in base.iterdir())
    (base / "kustomization.yaml").write_text(_kustomization(resources, namespace=namespace))
    for name in _OVERLAYS:
        overlay = out / "overlays" / name
        overlay.mkdir(parents=True)
        patches = [] if name == "stable" else ["patch.yaml"]
        (overlay / "kustomization.yaml").write_text(_kustomization(["../../base"], patches))
        if patches:
            (overlay / "patch.yaml").write_text(_text(f"{name}.yaml", values))
    _extras(found, out, image, values)
    record = {"service": service, "namespace": namespace, **asdict(after)}
    (out / "deploy.json").write_text(json.dumps(record, indent=2) + "\n")


def _extras(found: Artifact, out: Path, image: str, values: dict[str, Any]) -> None:
    """What people read, and what Triton loads."""
    manifest = found.manifest
    what = "this artifact's folder"
    if device(manifest.target) == "cuda":
        from redline.model_repo_templates.render import render_triton_gpu

        render_triton_gpu(found, out / "repository")
        what = "`repository/` (Triton alone serves it: no golden replay gates its readiness)"
    hooks = [hook for hook in (manifest.preprocess, manifest.postprocess) if hook]
    readme = _text(
        "README.md",
        values,
        model=manifest.name,
        recipe=manifest.recipe["name"],
        proof=f"{manifest.proof}: {manifest.proof_why}",
        sla=manifest.sla,
        image=image,
        what=what,
        hooks=", ".join(hooks),
    )
    (out / "README.md").write_text(readme)


def _running(tree: Path, service: str, namespace: str) -> Side:
    """What an earlier tree promoted."""
    try:
        record = json.loads((tree / "deploy.json").read_text())
        there = record.pop("service"), record.pop("namespace")
        side = Side(**record)
        whole = (tree / "base" / "servingruntime.yaml").is_file()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UsageError(f"--stable {tree}: wanted a folder that `redline deploy` wrote ({e})") from e
    if there != (service, namespace) or not whole:
        raise UsageError(f"--stable {tree} is of {'/'.join(filter(None, there[::-1]))}, this artifact of {service!r}")
    return side


def _runtime(found: Artifact, image: str) -> tuple[str, str]:
    """(its name, its text)."""
    manifest = found.manifest
    gpu = device(manifest.target) == "cuda"
    values = _on_gpu(manifest) if gpu else _on_cpu(found)
    values |= {"gpu": gpu, "image": image}
    digest = hashlib.sha256(_text("servingruntime.yaml", values, name="").encode()).hexdigest()[:8]
    name = f"redline-{device(manifest.target)}-{digest}"
    return name, _text("servingruntime.yaml", values, name=name)


def _on_cpu(found: Artifact) -> dict[str, Any]:
    manifest = found.manifest
    cores = _proven_cores(found)
    size = sum(p.stat().st_size for p in found.model.parent.rglob("*") if p.is_file())
    # Measured in the image: 240 MiB with a small model; large bodies are bounded at 4 x 64 MiB; weights are held twice
    # while they load.
    memory = math.ceil((1024 + 2 * size / 2**20) / 256) * 256
    return {
        "where": "a CPU",
        "args": ["serve", "/mnt/models", "--engine", "embedded", "--host", "0.0.0.0"],  # noqa: S104 (a pod's own)
        "protocols": ["v1", "v2", "grpc-v2"],
        "metrics_port": 8080,
        "judged_on": f"{manifest.isa}: `redline serve` refuses a CPU with less",
        "node_labels": [
            {"key": f"feature.node.kubernetes.io/cpu-cpuid.{flag}", "operator": "Exists"}
            for flag in CPUID[manifest.isa]
        ],
        "resources": {"cpu": str(cores), "memory": f"{memory}Mi"},
        "resources_why": f"{cores} core{'s' if cores > 1 else ''} a replica, as in the proof.",
        "ready_means": "Ready means loaded, warmed up and golden requests replayed.",
    }


def _on_gpu(manifest: Manifest) -> dict[str, Any]:
    digits = manifest.target.rpartition("_")[2]
    capability = {"major": digits[:-1], "minor": digits[-1]}
    return {
        "where": "an NVIDIA GPU, by Triton",
        "args": ["--model-repository=/mnt/models", "--http-port=8080", "--grpc-port=8081"],
        "protocols": ["v2", "grpc-v2"],
        "metrics_port": 8002,
        "judged_on": f"{manifest.target}",
        "node_labels": [
            {"key": f"nvidia.com/gpu.compute.{part}", "operator": "In", "values": [digit]}
            for part, digit in capability.items()
        ],
        "resources": {"cpu": "2", "memory": "8Gi", "nvidia.com/gpu": "1"},
        "resources_why": "One GPU a replica; CPU and memory are guesses: nothing was measured on a GPU.",
        "ready_means": "Ready means that Triton has loaded and warmed up every model.",
    }


def _proven_cores(found: Artifact) -> int:
    """The server's, out of the conditions of the proof."""
    engines = (found.evidence("sla") or {}).get("engines", {})
    placement = str(engines.get("embedded", {}).get("at_rate", {}).get("conditions", {}).get("placement", ""))
    said = re.match(r"server on core\(s\) (\d+(?:,\d+)*)", placement)
    return len(said[1].split(",")) if said else 1


def _kustomization(resources: list[str], patches: list[str] | None = None, *, namespace: str = "") -> str:
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    lines += [f"namespace: {namespace}"] if namespace else []
    lines += ["resources:", *(f"  - {name}" for name in resources)]
    lines += ["patches:", *(f"  - path: {name}" for name in patches)] if patches else []
    return "\n".join(lines) + "\n"


def _text(template: str, values: dict[str, Any], **more: Any) -> str:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 (not HTML)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    source = files("redline.model_repo_templates") / "kserve" / f"{template}.j2"
    return environment.from_string(source.read_text()).render(values, **more)
