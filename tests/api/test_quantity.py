from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.api.quantity import Quantity, parse_quantity, to_bytes, to_milli


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("80Gi", 80 << 30),
        ("1.5Ki", 1536),
        ("1k", 1000),
        ("1E", 10**18),
        ("1e3", 1000),
        ("12E2", 1200),
        ("1e-3", Fraction(1, 1000)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("250m", Fraction(1, 4)),
        ("1n", Fraction(1, 10**9)),
        ("-2Gi", -(2 << 30)),
        ("+3M", 3_000_000),
        (7, 7),
    ],
)
def test_value(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Gi",
        "1 Gi",
        "1gi",
        "1K",
        "1GB",
        "1.2.3",
        "0x10",
        "NaN",
        "1e",
        "--1",
        "1Gi\n",
        "١Gi",
        True,
        "9" * 21,
    ],
)
def test_no_quantity(text):
    with pytest.raises(ValueError, match="no Kubernetes quantity"):
        parse_quantity(text)


def test_integers_are_rounded_away_from_zero():
    assert (to_bytes("1m"), to_bytes("-1m"), to_bytes("1.1")) == (1, -1, 2)
    assert (to_milli("0.5"), to_milli("2"), to_milli("100u")) == (500, 2000, 1)


def test_kept_as_written():
    memory = Quantity("79.5Gi")
    assert (str(memory), memory.bytes) == ("79.5Gi", 159 << 29)


@given(st.integers(0, 10**12), st.sampled_from(["Ki", "Mi", "Gi", "k", "M", "G", ""]))
def test_milli_is_a_thousand_times_the_value(number, unit):
    assert to_milli(f"{number}{unit}") == 1000 * to_bytes(f"{number}{unit}")
