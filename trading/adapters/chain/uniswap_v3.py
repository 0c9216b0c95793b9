"""Uniswap v3 pools: price, liquidity, average price and exact quotes.

Source: Adams, Zinsmeister, Salem, Keefer, Robinson: Uniswap v3 Core (2021), sections 5 (oracle) and 6 (arithmetic).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final, cast

from trading.adapters.chain.abi import Function, integer
from trading.adapters.chain.errors import BadContract, CallReverted
from trading.adapters.chain.pools import NoTwap, Pool, Swap, Twap, not_enough_liquidity
from trading.adapters.chain.ratios import decimal_of, root_of
from trading.adapters.chain.snapshot import Snapshot
from trading.adapters.chain.v3_math import MAX_SQRT_RATIO, MAX_TICK, MIN_SQRT_RATIO, MIN_TICK, Q96, sqrt_ratio_at
from trading.adapters.chain.v3_walk import Start, walk

# Forks differ in what follows the first words of slot0 and of an observation.
_SLOT0: Final = Function("slot0", (), ("uint160", "int24", "uint16", "uint16"))
_LIQUIDITY: Final = Function("liquidity", (), ("uint128",))
_OBSERVATIONS: Final = Function("observations", ("uint256",), ("uint32", "int56", "uint160", "bool"))
_OBSERVE: Final = Function("observe", ("uint32[]",), ("int56[]", "uint160[]"))
_FACTORY: Final = Function("factory", (), ("address",))
_TERMS: Final = "(address,address,uint256,uint24,uint160)"
_EXACT_IN: Final = Function("quoteExactInputSingle", (_TERMS,), ("uint256", "uint160", "uint32", "uint256"))
_EXACT_OUT: Final = Function("quoteExactOutputSingle", (_TERMS,), ("uint256", "uint160", "uint32", "uint256"))
_STAMP: Final = 1 << 32  # pools count seconds modulo this


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool at one block.

    Attributes:
        sqrt_price: root of token1 per token0 in units, Q64.96.
        tick: the pool's own.
        liquidity: in range.
        observation: index of the newest one.
        cardinality: observations that the pool keeps.
    """

    sqrt_price: int
    tick: int
    liquidity: int
    observation: int
    cardinality: int


async def read_state(at: Snapshot, pool: Pool) -> PoolState:
    """Return price, tick and liquidity.

    Raises:
        BadContract: they make no sense.
        TradingError: as :meth:`Snapshot.call`; NOT_ENOUGH_LIQUIDITY when the pool was never given a price.
    """
    slot, (liquidity,) = await asyncio.gather(at.call(pool.address, _SLOT0), at.call(pool.address, _LIQUIDITY))
    price, tick, observation, cardinality = [integer(value) for value in slot]
    if not price:
        raise not_enough_liquidity("was never given a price")
    if not (MIN_SQRT_RATIO <= price < MAX_SQRT_RATIO and MIN_TICK <= tick <= MAX_TICK):
        raise BadContract(f"{pool.address} claims a price that no v3 pool can have")
    return PoolState(price, tick, integer(liquidity), observation, cardinality)


def price_of(pool: Pool, sqrt_price: int) -> Decimal:
    """Return token1 per token0, whole tokens, to ``PRICE_DIGITS`` digits, from the exact square."""
    return decimal_of(Fraction(sqrt_price * sqrt_price, Q96 * Q96) * pool.scale)


def depth_of(pool: Pool, state: PoolState) -> Decimal:
    """Return the liquidity in range in whole tokens: the root of the product of the virtual reserves."""
    return root_of(Fraction(state.liquidity**2, 10 ** (pool.token0.decimals + pool.token1.decimals)))


