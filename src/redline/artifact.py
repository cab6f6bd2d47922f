"""The artifact's format: a folder written whole or not at all, and never edited.

manifest.json   what it is (see Manifest); sha256 of every other file
model/          what the engine loads
golden.npz      golden requests: "{i}/in/{name}", "{i}/out/{name}" (the candidate's), "{i}/ref/{name}" (the source's)
                of a language model: golden.json, prompts with the logprobs of their likeliest first tokens
evidence/       leaderboard.json, sla.json
report.html
"""

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, get_origin

import numpy as np

from redline import machine
from redline.errors import ArtifactError, UsageError
from redline.tensors import Arrays, Tensor

SCHEMA = 1
PROOFS = ("held", "broken", "unproven")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    name: str
    engine: str  # a key of redline.runtimes.engines
    model: str  # path inside the artifact that the engine loads
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    recipe: dict[str, Any]  # name, track, passes, engine options
    batchable: bool
    batchable_why: str
    replay_tolerance: float  # largest |answer - golden answer| that is still this candidate
    source_tolerance: float  # largest |answer - the source model's| seen and allowed on real inputs
    max_rows: int  # in one request
    sla: dict[str, Any]  # p99_ms, rate_rps, rows
    proof: str  # held | broken | unproven
    proof_why: str
    engine_options: dict[str, Any] = field(default_factory=dict)
    kind: str = "onnx"  # what lies in model/: a kind of redline.runtimes.engines.table
    target: str = "cpu"  # cpu, or cuda:sm_86
    serving: dict[str, Any] = field(default_factory=dict)  # mode, max_inflight, max_batch_rows
    metric: dict[str, Any] = field(default_factory=dict)  # gate, validation and test figures, before and after
    source_sha256: str = ""
    git_revision: str = ""
    command: str = ""  # what reproduces it
    preprocess: str | None = None  # "module:function"
    postprocess: str | None = None
    isa: str = "portable"  # judged on; a weaker one is refused
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # path inside the artifact → sha256
    schema: int = SCHEMA


def file_sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _inside(root: Path, name: str) -> Path:
    """root/name, refusing absolute paths, `..` and links that lead outside."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name:
        raise ArtifactError(f"{root}: path {name!r} leads outside the artifact")
    path = root / pure
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as e:  # no such file; a name no file can have; a link to itself
        raise ArtifactError(f"{root}: {name} is missing ({e})") from e
    if not inside:
        raise ArtifactError(f"{root}: {name!r} is a link that leads outside the artifact")
    return path


def _tensors(rows: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    frozen: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()} for r in rows]
    return tuple(Tensor(**row) for row in frozen)


def _kind(annotation: Any) -> Any:
    """What isinstance takes for a field's annotation."""
    if annotation is float:
        return int | float
    return annotation if isinstance(annotation, type | UnionType) else get_origin(annotation)


