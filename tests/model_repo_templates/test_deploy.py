"""`redline deploy`: what it writes is what a cluster takes, and what it refuses to write."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rules import pick, pods, predictors, rule_faults
from schemas import CRDS, Doc, kustomize, schema_faults
from tiny_tree import deploy, make, with_crds, with_kustomize

from redline import artifact, machine
from redline.cli import main
from redline.errors import UsageError
from redline.model_repo_templates import deploy as command
from redline.model_repo_templates import rollout

OVERLAYS = ("stable", "canary", "promote", "rollback")
pytestmark = with_kustomize


def service(tree: Path, overlay: str) -> Doc:
    return pick(kustomize(tree / "overlays" / overlay), "InferenceService")[0]


@with_crds
@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("nth", [0, 1])
def test_every_schema_and_every_rule_takes_it(trees: tuple[Path, Path], nth: int, overlay: str) -> None:
    docs = kustomize(trees[nth] / "overlays" / overlay)
    kinds = ["InferenceService", "PodDisruptionBudget", *["ServingRuntime"] * (1 + nth)]
    assert sorted(d["kind"] for d in docs) == kinds
    assert {d["metadata"]["namespace"] for d in docs} == {"shop"}
    made = list(pods(docs))
    assert len(made) == (2 if overlay == "canary" else 1)
    for doc in (*docs, *made):
        assert list(schema_faults(copy.deepcopy(doc))) == []
    assert rule_faults(docs) == []


def test_the_canary_takes_a_tenth_and_no_capacity(trees: tuple[Path, Path]) -> None:
    before, after = (service(trees[1], overlay)["spec"] for overlay in ("stable", "canary"))
    (entry,) = after["canary"]
    assert entry["trafficPercent"] == 10 and "canary" not in before
    # KServe takes the ready canary's replicas off the stable side: what stays must be what that side needs.
    assert before["predictor"]["minReplicas"] == 3  # 900 / (0.7 * 500)
    assert entry["predictor"]["minReplicas"] == 5  # 900 / (0.7 * 300)
    assert after["predictor"]["minReplicas"] - entry["predictor"]["minReplicas"] == 3
    assert after["predictor"] | {"minReplicas": 3} == before["predictor"]
    assert entry["predictor"]["model"]["storageUri"] != before["predictor"]["model"]["storageUri"]
    assert entry["predictor"]["model"]["runtime"] != before["predictor"]["model"]["runtime"]


def test_promoting_restarts_no_pod_and_waits_for_none(trees: tuple[Path, Path]) -> None:
    canary, promoted = service(trees[1], "canary"), service(trees[1], "promote")
    merged = copy.deepcopy(predictors(canary)[1])
    del merged["model"]["name"]  # the runtime's container has it anyway
    assert promoted["spec"] == {"predictor": merged, "canary": []}
    assert canary["metadata"] == promoted["metadata"]  # annotations would reach the pods


def test_rolling_back_leaves_the_stable_side_as_it_was(trees: tuple[Path, Path]) -> None:
    stable, rolled = service(trees[1], "stable"), service(trees[1], "rollback")
    assert rolled["spec"] == stable["spec"] | {"canary": []}
    assert service(trees[0], "promote")["spec"]["predictor"] == stable["spec"]["predictor"]  # what runs since


def test_a_first_roll_out_rehearses_with_itself(trees: tuple[Path, Path]) -> None:
    canary, promoted = service(trees[0], "canary")["spec"], service(trees[0], "promote")["spec"]
    (entry,) = canary["canary"]
    assert entry["predictor"]["name"] == f"{canary['predictor']['name']}-rehearsal"
    # KServe refuses a new name for the same model.
    assert promoted["predictor"]["name"] == canary["predictor"]["name"]


def test_a_runtime_is_named_after_its_content(trees: tuple[Path, Path]) -> None:
    """The pods that serve keep theirs while a canary tries another."""
    first, second = ({d["metadata"]["name"]: d for d in pick(kustomize(t / "base"), "ServingRuntime")} for t in trees)
    (old,) = first
    assert first[old] == second.pop(old)
    assert [d["spec"]["containers"][0]["image"] for d in second.values()] == ["registry.test/redline:0.2.0"]


def test_a_gpu_gets_triton_and_its_repository(tmp_path: Path) -> None:
    made = make(tmp_path / "a", target="cuda:sm_86", proof="unproven", proof_why="built, not measured")
    tree = deploy(made, tmp_path / "tree", "--allow-unproven")
    assert (tree / "repository" / "tiny" / "config.pbtxt").is_file()
    docs = kustomize(tree / "overlays" / "canary")
    assert rule_faults(docs) == []
    spec = pick(docs, "ServingRuntime")[0]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    if CRDS.is_dir():
        assert [f for doc in (*docs, *pods(docs)) for f in schema_faults(doc)] == []


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({"proof": "unproven", "proof_why": "not asked"}, [], "proof is unproven: not asked; run `redline prove"),
        ({"proof": "broken", "proof_why": "p99 80 ms"}, [], "broken: p99 80 ms"),
        ({}, ["--image", "redline:latest"], "not latest"),
        ({}, ["--image", "redline"], "wanted NAME:TAG"),
        ({}, ["--storage-uri", "/home/me/artifact"], "wanted s3://"),
        ({}, ["--storage-uri", "s3://bucket/a b"], "wanted s3://"),
        ({}, ["--namespace", "My_Space"], "--namespace: wanted"),
        ({"name": "2tiny"}, [], "can't name a Kubernetes service"),
        ({"name": "a" * 33}, [], "at most 32"),
        ({}, ["--stable", "nowhere"], "wanted a folder that `redline deploy` wrote"),
    ],
)
def test_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], options: list[str], words: str
) -> None:
    made = make(tmp_path / "made", **fields)
    assert main(["deploy", str(made), "--out", str(tmp_path / "tree"), *options]) == 2
    assert words in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["made"]  # the tree comes whole or not at all


def test_refuses_the_tree_of_another_service_or_of_the_same_artifact(
    trees: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, other = str(trees[0]), make(tmp_path / "other", name="other")
    assert main(["deploy", str(other), "--out", str(tmp_path / "t"), "--stable", first, "--namespace", "shop"]) == 2
    assert "is of shop/tiny" in capsys.readouterr().err
    uri = ["--storage-uri", json.loads((trees[0] / "deploy.json").read_text())["storage_uri"]]
    same = make(tmp_path / "same", 200.0)
    assert (
        main(["deploy", str(same), "--out", str(tmp_path / "t"), "--stable", first, "--namespace", "shop", *uri]) == 2
    )
    assert "nothing to roll out" in capsys.readouterr().err


def test_refuses_a_language_model(tmp_path: Path) -> None:
    found = artifact.load(make(tmp_path / "a"), here=machine.ISAS[-1])
    llm = dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, kind="llm"))
    with pytest.raises(UsageError, match="needs an image with vLLM"):
        command.refuse(llm, allow_unproven=True)


def test_a_uri_stays_as_it_is(tmp_path: Path) -> None:
    uri = "https://host.test/a?x=1&y={{z}}#<b>"
    tree = deploy(make(tmp_path / "a"), tmp_path / "tree", "--storage-uri", uri)
    assert service(tree, "canary")["spec"]["canary"][0]["predictor"]["model"]["storageUri"] == uri


def test_every_isa_has_its_node_labels() -> None:
    assert tuple(rollout.CPUID) == machine.ISAS


def test_held_only_through_triton_is_not_what_the_image_serves(tmp_path: Path) -> None:
    assert main(["deploy", str(make(tmp_path / "a", 0.0)), "--out", str(tmp_path / "tree")]) == 1


def test_told_so_it_deploys_an_unproven_one(tmp_path: Path) -> None:
    made = make(tmp_path / "a", proof="unproven", proof_why="not asked")
    tree = deploy(made, tmp_path / "tree", "--allow-unproven")
    assert service(tree, "stable")["spec"]["predictor"]["minReplicas"] == 1
    assert "proof: unproven: not asked" in (tree / "README.md").read_text()


@pytest.mark.parametrize(("name", "expected"), [("tiny", "tiny"), ("Rank_v2.1", "rank-v2-1"), ("x-", None), ("", None)])
def test_a_service_s_name(name: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            rollout.service_name(name)
    else:
        assert rollout.service_name(name) == expected