async def read_twap(at: Snapshot, pool: Pool, state: PoolState, window_s: int) -> Twap:
    """Return the geometric average price over the last ``window_s`` seconds, or over as many as the pool remembers.

    The average tick is rounded down as the contracts' own library does, so the price is right to one basis point.

    Raises:
        NoTwap: the pool remembers nothing from before this block.
        TradingError: as :meth:`Snapshot.call`.
    """
    age = (at.block.timestamp_s - await _oldest_s(at, pool, state)) % _STAMP
    seconds = min(window_s, age)
    reach = (
        f"the pool keeps {state.cardinality} observation(s), reaching back {age} s; "
        "anybody can make it keep more with increaseObservationCardinalityNext"
    )
    if seconds <= 0:
        raise NoTwap(f"there is no average price: {reach}", suggestion="ask again after some blocks")
    try:
        sums, _ = await at.call(pool.address, _OBSERVE, (seconds, 0))
    except CallReverted:
        raise NoTwap(f"the pool refuses to average over {seconds} s: {reach}") from None
    then, now = [integer(value) for value in cast("Sequence[object]", sums)]
    mean = price_of(pool, sqrt_ratio_at((now - then) // seconds))
    return Twap(price=mean, window_s=seconds, wanted_s=window_s, why_short="" if seconds == window_s else reach)


async def _oldest_s(at: Snapshot, pool: Pool, state: PoolState) -> int:
    """Return the time of the oldest observation: the one after the newest in the ring, once that was written."""
    if not state.cardinality:
        raise NoTwap("the pool keeps no observations")
    after = (state.observation + 1) % state.cardinality
    stamp, _, _, written = await at.call(pool.address, _OBSERVATIONS, after)
    if not written:
        stamp = (await at.call(pool.address, _OBSERVATIONS, 0))[0]
    return integer(stamp)


async def quote(
    at: Snapshot, pool: Pool, state: PoolState, amount: int, *, zero_for_one: bool, quoter: str | None = None
) -> Swap:
    """Return what a swap of one size would do.

    Args:
        at: the state it would happen in.
        pool, state: as read from it.
        amount: units that go in when positive, that come out when negative.
        zero_for_one: whether token0 goes in.
        quoter: a QuoterV2 contract of the pool's factory; without one, or when it refuses, the ticks are walked here.

    Raises:
        InvalidValue: NOT_ENOUGH_LIQUIDITY or TOO_DEEP.
        TradingError: as :meth:`Snapshot.call`.
    """
    if quoter is not None and (found := await _ask_quoter(at, pool, amount, quoter, zero_for_one=zero_for_one)):
        return found
    start = Start(state.sqrt_price, state.tick, state.liquidity)
    return await walk(at, pool, start, amount, zero_for_one=zero_for_one)


async def _ask_quoter(at: Snapshot, pool: Pool, amount: int, quoter: str, *, zero_for_one: bool) -> Swap | None:
    """Return the contract's own answer, or None where it has none: it looks pools up at one factory alone."""
    sold, bought = (pool.token0, pool.token1) if zero_for_one else (pool.token1, pool.token0)
    terms = (sold.address, bought.address, abs(amount), pool.fee_pips, 0)
    try:
        (factory,) = await at.call(quoter, _FACTORY)
        if str(factory).lower() != pool.factory.lower():
            return None
        answer = await at.call(quoter, _EXACT_IN if amount > 0 else _EXACT_OUT, terms)
    except (CallReverted, BadContract):
        return None
    other, price_after, _, _ = [integer(value) for value in answer]
    if price_after in (MIN_SQRT_RATIO + 1, MAX_SQRT_RATIO - 1):
        return None  # the pool ran dry and the contract does not say how much was left over
    amount_in, amount_out = (amount, other) if amount > 0 else (other, -amount)
    if not amount_out:
        raise not_enough_liquidity("gives nothing for so little")
    return Swap(
        zero_for_one=zero_for_one,
        amount_in=amount_in,
        amount_out=amount_out,
        method="quoter",  # its count of ticks is off by some where ticks are negative, and is not passed on
    )
