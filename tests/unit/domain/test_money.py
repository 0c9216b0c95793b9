"""Exact decimals: nothing is rounded unless the caller asked for a direction."""

from __future__ import annotations

from decimal import Decimal, Inexact

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trading.domain import money
from trading.domain.errors import InvalidValue

amounts = st.decimals(min_value=-(10**12), max_value=10**12, places=8)
steps = st.sampled_from([Decimal(text) for text in ("0.00000001", "0.00001", "0.01", "0.5", "1", "25", "0.003")])


@given(amounts, steps)
def test_round_down_gives_the_nearest_multiple_that_is_not_above(value: Decimal, step: Decimal) -> None:
    rounded = money.round_down(value, step)
    assert money.is_multiple(rounded, step)
    assert rounded <= value < rounded + step


@given(amounts, steps)
def test_round_up_is_round_down_mirrored(value: Decimal, step: Decimal) -> None:
    assert money.round_up(value, step) == -money.round_down(-value, step)


@given(st.lists(amounts, max_size=20))
def test_total_does_not_depend_on_the_order(values: list[Decimal]) -> None:
    assert money.total(values) == money.total(list(reversed(values))) == sum(values, Decimal(0))


def test_a_product_that_does_not_fit_is_an_error_and_not_a_rounded_number() -> None:
    with pytest.raises(Inexact):
        money.multiply(Decimal("1." + "1" * 60), Decimal("1." + "3" * 60))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 1",
        "1 ",
        "1_000",
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "1e400",
        "1e24",
        "0." + "0" * 18 + "1",
        "x",
        "0x1",
        "12\u0663",
    ],
)
def test_text_that_is_not_a_plain_finite_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        money.parse_decimal(text, what="amount")
    assert caught.value.code == "INVALID_NUMBER"


@pytest.mark.parametrize(
    ("text", "plain"), [("1.500", "1.5"), ("-0.0", "0"), ("1E+3", "1000"), ("0E-8", "0"), ("100", "100")]
)
def test_plain_text_has_one_spelling_for_each_number(text: str, plain: str) -> None:
    assert money.plain(Decimal(text)) == plain


@given(amounts)
def test_plain_text_reads_back_as_the_same_number(value: Decimal) -> None:
    assert money.parse_decimal(money.plain(value)) == value


def test_difference_in_basis_points_is_signed() -> None:
    assert money.difference_bps(Decimal(101), Decimal(100)) == 100
    assert money.difference_bps(Decimal(99), Decimal(100)) == -100
    assert money.bps_of(Decimal(200), Decimal(50)) == 1
