"""The integer arithmetic of Uniswap v3: prices of ticks, amounts between prices, one step of a swap.

Pure. Every division rounds as the contracts round, always in the pool's favour, so results are equal to the last unit.

Source: Adams, Zinsmeister, Salem, Keefer, Robinson: Uniswap v3 Core (2021), sections 6.1-6.3; widths and rounding as
the deployed contracts define them. Square roots of prices are Q64.96: the root of units of token1 per unit of token0,
times 2**96.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import Final

from trading.adapters.chain.pools import PIPS
from trading.domain.errors import InvalidValue

MIN_TICK: Final = -887_272
MAX_TICK: Final = 887_272
Q96: Final = 1 << 96

_Q32: Final = 1 << 32
_Q128: Final = 1 << 128
_WORD: Final = 1 << 256
_UINT160: Final = 1 << 160
_TICK_BITS: Final = 20
_ENOUGH_DIGITS: Final = 80


@lru_cache(maxsize=1)
def _powers() -> tuple[int, ...]:
    """Return 1.0001 to the powers of -1/2, -1, -2, -4 … as Q128.128, to the nearest integer."""
    wide = Context(prec=_ENOUGH_DIGITS)
    power, found = wide.divide(Decimal(1), wide.sqrt(Decimal("1.0001"))), list[int]()
    for _ in range(_TICK_BITS):
        found.append(int(wide.to_integral_value(wide.multiply(power, Decimal(_Q128)))))
        power = wide.multiply(power, power)
    return tuple(found)


@lru_cache(maxsize=4_096)
def sqrt_ratio_at(tick: int) -> int:
    """Return the root of the price at a tick, Q64.96.

    Args:
        tick: between ``MIN_TICK`` and ``MAX_TICK``.

    Raises:
        InvalidValue: outside of that.
    """
    if not MIN_TICK <= tick <= MAX_TICK:
        raise InvalidValue("no such tick", code="GARBAGE")
    ratio = _Q128
    for bit, power in enumerate(_powers()):
        if abs(tick) >> bit & 1:
            ratio = ratio * power >> 128
    if tick > 0:
        ratio = (_WORD - 1) // ratio
    return _up(ratio, _Q32)


MIN_SQRT_RATIO: Final = 4_295_128_739  # at MIN_TICK
MAX_SQRT_RATIO: Final = 1_461_446_703_485_210_103_287_273_052_203_988_822_378_723_970_342  # at MAX_TICK


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a swap, within constant liquidity.

    Attributes:
        sqrt_price: where the price ends, Q64.96.
        amount_in: units that went in, without the fee.
        amount_out: units that came out.
        fee: units of the fee, on top of ``amount_in``.
    """

    sqrt_price: int
    amount_in: int
    amount_out: int
    fee: int


def swap_step(sqrt_price: int, target: int, liquidity: int, remaining: int, fee_pips: int) -> Step:
    """Return what one step does: it ends at ``target`` or when the amount is used up.

    Args:
        sqrt_price, target: roots of prices, Q64.96; a target at or below the price means token0 goes in.
        liquidity: in range, >= 0.
        remaining: units still to go in when positive, still to come out when negative.
        fee_pips: millionths of what goes in.
    """
    zero_for_one, exact_in = sqrt_price >= target, remaining >= 0
    if exact_in:
        usable = remaining * (PIPS - fee_pips) // PIPS
        reached = usable >= _input(sqrt_price, target, liquidity, zero_for_one=zero_for_one)
    else:
        usable = -remaining
        reached = usable >= _output(sqrt_price, target, liquidity, zero_for_one=zero_for_one)
    if reached:
        end = target
    elif exact_in:
        end = _after_input(sqrt_price, liquidity, usable, zero_for_one=zero_for_one)
    else:
        end = _after_output(sqrt_price, liquidity, usable, zero_for_one=zero_for_one)
    amount_in = _input(sqrt_price, end, liquidity, zero_for_one=zero_for_one)
    amount_out = _output(sqrt_price, end, liquidity, zero_for_one=zero_for_one)
    if not exact_in:
        amount_out = min(amount_out, usable)
    # A last step that does not reach its target keeps what rounding leaves over.
    fee = remaining - amount_in if exact_in and end != target else _up(amount_in * fee_pips, PIPS - fee_pips)
    return Step(end, amount_in, amount_out, fee)


def amount0_between(one: int, other: int, liquidity: int, *, round_up: bool) -> int:
    """Return the units of token0 that ``liquidity`` holds between two roots of prices."""
    low, high = min(one, other), max(one, other)
    scaled = (liquidity << 96) * (high - low)
    return _up(_up(scaled, high), low) if round_up else scaled // high // low


def amount1_between(one: int, other: int, liquidity: int, *, round_up: bool) -> int:
    """Return the units of token1 that ``liquidity`` holds between two roots of prices."""
    scaled = liquidity * abs(one - other)
    return _up(scaled, Q96) if round_up else scaled // Q96


def _input(start: int, end: int, liquidity: int, *, zero_for_one: bool) -> int:
    between = amount0_between if zero_for_one else amount1_between
    return between(start, end, liquidity, round_up=True)


def _output(start: int, end: int, liquidity: int, *, zero_for_one: bool) -> int:
    between = amount1_between if zero_for_one else amount0_between
    return between(start, end, liquidity, round_up=False)


def _after_input(price: int, liquidity: int, amount: int, *, zero_for_one: bool) -> int:
    """Return the root of the price after ``amount`` went in, rounded so that the target is not passed."""
    if not zero_for_one:
        return price + amount * Q96 // liquidity
    if not amount:
        return price
    whole = liquidity << 96
    product = amount * price
    if product < _WORD and whole + product < _WORD:
        return _up(whole * price, whole + product)
    return _up(whole, whole // price + amount)  # where the contract's 256 bits are too few for the precise form


def _after_output(price: int, liquidity: int, amount: int, *, zero_for_one: bool) -> int:
    """Return the root of the price after ``amount`` came out, rounded so that it is far enough."""
    if zero_for_one:
        return price - _up(amount * Q96, liquidity)
    whole = liquidity << 96
    return _up(whole * price, whole - amount * price)


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
