import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # siblings, which importlib mode does not find

from tiny_job import write_job

from redline.optimize.build import Source
from redline.optimize.job import load_job


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that tests share: what one built, the next one finds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: Path) -> Iterator[Path]:
    """A job may be loaded in this process: what that leaves behind is swept up. Gives the working directory."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("REDLINE_CACHE", str(steps))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def source(clean_process: Path) -> Source:
    """The tiny job, loaded."""
    path = write_job(clean_process)
    return Source(load_job(path), path)
