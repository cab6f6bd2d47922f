"""`redline deploy ARTIFACT`: write the kustomize tree that rolls it out on KServe, after a look at its proof."""

import argparse
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from redline import artifact, machine
from redline.artifact import writing
from redline.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from redline.artifact import Artifact

# Where KServe's storage initializer can fetch a folder from.
_URI = re.compile(r"(s3|gs|pvc|hf|hdfs|webhdfs|https?)://[A-Za-z0-9][^\s\"'\\]*")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._/:-]*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}|@sha256:[0-9a-f]{64})")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("artifact", type=Path, metavar="ARTIFACT", help="folder written by `redline optimize`")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder for the tree")
    add("--stable", type=Path, metavar="TREE", help="what runs now: the tree of an earlier deploy (default: nothing)")
    add("--storage-uri", metavar="URI", help="where pods fetch it (default: pvc://redline-artifacts/NAME/CONTENT)")
    add("--image", metavar="REF", help="the predictor's (default: what `make image` builds)")
    add("--namespace", default="", metavar="NS", help="default: the one that kubectl is set to")
    add("--allow-unproven", action="store_true", help="deploy it although no load test says that its SLA held")


def run(args: argparse.Namespace) -> int:
    found = artifact.load(args.artifact, here=machine.ISAS[-1])  # this machine only writes; the pods' check their own
    refuse(found, args.allow_unproven)
    from redline.model_repo_templates import rollout
    from redline.runtimes.engines.table import device

    gpu = "-gpu" if device(found.manifest.target) == "cuda" else ""
    image = args.image or f"localhost/redline{gpu}:{version('redline')}"
    service = rollout.service_name(found.manifest.name)
    uri = args.storage_uri or f"pvc://redline-artifacts/{service}/{rollout.content_id(found)}"
    _check(image, uri, args.namespace)
    with writing(args.out) as folder:
        rollout.render_tree(found, folder, image=image, storage_uri=uri, namespace=args.namespace, stable=args.stable)
    count, why = rollout.replicas(found)
    print(f"{args.out}: {service}, {count} replica{'s' if count > 1 else ''} ({why})")
    print(f"storage {uri}, image {image}")
    print(f"next    {args.out}/README.md; kubectl diff -k {args.out}/overlays/canary")
    return 0


def refuse(found: "Artifact", allow_unproven: bool) -> None:
    """What has no business on a cluster, or isn't known to hold."""
    manifest = found.manifest
    if manifest.kind == "llm":
        raise UsageError(
            f"{found.path}: a language model needs an image with vLLM, which Redline doesn't build; serve it with "
            "`redline serve`"
        )
    if manifest.proof != "held" and not allow_unproven:
        raise ArtifactError(
            f"{found.path}: wanted an artifact whose SLA held under load, this one's proof is {manifest.proof}: "
            f"{manifest.proof_why}; run `redline prove {found.path} --out NEW`, or deploy it with --allow-unproven"
        )


def _check(image: str, uri: str, namespace: str) -> None:
    if not _IMAGE.fullmatch(image) or image.endswith(":latest"):
        raise UsageError(f"--image: wanted NAME:TAG (not latest: a canary must differ) or NAME@sha256:…, got {image!r}")
    if not _URI.fullmatch(uri):
        raise UsageError(f"--storage-uri: wanted s3://, gs://, pvc://CLAIM/…, hf://, hdfs:// or https://, got {uri!r}")
    if namespace and not _NAMESPACE.fullmatch(namespace):
        raise UsageError(f"--namespace: wanted lower-case letters, digits and '-', got {namespace!r}")
