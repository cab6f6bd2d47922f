"""What a server is asked: an artifact's golden requests, or a file of requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redline import artifact
from redline.errors import UsageError
from redline.tensors import Arrays

if TYPE_CHECKING:
    from redline.bench.measuring import Load, Subject


@dataclass(frozen=True, slots=True)
class Questions:
    requests: list[Arrays]
    expected: list[Arrays]
    tolerance: float
    model: str
    sla: dict[str, Any]


def golden_questions(found: artifact.Artifact) -> Questions:
    """An artifact's golden requests, those of its SLA's size where there are any."""
    cases, rows = found.golden(), found.manifest.sla.get("rows")
    cases = [c for c in cases if len(next(iter(c[0].values()))) == rows] or cases
    manifest = found.manifest
    return Questions(
        [c[0] for c in cases], [c[1] for c in cases], manifest.replay_tolerance, manifest.name, manifest.sla
    )


def read_questions(path: Path) -> Questions:
    """From an artifact folder, or an .npz with "{i}/in/{name}" arrays: those answers can't be checked."""
    if path.suffix != ".npz":
        return golden_questions(artifact.load(path))
    cases: dict[int, Arrays] = {}
    try:
        with np.load(path, allow_pickle=False) as z:
            for key in z.files:
                index, kind, name = key.split("/", 2)
                if kind == "in":
                    cases.setdefault(int(index), {})[name] = z[key]
    except (OSError, ValueError) as e:
        raise UsageError(f'{path}: wanted an .npz with arrays named "0/in/NAME", "1/in/NAME": {e}') from e
    if not cases:
        raise UsageError(f'{path}: no arrays named "0/in/NAME"')
    return Questions([c for _, c in sorted(cases.items())], [], 0.0, "", {})


@contextmanager
def asking(
    found: artifact.Artifact, engine: str = "auto", *, protocol: str = "http-binary", command: list[str] | None = None
) -> "Iterator[tuple[Subject, Load]]":
    """The artifact served on cores of its own, its golden questions, and a generator kept off those cores."""
    from redline.bench.measuring import Load, Subject
    from redline.bench.serving import serve_artifact, split_cores

    asked = golden_questions(found)
    server, generator, placement = split_cores()
    with serve_artifact(found.path, engine, server, command=command) as running:
        url = running.grpc_url if protocol == "grpc" else running.http_url
        subject = Subject(url, running.model, asked.requests, asked.expected, asked.tolerance, protocol)
        yield subject, Load(cpus=generator, server_cpus=server - generator, placement=placement)