def parse_manifest(text: bytes, where: str) -> Manifest:
    try:
        table = json.loads(text)
        if table.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{where}: schema {table.get('schema')!r}, this Redline reads {SCHEMA}; upgrade or re-make"
            )
        if unknown := table.keys() - {f.name for f in fields(Manifest)}:
            raise ArtifactError(f"{where}: unknown keys {sorted(unknown)}")
        table |= {"inputs": _tensors(table["inputs"]), "outputs": _tensors(table["outputs"])}
        manifest = Manifest(**table)
        if wrong := [f.name for f in fields(Manifest) if not isinstance(getattr(manifest, f.name), _kind(f.type))]:
            raise ArtifactError(f"{where}: values of the wrong type at {wrong}")
        if manifest.proof not in PROOFS:
            raise ArtifactError(f"{where}: proof {manifest.proof!r} is not one of {', '.join(PROOFS)}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError) as e:
        if isinstance(e, ArtifactError):
            raise
        raise ArtifactError(f"{where}: not a manifest: {e}") from e
    return manifest


@dataclass(frozen=True, slots=True)
class Artifact:
    path: Path
    manifest: Manifest

    @property
    def model(self) -> Path:
        return _inside(self.path, self.manifest.model)

    def golden(self) -> list[tuple[Arrays, Arrays, Arrays]]:
        """Golden requests: (inputs, the candidate's answers, the source model's answers).

        Raises:
            ArtifactError: golden.npz holds something else.
        """
        path, cases = self.path / golden_name(self.manifest), dict[int, dict[str, Arrays]]()
        try:
            if path.suffix == ".json":
                return [_golden_prompt(**row) for row in json.loads(path.read_text())]
            with np.load(path, allow_pickle=False) as z:
                for key in z.files:
                    index, kind, name = key.split("/", 2)
                    cases.setdefault(int(index), {"in": {}, "out": {}, "ref": {}})[kind][name] = z[key]
        except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as e:
            raise ArtifactError(f"{path} holds no golden requests: {e}") from e
        return [(c["in"], c["out"], c["ref"]) for _, c in sorted(cases.items())]

    def evidence(self, name: str) -> Any:
        path = self.path / "evidence" / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None


def load(path: Path, *, here: str | None = None) -> Artifact:
    """Read and verify an artifact: schema, paths, every hash, and that this machine's ISA suffices.

    Raises:
        ArtifactError: what is wrong, and which file.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise ArtifactError(f"{path} is not an artifact: no manifest.json (make one with `redline optimize`)")
    manifest = parse_manifest(file.read_bytes(), str(file))
    for name, digest in manifest.files.items():
        member = _inside(path, name)
        if not member.is_file():
            raise ArtifactError(f"{path}: {name} is not a file")
        if file_sha256(member) != digest:
            raise ArtifactError(f"{path}: {name} was changed after it was written (sha256 differs); fetch it again")
    for needed in (golden_name(manifest), manifest.model):
        if needed not in manifest.files and not any(f.startswith(f"{needed}/") for f in manifest.files):
            raise ArtifactError(f"{path}: {needed} is not among the hashed files")
    isa_here = here or machine.isa()
    if manifest.isa not in machine.ISAS or machine.weaker(isa_here, manifest.isa):
        raise ArtifactError(
            f"{path}: judged on {manifest.isa}, this CPU has {isa_here}: speed and answers may differ; "
            "run `redline optimize` on this machine"
        )
    return Artifact(path, manifest)


def golden_name(manifest: Manifest) -> str:
    return "golden.json" if manifest.kind == "llm" else "golden.npz"


def _golden_prompt(
    tokens: list[int], top: list[int], logprobs: list[float], source: list[float]
) -> tuple[Arrays, Arrays, Arrays]:
    """tokens: the prompt; top: its likeliest next tokens; their logprobs in the artifact's and in the source model."""
    asked = {"tokens": np.array(tokens, np.int64), "top": np.array(top, np.int64)}
    return asked, {"logprobs": np.array(logprobs, np.float64)}, {"logprobs": np.array(source, np.float64)}


def save_golden(path: Path, cases: list[tuple[Arrays, Arrays, Arrays]]) -> None:
    flat = {
        f"{i}/{kind}/{name}": array
        for i, case in enumerate(cases)
        for kind, arrays in zip(("in", "out", "ref"), case, strict=True)
        for name, array in arrays.items()
    }
    np.savez_compressed(path, **flat)  # type: ignore[arg-type]


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that becomes `out` in one rename, or vanishes on an error."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(f"{out} exists already; artifacts are never edited: name a new folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as e:
        raise UsageError(f"can't write to {out.parent}: {e.strerror}; name another folder with --out") from e
    try:
        yield scratch
        scratch.chmod(0o755)
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with the hash of every file now in folder."""
    members = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    table = asdict(manifest) | {"files": {p.relative_to(folder).as_posix(): file_sha256(p) for p in members}}
    (folder / "manifest.json").write_text(json.dumps(table, indent=2) + "\n")
