"""Mistakes planted in a good tree: each rule and each schema must notice its own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from rules import RULES, pick, rule_faults
from schemas import Doc, schema_faults
from tiny_tree import with_crds, with_kustomize

pytestmark = with_kustomize


def _runtime(docs: list[Doc]) -> Doc:
    return pick(docs, "ServingRuntime")[0]["spec"]


def _container(docs: list[Doc]) -> Doc:
    found: Doc = _runtime(docs)["containers"][0]
    return found


def _spec(docs: list[Doc]) -> Doc:
    found: Doc = pick(docs, "InferenceService")[0]["spec"]
    return found


def _entry(docs: list[Doc]) -> Doc:
    found: Doc = _spec(docs)["canary"][0]["predictor"]
    return found


def _budget(docs: list[Doc]) -> Doc:
    found: Doc = pick(docs, "PodDisruptionBudget")[0]["spec"]
    return found


MISTAKES: list[tuple[str, Callable[[list[Doc]], Any], str]] = [
    ("names", lambda d: pick(d, "InferenceService")[0]["metadata"].update(name="2tiny"), "no DNS label"),
    ("names", lambda d: _entry(d).update(name="v" * 60), "at most 63"),
    ("canary", lambda d: pick(d, "InferenceService")[0]["metadata"].pop("annotations"), "deploymentMode None"),
    ("canary", lambda d: _spec(d)["predictor"].update(canaryTrafficPercent=10), "Standard ignores it"),
    ("canary", lambda d: _entry(d).update(name=_spec(d)["predictor"]["name"]), "all different"),
    ("canary", lambda d: _entry(d).pop("name"), "all different"),
    ("canary", lambda d: _spec(d)["canary"][0].update(trafficPercent=110), "more than 100"),
    ("canary", lambda d: _spec(d)["predictor"]["model"].update(name="kserve-container"), "is refused"),
    ("canary", lambda d: _entry(d).update(maxReplicas=9), "must not set ['maxReplicas']"),
    ("canary", lambda d: _entry(d).update(minReplicas=99), "over the stable"),
    ("canary", lambda d: _entry(d)["model"].update(name="server"), "second container"),
    ("runtime", lambda d: _entry(d)["model"].update(runtime="other"), "not in the tree"),
    ("runtime", lambda d: _spec(d)["predictor"]["model"]["modelFormat"].update(name="onnx"), "doesn't take 'onnx'"),
    ("runtime", lambda d: _spec(d)["predictor"]["model"].pop("storageUri"), "no storageUri"),
    ("runtime", lambda d: _container(d).update(name="server"), "kserve-container"),
    ("probes", lambda d: _container(d)["ports"][0].update(containerPort=99999), "are not ports"),
    ("probes", lambda d: _container(d)["readinessProbe"]["httpGet"].update(port=80), "asks port 80"),
    ("probes", lambda d: _container(d).pop("readinessProbe"), "no HTTP readiness probe"),
    ("probes", lambda d: _container(d)["livenessProbe"]["httpGet"].update(path="/v2/health/ready"), "probe paths"),
    ("probes", lambda d: _container(d)["startupProbe"].update(failureThreshold=3), "two minutes"),
    ("drain", lambda d: _container(d).pop("lifecycle"), "preStop"),
    ("drain", lambda d: _spec(d)["predictor"].update(terminationGracePeriodSeconds=10), "shorter"),
    ("security", lambda d: _container(d)["securityContext"].update(runAsUser=0), "root"),
    ("security", lambda d: _container(d)["securityContext"].pop("readOnlyRootFilesystem"), "can be written"),
    ("security", lambda d: _container(d)["securityContext"].pop("allowPrivilegeEscalation"), "privileges"),
    ("security", lambda d: _container(d)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]), "capabilities"),
    ("security", lambda d: _container(d)["securityContext"].pop("seccompProfile"), "seccomp"),
    ("security", lambda d: _container(d).update(volumeMounts=[]), "volume mounts"),
    ("security", lambda d: _container(d).update(env=[{"name": "PYTHONPATH", "value": "/x"}]), "refuses the variables"),
    ("security", lambda d: _container(d).update(image="redline:latest"), "could differ"),
    ("resources", lambda d: _container(d)["resources"].pop("limits"), "Guaranteed"),
    ("resources", lambda d: [r.update(cpu="500m") for r in _container(d)["resources"].values()], "whole cores"),
    ("disruption", lambda d: _budget(d).update(minAvailable=1), "minAvailable or maxUnavailable"),
    ("disruption", lambda d: _budget(d)["selector"]["matchLabels"].update(app="tiny"), "misses"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "plant", "fault"), MISTAKES, ids=[f"{m[0]}: {m[2]}" for m in MISTAKES])
def test_a_rule_notices(canary_docs: list[Doc], rule: str, plant: Callable[[list[Doc]], Any], fault: str) -> None:
    docs = copy.deepcopy(canary_docs)
    plant(docs)
    assert any(found.startswith(f"{rule}: ") and fault in found for found in rule_faults(docs)), rule_faults(docs)


def test_every_rule_has_its_reason_and_its_mistake() -> None:
    assert {rule for rule, *_ in MISTAKES} == {rule.__name__ for rule in RULES}
    assert all(rule.__doc__ for rule in RULES)


@with_crds
@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lambda d: _container(d).update(readynessProbe={}), "readynessProbe"),
        (lambda d: _container(d)["startupProbe"]["httpGet"].update(port=[8080]), "port"),
        (lambda d: _runtime(d).pop("containers"), "containers"),
        (lambda d: _runtime(d).update(terminationGracePeriodSeconds=30), "terminationGracePeriodSeconds"),
        (lambda d: _container(d)["ports"].append({"containerPort": 8080}), "duplicate"),  # TCP by default
        (lambda d: _container(d)["resources"]["limits"].update(memory={"Gi": 1}), "memory"),
        (lambda d: _spec(d)["predictor"].update(minReplicas="2"), "minReplicas"),
        (lambda d: _spec(d)["canary"][0].pop("trafficPercent"), "trafficPercent"),
        (lambda d: _spec(d)["canary"][0].update(trafficPercent=101), "trafficPercent"),
        (lambda d: _entry(d)["model"].pop("name"), "name"),
        (lambda d: _spec(d).update(canaries=[]), "canaries"),
        (lambda d: _budget(d).update(maxUnavailible=1), "maxUnavailible"),
        (lambda d: _budget(d).update(selector=[]), "selector"),
    ],
)  # fmt: skip
def test_a_schema_notices(canary_docs: list[Doc], plant: Callable[[list[Doc]], Any], fault: str) -> None:
    docs = copy.deepcopy(canary_docs)
    plant(docs)
    found = [f for doc in docs for f in schema_faults(doc)]
    assert any(fault in f for f in found), found
