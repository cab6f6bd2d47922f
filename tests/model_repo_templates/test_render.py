import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))  # the tiny artifact is theirs

from tiny_artifact import make_artifact

from redline import artifact as artifacts
from redline.model_repo_templates.render import render_triton

# With any of these Triton lets requests on an idle instance wait for up to 500 ms.
_QUEUE_POLICY = r"max_queue_size|default_timeout|allow_timeout_override|priority|queue_policy|delay_microseconds"


def _render(tmp_path: Path, **fields: object) -> Path:
    made = artifacts.load(make_artifact(tmp_path / "made", **fields))  # type: ignore[arg-type]
    return render_triton(made, tmp_path / "repository", python_paths=["/site"], instances=2) / "tiny"


@pytest.mark.parametrize("batchable", [True, False])
def test_batches_where_rows_may_mix_and_never_with_a_queue_policy(tmp_path: Path, batchable: bool) -> None:
    config = (_render(tmp_path, batchable=batchable) / "config.pbtxt").read_text()
    assert ("dynamic_batching { }" in config) == batchable
    assert not re.search(_QUEUE_POLICY, re.sub("#.*", "", config))
    assert "max_batch_size: 512" in config and "count: 2 kind: KIND_CPU" in config
    assert re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ ([\d, ]+) \]', config) == [
        ("ids", "TYPE_INT64", "2"),
        ("dense", "TYPE_FP32", "3"),
        ("score", "TYPE_FP32", "1"),
    ]


def test_the_repository_is_whole(tmp_path: Path) -> None:
    folder = _render(tmp_path, serving={"max_batch_rows": 4096})
    assert "max_batch_size: 4096" in (folder / "config.pbtxt").read_text()
    settings = json.loads((folder / "1" / "settings.json").read_text())
    assert settings["python_paths"] == ["/site"] and Path(settings["model"]).is_file()
    assert settings["inputs"] == {"ids": [2], "dense": [3]} and settings["outputs"] == {"score": "float32"}
    assert np.frombuffer((folder / "warmup" / "0").read_bytes(), np.int64).shape == (2,)
    compile((folder / "1" / "model.py").read_text(), "model.py", "exec")
