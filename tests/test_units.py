"""Durations and sizes carry their unit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import UsageError
from redline.units import duration_ns, format_ns, size_bytes

NS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@given(st.integers(0, 10**5), st.sampled_from(sorted(NS)), st.sampled_from(["", " ", "  "]))
def test_a_duration_is_its_number_times_its_unit(number: int, unit: str, space: str) -> None:
    assert duration_ns(f"{space}{number}{space}{unit}{space}") == number * NS[unit]


@given(st.integers(0, 10**5), st.sampled_from(sorted(BYTES)))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str) -> None:
    assert size_bytes(f"{number}{unit}") == number * BYTES[unit]


@given(st.text())
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        assert duration_ns(text) >= 0
    except UsageError as e:
        assert repr(text) in str(e)


@pytest.mark.parametrize(
    "text",
    ["", "50", "ms", "-5ms", "+5ms", "5 m", "5MS", "1e3ms", "nanms", "1.ms", ".5ms", "1.2.3s", "\u0665ms", "5msms"],
)  # fmt: skip
def test_not_a_duration(text: str) -> None:
    with pytest.raises(UsageError, match="wanted a duration with a unit"):
        duration_ns(text)


@pytest.mark.parametrize("text", ["512", "512mib", "512 Mb", "1TiB", "50ms", "-1B"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(UsageError, match="wanted a size with a unit"):
        size_bytes(text)


def test_fractions_are_rounded_to_the_smallest_unit() -> None:
    assert duration_ns("0.5ms") == 500_000
    assert duration_ns("1.5ns") == 2
    assert size_bytes("1.5KiB") == 1536


@given(st.integers(1, 10**15))
def test_a_formatted_duration_keeps_three_digits(ns: int) -> None:
    number, unit = format_ns(ns).split()
    assert float(number) * NS[unit] == pytest.approx(ns, rel=0.005)
