"""Arithmetic of pools without a chain: known values, and what must hold for any pool."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trading.adapters.chain.addresses import parse_address
from trading.adapters.chain.ratios import decimal_of, power_of_ten, root_of
from trading.adapters.chain.tokens import Token
from trading.adapters.chain.uniswap_v2 import PairState, swap_exact_in, swap_exact_out
from trading.adapters.chain.v3_math import (
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    MIN_TICK,
    Q96,
    amount0_between,
    amount1_between,
    sqrt_ratio_at,
    swap_step,
)
from trading.domain.errors import InvalidValue

RATIOS = st.integers(MIN_SQRT_RATIO, MAX_SQRT_RATIO - 1)
LIQUIDITY = st.integers(1, 2**128 - 1)


def test_prices_of_ticks_are_those_of_the_contracts() -> None:
    assert sqrt_ratio_at(MIN_TICK) == MIN_SQRT_RATIO
    assert sqrt_ratio_at(MAX_TICK) == MAX_SQRT_RATIO
    assert sqrt_ratio_at(0) == Q96
    assert sqrt_ratio_at(MIN_TICK + 1) == 4_295_343_490  # from the tests of TickMath
    assert sqrt_ratio_at(MAX_TICK - 1) == 1_461_373_636_630_004_318_706_518_188_784_493_106_690_254_656_249
    for tick in (MIN_TICK - 1, MAX_TICK + 1):
        with pytest.raises(InvalidValue):
            sqrt_ratio_at(tick)


@given(st.integers(MIN_TICK, MAX_TICK - 1))
def test_prices_rise_with_ticks_by_one_basis_point(tick: int) -> None:
    low, high = sqrt_ratio_at(tick), sqrt_ratio_at(tick + 1)
    assert low < high
    assert abs(Fraction(high * high, low * low) - Fraction(10_001, 10_000)) < Fraction(1, 10**6)


@given(RATIOS, RATIOS, LIQUIDITY)
def test_rounding_is_always_in_favour_of_the_pool_and_by_one_unit(one: int, other: int, liquidity: int) -> None:
    low, high = min(one, other), max(one, other)
    exact0 = Fraction(liquidity * Q96 * (high - low), high * low)
    exact1 = Fraction(liquidity * (high - low), Q96)
    for between, exact in ((amount0_between, exact0), (amount1_between, exact1)):
        down, up = between(one, other, liquidity, round_up=False), between(one, other, liquidity, round_up=True)
        assert down <= exact <= up
        assert up - down <= 2
        assert (down, up) == (
            between(other, one, liquidity, round_up=False),
            between(other, one, liquidity, round_up=True),
        )


@settings(max_examples=300)
@given(RATIOS, RATIOS, LIQUIDITY, st.integers(1, 2**120), st.booleans(), st.integers(1, 999_999))
def test_a_step_takes_no_more_gives_no_more_and_does_not_pass_its_target(
    price: int, target: int, liquidity: int, amount: int, exact_in: bool, fee: int
) -> None:
    found = swap_step(price, target, liquidity, amount if exact_in else -amount, fee)
    low, high = min(price, target), max(price, target)
    assert low <= found.sqrt_price <= high
    assert found.amount_in >= 0
    assert found.amount_out >= 0
    assert found.fee >= 0
    if exact_in:
        assert found.amount_in + found.fee <= amount
    else:
        assert found.amount_out <= amount
    if found.sqrt_price != target:  # then the amount is what ended it
        assert (found.amount_in + found.fee if exact_in else found.amount_out) == amount


@given(st.integers(1, 2**112), st.integers(1, 2**112), st.integers(1, 2**112), st.booleans())
def test_a_pair_never_loses_by_a_swap(reserve0: int, reserve1: int, amount: int, zero_for_one: bool) -> None:
    state = PairState(reserve0, reserve1, 0)
    held_in, held_out = (reserve0, reserve1) if zero_for_one else (reserve1, reserve0)
    try:
        swap = swap_exact_in(state, amount, zero_for_one=zero_for_one)
    except InvalidValue:
        return
    assert 0 < swap.amount_out < held_out
    assert (held_in + amount) * (held_out - swap.amount_out) >= held_in * held_out
    back = swap_exact_out(state, swap.amount_out, zero_for_one=zero_for_one)
    assert back.amount_in <= amount + 1  # the contract adds one unit where it rounds
    assert swap_exact_in(state, back.amount_in, zero_for_one=zero_for_one).amount_out >= swap.amount_out


@given(st.fractions(min_value=Fraction(1, 10**40), max_value=10**40))
def test_a_ratio_is_rounded_once_to_thirty_digits(value: Fraction) -> None:
    found = decimal_of(value)
    assert len(found.as_tuple().digits) <= 30
    assert abs(Fraction(found) - value) <= value / (2 * 10**29)


def test_roots_and_powers_are_exact_to_their_digits() -> None:
    assert root_of(Fraction(4, 9)) == Decimal("0.666666666666666666666666666667")
    assert root_of(Fraction(0)) == 0
    assert power_of_ten(-12) * power_of_ten(12) == 1


def test_amounts_are_cut_to_units_and_back_without_loss() -> None:
    token = Token("0x0", "USDC", 6)
    assert token.units(Decimal("1.2345678")) == 1_234_567
    assert token.amount(1_234_567) == Decimal("1.234567")
    for amount, code in ((Decimal("0.0000001"), "QUANTITY_TOO_SMALL"), (Decimal(10) ** 34, "INVALID_NUMBER")):
        with pytest.raises(InvalidValue) as refused:
            token.units(amount)
        assert refused.value.code == code


@pytest.mark.parametrize("text", ["", "0x", "0x12", "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0x" + "g" * 40])
def test_an_address_is_twenty_bytes_whose_spelling_is_checked(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_address(text)
    right = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
    assert parse_address(right) == parse_address(right.lower()) == right
    with pytest.raises(InvalidValue, match="checksum"):
        parse_address(right.replace("aA", "AA"))
