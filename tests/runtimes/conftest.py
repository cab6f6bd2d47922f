import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # siblings, which importlib mode does not find

from live_server import Server, running
from tiny_artifact import make_artifact

SLOW_WORK = 500  # some 50 ms for 512 rows


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("made") / "tiny")


@pytest.fixture(scope="session")
def slow_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("made") / "slow", work=SLOW_WORK, batchable=False)


class Servers:
    """One server per engine for the whole session."""

    def __init__(self, artifact: Path, folder: Path, stack: ExitStack) -> None:
        self._artifact, self._folder, self._stack = artifact, folder, stack
        self._running: dict[str, Server] = {}

    def __call__(self, engine: str) -> Server:
        if engine not in self._running:
            options = ("--engine", engine, "--max-body", "256kB")
            server = running(self._artifact, self._folder / f"{engine}.log", *options)
            self._running[engine] = self._stack.enter_context(server)
        return self._running[engine]


@pytest.fixture(scope="session")
def servers(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(artifact, tmp_path_factory.mktemp("servers"), stack)


@pytest.fixture(params=["embedded", pytest.param("triton", marks=pytest.mark.triton)])
def server(servers: Servers, request: pytest.FixtureRequest) -> Server:
    return servers(request.param)


@pytest.fixture
def embedded(servers: Servers) -> Server:
    return servers("embedded")
