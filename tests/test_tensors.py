"""Every request is checked against what the model declares."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redline.errors import JobError, RequestError
from redline.tensors import Arrays, Tensor, check_request

SPECS = (
    Tensor(name="ids", dtype="int64", shape=("rows", 2), max=(9, 99), columns=("user", "item")),
    Tensor(name="dense", dtype="float32", shape=("rows", 3)),
    Tensor(name="shop", dtype="int32", shape=("rows",), max=4),
)


def good(rows: int = 4) -> Arrays:
    return {
        "ids": np.zeros((rows, 2), np.int64),
        "dense": np.zeros((rows, 3), np.float32),
        "shop": np.zeros(rows, np.int32),
    }


def put(name: str, place: tuple[int, ...], value: float) -> Arrays:
    arrays = good()
    arrays[name][place] = value
    return arrays


def test_a_good_request_gives_its_rows() -> None:
    assert [check_request(SPECS, good(rows), 8) for rows in (1, 8)] == [1, 8]
    edge = put("ids", (0, 1), 99) | {"shop": np.full(4, 4, np.int32)}
    assert check_request(SPECS, edge, 8) == 4


BAD = {
    "wrong dtype": (good() | {"dense": np.zeros((4, 3))}, "input 'dense': wanted float32, got float64"),
    "narrower ids": (good() | {"ids": np.zeros((4, 2), np.int32)}, "input 'ids': wanted int64, got int32"),
    "other byte order": (good() | {"ids": np.zeros((4, 2), ">i8")}, "wanted int64, got >i8"),
    "text": (good() | {"dense": np.full((4, 3), "x")}, "wanted float32, got <U1"),
    "too wide": (good() | {"dense": np.zeros((4, 5), np.float32)}, r"wanted shape \['rows', 3\], got \[4, 5\]"),
    "too deep": (good() | {"dense": np.zeros((4, 3, 1), np.float32)}, r"got \[4, 3, 1\]"),
    "too flat": (good() | {"dense": np.zeros(3, np.float32)}, r"got \[3\]"),
    "a scalar": (good() | {"shop": np.array(1, np.int32)}, r"got \[\]"),
    "NaN": (put("dense", (2, 1), np.nan), "'dense': nan at row 2, column 1 is not finite"),
    "infinity": (put("dense", (3, 2), -np.inf), "-inf at row 3, column 2 is not finite"),
    "id too large": (put("ids", (1, 0), 10), r"id 10 at row 1, column 0 \(user\) is not in 0..9"),
    "id negative": (put("ids", (3, 1), -1), r"id -1 at row 3, column 1 \(item\) is not in 0..99"),
    "id of a flat input": (put("shop", (2,), 5), "'shop': id 5 at row 2 is not in 0..4"),
    "row counts": (good(4) | {"shop": np.zeros(3, np.int32)}, "disagree on the number of rows: .*'shop': 3"),
    "missing": ({k: v for k, v in good().items() if k != "shop"}, r"wanted inputs .*'shop'\], got \['dense', 'ids'\]"),
    "unknown": (good() | {"extra": np.zeros(4)}, "got .*'extra'"),
    "nothing": ({}, r"got \[\]"),
    "no rows": (good(0), "wanted 1 to 8 rows, got 0"),
    "too many rows": (good(9), "wanted 1 to 8 rows, got 9"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_with_its_reason(case: str) -> None:
    arrays, message = BAD[case]
    with pytest.raises(RequestError, match=message):
        check_request(SPECS, arrays, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "complex64"}, "dtype 'complex64' is not one of"),
        ({"dtype": "object"}, "dtype 'object' is not one of"),
        ({"shape": ()}, "must name its batch axis first"),
        ({"shape": (4, 2)}, "must name its batch axis first"),
        ({"shape": ("rows", "n")}, "must name its batch axis first"),
        ({"shape": ("rows", 0)}, "axis below 1"),
        ({"shape": ("rows", 2.5)}, "axis below 1"),
        ({"per": "batch"}, "per is 'row' or 'request'"),
        ({"max": (1, 2, 3)}, "max has 3 entries for 2 columns"),
        ({"columns": ("a",)}, "columns has 1 entries for 2 columns"),
        ({"dtype": "float32", "max": 5}, "max is for integer ids"),
    ],
)
def test_a_bad_declaration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=f"tensor 'x': .*{message}"):
        Tensor(**{"name": "x", "dtype": "int64", "shape": ("rows", 2)} | change)


def test_sizes_of_a_row() -> None:
    assert [(t.row_shape, t.row_bytes) for t in SPECS] == [((2,), 16), ((3,), 12), ((), 4)]


@given(hnp.arrays(st.sampled_from([np.int64, np.int32, np.float32, np.float64]), hnp.array_shapes(max_dims=3)))
def test_any_array_fits_or_is_refused(array: Any) -> None:
    spec = Tensor(name="ids", dtype="int64", shape=("rows", 2), max=(9, 99))
    fits = array.dtype == np.int64 and array.ndim == 2 and array.shape[1] == 2
    fits = fits and bool(((array >= 0) & (array <= [9, 99])).all())
    try:
        spec.check(array)
    except RequestError:
        assert not fits
    else:
        assert fits
