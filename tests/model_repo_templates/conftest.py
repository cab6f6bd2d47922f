import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))  # the tiny artifact is theirs

from schemas import Doc, kustomize
from tiny_tree import deploy, make


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a first roll-out, the next artifact over it: slower, on a newer image)."""
    root = tmp_path_factory.mktemp("trees")
    first = deploy(make(root / "a"), root / "first", "--namespace", "shop")
    options = ["--stable", str(first), "--namespace", "shop", "--image", "registry.test/redline:0.2.0"]
    return first, deploy(make(root / "b", 300.0, batchable=False), root / "second", *options)


@pytest.fixture(scope="session")
def canary_docs(trees: tuple[Path, Path]) -> list[Doc]:
    return kustomize(trees[0] / "overlays" / "canary")
