"""The nonsense that every schema lets pass. A rule yields faults; its docstring is the reason.

[webhook]: KServe's source refuses it (pkg/apis/serving/v1beta1 at aaac4e29).
"""

import re
from collections.abc import Iterator
from typing import Any

Doc = dict[str, Any]
_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_BLOCKED_ENV = ("PYTHONPATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "PATH")


def pick(docs: list[Doc], kind: str) -> list[Doc]:
    return [d for d in docs if d["kind"] == kind]


def predictors(service: Doc) -> list[Doc]:
    """The stable predictor and every canary, merged over it as KServe does."""
    stable = service["spec"]["predictor"]
    return [stable, *(_merged(stable, c["predictor"]) for c in service["spec"].get("canary", []))]


def _merged(below: Doc, above: Doc) -> Doc:
    inner = {k: _merged(below[k], v) if isinstance(v, dict) and k in below else v for k, v in above.items()}
    return below | inner


def pods(docs: list[Doc]) -> Iterator[Doc]:
    """The Pod of every predictor: its runtime's containers, its own pod fields."""
    runtimes = {d["metadata"]["name"]: d["spec"] for d in pick(docs, "ServingRuntime")}
    own = ("terminationGracePeriodSeconds", "automountServiceAccountToken", "securityContext", "nodeSelector")
    for service in pick(docs, "InferenceService"):
        for predictor in predictors(service):
            runtime = runtimes.get(predictor["model"].get("runtime", ""))
            if runtime is None:
                continue  # a rule says so
            spec = {k: runtime[k] for k in ("containers", "volumes", "affinity", "tolerations") if k in runtime}
            spec |= {k: predictor[k] for k in own if k in predictor}
            name = f"{service['metadata']['name']}-{predictor.get('name')}-predictor"
            labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"], "component": "predictor"}
            metadata = {"name": name, "labels": labels}
            yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


# --- house rules ---


def names(docs: list[Doc]) -> Iterator[str]:
    """A Service of more than 63 characters, or one that starts with a digit, is refused long after the apply."""
    for doc in docs:
        name = doc["metadata"]["name"]
        if not _DNS.fullmatch(name) or len(name) > 63:
            yield f"{doc['kind']} {name!r} is no DNS label"
    for pod in pods(docs):
        name = pod["metadata"]["name"]
        if not _DNS.fullmatch(name) or len(name) > 63:
            yield f"its Service {name!r} is no DNS label of at most 63"


def canary(docs: list[Doc]) -> Iterator[str]:
    """[webhook] Outside Standard mode, or by Knative's field, a canary is refused or silently gets nothing."""
    for doc in pick(docs, "InferenceService"):
        stable, entries = doc["spec"]["predictor"], doc["spec"].get("canary", [])
        mode = doc["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
        if mode != "Standard":
            yield f"deploymentMode {mode}: wanted Standard, written out"
        if any("canaryTrafficPercent" in p for p in (stable, *(e["predictor"] for e in entries))):
            yield "canaryTrafficPercent is for Knative mode; Standard ignores it"
        given = [stable.get("name"), *(e["predictor"].get("name") for e in entries)]
        if not all(given) or len(set(given)) < len(given):
            yield f"predictor names {given}: wanted one each, all different"
        if sum(e["trafficPercent"] for e in entries) > 100:
            yield "canaries take more than 100 percent"
        yield from (fault for e in entries for fault in _one_canary(stable, e["predictor"]))
        if "name" in stable.get("model", {}):
            yield "the stable predictor's model.name is refused"


def _one_canary(stable: Doc, entry: Doc) -> Iterator[str]:
    fixed = {"maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "workerSpec"}
    if found := sorted(fixed & entry.keys()):
        yield f"a canary must not set {found}"
    if entry.get("minReplicas", 1) > stable.get("minReplicas", 1):
        yield "a canary's minReplicas is over the stable predictor's"
    if entry["model"].get("name") != "kserve-container":
        yield "a canary's model.name must be kserve-container, or it becomes a second container"


def runtime(docs: list[Doc]) -> Iterator[str]:
    """A runtime that isn't there, or doesn't know the format, leaves the service waiting for ever."""
    found = {d["metadata"]["name"]: d["spec"] for d in pick(docs, "ServingRuntime")}
    for doc in pick(docs, "InferenceService"):
        for predictor in predictors(doc):
            model = predictor.get("model", {})
            if model.get("runtime") not in found:
                yield f"runtime {model.get('runtime')!r} is not in the tree"
            elif model["modelFormat"]["name"] not in [
                f["name"] for f in found[model["runtime"]].get("supportedModelFormats", [])
            ]:
                yield f"runtime {model['runtime']} doesn't take {model['modelFormat']['name']!r}"
            if not model.get("storageUri"):
                yield "no storageUri: KServe refuses a canary beside such a stable predictor"
    for name, spec in found.items():
        if [c["name"] for c in spec["containers"]] != ["kserve-container"]:
            yield f"{name}: the container must be named kserve-container: KServe merges and routes by that name"


def probes(docs: list[Doc]) -> Iterator[str]:
    """A probe of a port that isn't open never succeeds; liveness on readiness kills a server that is only busy."""
    for pod in pods(docs):
        c = pod["spec"]["containers"][0]
        open_ports = [p["containerPort"] for p in c.get("ports", [])]
        if bad := [p for p in open_ports if not 0 < p < 65536]:
            yield f"ports {bad} are not ports"
        found = {kind: c.get(f"{kind}Probe", {}) for kind in ("startup", "readiness", "liveness")}
        for kind, probe in found.items():
            if "httpGet" not in probe:
                yield f"no HTTP {kind} probe: the default asks only whether the port is open"
            elif probe["httpGet"]["port"] not in open_ports:
                yield f"the {kind} probe asks port {probe['httpGet']['port']}, open are {open_ports}"
        paths = {kind: probe.get("httpGet", {}).get("path") for kind, probe in found.items()}
        if paths != {"startup": "/v2/health/ready", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}:
            yield f"probe paths {paths}"
        if found["startup"].get("periodSeconds", 10) * found["startup"].get("failureThreshold", 3) < 120:
            yield "the startup probe gives up in less than two minutes"


def drain(docs: list[Doc]) -> Iterator[str]:
    """Endpoints are closed while the pod is signaled: without a pause requests are lost, without time to drain, too."""
    for pod in pods(docs):
        pause = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if pause < 3:
            yield "no preStop sleep of at least 3 s"
        if pod["spec"].get("terminationGracePeriodSeconds", 30) < pause + 0.5 + 15 + 1:  # as runtimes/server.py drains
            yield "terminationGracePeriodSeconds is shorter than the pause and the drain"


def security(docs: list[Doc]) -> Iterator[str]:
    """What a restricted namespace (Pod Security Standards) refuses, and a root that could be written."""
    for pod in pods(docs):
        c = pod["spec"]["containers"][0]
        context = c.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            yield "runs as root, or as a name that Kubernetes can't check"
        if not context.get("readOnlyRootFilesystem"):
            yield "its root can be written"
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield "may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield "keeps capabilities"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield "no seccomp profile"
        mounts = {m["name"]: m["mountPath"] for m in c.get("volumeMounts", [])}
        if mounts.keys() != {v["name"] for v in pod["spec"].get("volumes", [])} or "/tmp" not in mounts.values():  # noqa: S108
            yield f"volume mounts {mounts}: wanted every volume mounted, /tmp among them"
        if blocked := [e["name"] for e in c.get("env", []) if e["name"] in _BLOCKED_ENV]:
            yield f"KServe's webhook refuses the variables {blocked}"
        if not re.search(r":[^/:]+$|@sha256:", c.get("image", "")) or c["image"].endswith(":latest"):
            yield f"image {c.get('image')!r}: two pods of one version could differ"


def resources(docs: list[Doc]) -> Iterator[str]:
    """A p99 that was proven on whole cores holds on whole cores; a limit under its request is refused at the pod."""
    for pod in pods(docs):
        found = pod["spec"]["containers"][0].get("resources", {})
        if not found.get("requests") or found.get("requests") != found.get("limits"):
            yield "requests and limits differ: not Guaranteed"
        if not re.fullmatch(r"[1-9]\d*", str(found.get("limits", {}).get("cpu"))):
            yield "cpu is not a number of whole cores"


def disruption(docs: list[Doc]) -> Iterator[str]:
    """A budget with both fields is refused; one that selects no pod protects none, and nothing says so."""
    labels = [pod["metadata"]["labels"].items() for pod in pods(docs)]
    for budget in pick(docs, "PodDisruptionBudget"):
        if len({"minAvailable", "maxUnavailable"} & budget["spec"].keys()) != 1:
            yield "wanted minAvailable or maxUnavailable"
        if not all(budget["spec"]["selector"]["matchLabels"].items() <= pod for pod in labels):
            yield "its selector misses the predictor's pods"


RULES = (names, canary, runtime, probes, drain, security, resources, disruption)


def rule_faults(docs: list[Doc]) -> list[str]:
    return [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(docs)]
