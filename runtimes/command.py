"""`redline serve ARTIFACT`: KServe's protocols (REST v1, REST v2 with binary tensors, gRPC v2) over one artifact."""

import argparse
import logging
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from redline import artifact as artifacts
from redline.artifact import Artifact
from redline.errors import MissingError, UsageError, missing_extra
from redline.runtimes import engines
from redline.runtimes.engines.table import pick
from redline.runtimes.predictor import Backend
from redline.units import size_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ENGINES = ("auto", "embedded", "triton")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="folder that `redline optimize` wrote")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="auto: the one that held more when proven")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--http-port", type=int, default=8080, help="default %(default)s; 0: any free one")
    parser.add_argument("--grpc-port", type=int, default=8081, help="default %(default)s; 0: any free one")
    parser.add_argument("--max-inflight", type=int, help="requests at once, more get 429 (default: the artifact's)")
    parser.add_argument("--max-body", default="64MiB", help="largest request, more gets 413 (default %(default)s)")


def choose_engine(asked: str, artifact: Artifact) -> tuple[str, str]:
    """Which, and why."""
    if asked != "auto":
        return asked, "asked for"
    proven = (artifact.evidence("sla") or {}).get("engines") or {}
    rates = {name: float(found.get("highest_rate") or 0) for name, found in proven.items() if name in ENGINES[1:]}
    if not any(rates.values()):
        return "embedded", "no load test of this artifact says otherwise"
    ranked = sorted(rates, key=lambda name: -rates[name])
    return ranked[0], f"{', '.join(f'{name} held {rates[name]:.0f}/s' for name in ranked)} when proven"


def make_backend(engine: str, artifact: Artifact) -> Backend:
    manifest = artifact.manifest
    if engine == "triton":
        from redline.runtimes.triton_hop import TritonHop

        return TritonHop(artifact)
    from redline.runtimes.batcher import Batcher

    rows = int(manifest.serving.get("max_batch_rows", manifest.max_rows)) if manifest.batchable else 0

    def load() -> engines.Engine:
        return engines.load(manifest.engine, artifact.model, manifest.engine_options)

    return Batcher(load, manifest.outputs, rows)


def run(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    max_body = size_bytes(args.max_body)
    if not (0 <= args.http_port < 65536 and 0 <= args.grpc_port < 65536) or (
        args.max_inflight is not None and args.max_inflight < 1
    ):
        raise UsageError("a port is 0 to 65535, --max-inflight at least 1")
    server = _server()
    with server.bind(args.host, args.http_port) as http:
        server.bind(args.host, args.grpc_port).close()  # gRPC binds it itself, later
        artifact = artifacts.load(args.artifact)
        choice = pick(artifact.manifest.kind, artifact.manifest.target, artifact.manifest.engine)
        if llm := choice.engine == "vllm":
            from redline.runtimes.llm import check, serve

            check(artifact, args.engine)
        elif choice.engine not in engines.NAMES:
            known = ", ".join(engines.NAMES)
            raise MissingError(
                f"{args.artifact}: {choice}; not an engine of this process ({known}); on a {artifact.manifest.target} "
                f"machine, give NVIDIA's Triton what `redline deploy {args.artifact} --out DIR` renders"
            )
        if not _NAME.fullmatch(artifact.manifest.name):
            raise UsageError(
                f"{args.artifact}: {artifact.manifest.name!r} can't be part of a URL; wanted {_NAME.pattern}"
            )
        engine, why = (choice.engine, choice.why) if llm else choose_engine(args.engine, artifact)
        print(f"engine: {engine} ({why})", flush=True)
        settings = server.Settings(
            host=args.host,
            http_port=args.http_port,
            grpc_port=args.grpc_port,
            max_inflight=args.max_inflight or int(artifact.manifest.serving.get("max_inflight", 64)),
            max_body=max_body,
        )
        server.import_kserve()
        if llm:
            serve(artifact, http, settings)
        else:
            server.serve(artifact, make_backend(engine, artifact), http, settings)
    return 0


def _server() -> ModuleType:
    try:
        if find_spec("kserve") is None:
            raise missing_extra("serve", "redline serve")
        return import_module("redline.runtimes.server")
    except ModuleNotFoundError as e:
        if e.name and e.name.startswith("redline"):
            raise
        raise missing_extra("serve", "redline serve") from e
