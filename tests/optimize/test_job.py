"""What a job is known by: the hashes that its cached results stand under, and the requests it gives."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_job import write_job

from redline.optimize.build import Source
from redline.optimize.job import load_job


def hashes(folder: Path, *changes: tuple[str, str]) -> tuple[str, str, str]:
    path = write_job(folder, *changes)
    source = Source(load_job(path), path)
    return source.sha256, source.inputs_sha256, source.evaluation_sha256


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (("mul_(0.3)", "mul_(0.31)"), (True, False, True)),
        (("torch.sigmoid(self.body(", "torch.tanh(self.body("), (True, False, True)),  # code, with the same weights
        (("draw(4000, 0)", "draw(4000, 9)"), (False, True, True)),
        (("max=(39, 29, 19)", "max=(40, 29, 19)"), (False, True, True)),
        (("return float(auc)", "return float(auc) - 1"), (False, False, True)),
        (('"shop")', '"shop",)'), (False, False, True)),  # the file as text: no change is too small
    ],
)
def test_a_change_moves_the_hashes_it_should(
    change: tuple[str, str], moved: tuple[bool, bool, bool], clean_process: Path
) -> None:
    before, same, after = hashes(clean_process), hashes(clean_process), hashes(clean_process, change)
    assert before == same
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == moved


def test_a_module_beside_the_job_is_part_of_the_metric(clean_process: Path) -> None:
    helper, installed = clean_process / "tiny_helper.py", clean_process / "site-packages" / "tiny_library.py"
    installed.parent.mkdir()
    imports = "import sys\nimport torch\nsys.path.append('site-packages')\nimport tiny_helper, tiny_library\n"
    use = ("import torch\n", imports)

    def evaluation(*texts: str) -> str:
        for path, text in zip((helper, installed), texts, strict=True):
            path.write_text(text)
        return hashes(clean_process, use)[2]

    first = evaluation("A = 1\n", "B = 1\n")
    assert evaluation("A = 1\n", "B = 22\n") == first
    assert evaluation("A = 22\n", "B = 22\n") != first


def test_without_requests_calibration_rows_are_asked(source: Source) -> None:
    asked = replace(source.job, requests=None).real_requests(3, 1500)
    assert [len(r["ids"]) for r in asked] == [1500] * 3
    np.testing.assert_array_equal(asked[0]["dense"][:500], asked[2]["dense"][1000:])  # 4,000 rows, then from the first
    assert not np.array_equal(asked[0]["dense"], asked[1]["dense"])
