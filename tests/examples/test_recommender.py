"""The recommender example on the real log: causal features, honest splits, a model that exports."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from redline.errors import MissingError, UsageError
from redline.optimize.job import Job, load_job
from redline.tensors import check_request

FOLDER = Path(__file__).parents[2] / "examples" / "recommender"


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    path, loaded = list(sys.path), set(sys.modules)
    yield load_job(FOLDER / "job.py")
    sys.path[:] = path
    for name in {"job", "movielens", "dlrm", "train"} - loaded:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def movielens(job: Job) -> ModuleType:
    module = sys.modules["movielens"]
    try:
        module.fetch()
    except MissingError as e:
        pytest.skip(str(e))
    return module


@pytest.fixture
def model(job: Job, movielens: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = tuple(movielens.SIZES.values())
    return sys.modules["dlrm"].DLRM(sizes, len(movielens.GENRES), len(movielens.DENSE)).eval()  # type: ignore[no-any-return]


def test_features_do_not_see_the_future(movielens: ModuleType) -> None:
    log = movielens.read()
    now = int(np.median(log.time))
    past, future = log.time <= now, log.time > now
    changed = replace(log, rating=np.where(future, 6 - log.rating, log.rating), film=np.where(future, 50, log.film))
    before, after = (movielens.dense_features(x, log.user, log.film, log.time) for x in (log, changed))
    np.testing.assert_array_equal(before[past], after[past])
    assert not np.array_equal(before[future], after[future])


def test_features_do_not_see_their_own_rating(movielens: ModuleType) -> None:
    log = movielens.read()
    row = 54_321
    changed = replace(log, rating=np.where(np.arange(len(log.rating)) == row, 6 - log.rating, log.rating))
    before, after = (movielens.dense_features(x, log.user, log.film, log.time) for x in (log, changed))
    np.testing.assert_array_equal(before[row], after[row])


def test_features_equal_a_plain_count(movielens: ModuleType) -> None:
    log = movielens.read()
    for row in np.random.default_rng(0).integers(0, len(log.user), 20):
        earlier = log.time < log.time[row]
        mine, others = earlier & (log.user == log.user[row]), earlier & (log.film == log.film[row])
        genres = (log.film_genres[log.film] & log.film_genres[log.film[row]]).sum(axis=1) * mine

        def mean(weights: Any) -> float:
            return 2 * float((weights @ log.rating + 5 * 3.5) / (weights.sum() + 5) - 3.5)

        last = log.time[mine].max() if mine.any() else log.time[row]
        wanted = [
            mean(mine),
            np.log1p(mine.sum()) / 2 - 2,
            mean(others),
            np.log1p(others.sum()) / 2 - 2,
            np.log1p(log.time[row] - last) / 4 - 1,
            mean(genres),
        ]
        got = movielens.dense_features(log, *(a[row : row + 1] for a in (log.user, log.film, log.time)))
        np.testing.assert_allclose(got[0], wanted, atol=1e-5)


def test_splits_are_disjoint_and_whole(movielens: ModuleType) -> None:
    log, splits = movielens.read(), movielens.splits()
    pairs = {name: {tuple(ids) for ids in arrays["ids"][:, :2].tolist()} for name, (arrays, _) in splits.items()}
    assert [len(p) for p in pairs.values()] == [80_000, 10_000, 10_000]
    assert set.union(*pairs.values()) == set(zip(log.user.tolist(), log.film.tolist(), strict=True))
    assert all(0.5 < labels.mean() < 0.6 for _, labels in splits.values())


def test_inputs_are_what_the_job_declares(job: Job, movielens: ModuleType) -> None:
    for arrays, labels in movielens.splits().values():
        assert check_request(job.inputs, arrays, max_rows=80_000) == len(labels)
        np.testing.assert_allclose(arrays["genres"].sum(axis=1), 1, atol=1e-6)
        assert np.abs(arrays["dense"]).max() < 6
    assert len(job.calibration_rows()["ids"]) == 65_536


@pytest.mark.parametrize("rows", [1, 500, 1682])
def test_a_request_is_one_user_and_distinct_films(job: Job, movielens: ModuleType, rows: int) -> None:
    made, again = job.real_requests(5, rows), job.real_requests(5, rows)
    for request, same in zip(made, again, strict=True):
        assert check_request(job.inputs, request, max_rows=rows) == rows
        assert len(set(request["ids"][:, 0])) == 1
        assert len(set(request["ids"][:, 1])) == rows
        np.testing.assert_array_equal(request["dense"], same["dense"])


@pytest.mark.parametrize("rows", [0, 1683])
def test_a_request_needs_enough_films(movielens: ModuleType, rows: int) -> None:
    with pytest.raises(UsageError, match="candidate films"):
        movielens.requests(1, rows)


def test_auc_equals_brute_force(movielens: ModuleType) -> None:
    rng = np.random.default_rng(0)
    labels, scores = rng.random(300) < 0.4, rng.integers(0, 20, 300) / 20  # many ties
    difference = scores[labels][:, None] - scores[~labels]
    wanted = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert movielens.auc(labels, scores) == pytest.approx(wanted, abs=1e-12)


def test_model_exports_with_any_number_of_rows(job: Job, movielens: ModuleType, model: torch.nn.Module) -> None:
    request = {k: torch.from_numpy(a[:8]) for k, a in movielens.splits()["test"][0].items()}
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(model, tuple(request.values()), dynamic_shapes={k: {0: rows} for k in request})
    for count in (1, 37):
        batch = [torch.from_numpy(a[:count]) for a in movielens.splits()["test"][0].values()]
        scores = program.module()(*batch)
        assert scores.shape == (count,) and scores.dtype == torch.float32
        torch.testing.assert_close(scores, model(*batch))
        assert ((scores > 0) & (scores < 1)).all()


def test_a_wrong_package_is_refused(movielens: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(command: list[str], **_: object) -> Any:
        (Path(command[command.index("--dest") + 1]) / "recbole-1.2.1-py3-none-any.whl").write_bytes(b"other")
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    monkeypatch.setattr(movielens.subprocess, "run", download)
    with pytest.raises(MissingError, match="wanted sha256"):
        movielens.fetch()
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_say_what_to_run(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"train\.py"):
        job.model()
