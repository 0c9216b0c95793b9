"""Quotes a swap on a v3 pool by walking its ticks as the pool would, from one block's state.

The pool steps from one initialized tick to the next, and also stops at the end of every word of its bitmap (256 ticks
apart in units of the tick spacing). Those stops round, so they are made here as well.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from trading.adapters.chain.abi import Function, integer
from trading.adapters.chain.pools import Pool, Swap, not_enough_liquidity
from trading.adapters.chain.snapshot import Snapshot
from trading.adapters.chain.v3_math import (
    MAX_SQRT_RATIO,
    MAX_TICK,
    MIN_SQRT_RATIO,
    MIN_TICK,
    sqrt_ratio_at,
    swap_step,
)
from trading.domain.errors import InvalidValue

_BITMAP: Final = Function("tickBitmap", ("int16",), ("uint256",))
_TICKS: Final = Function("ticks", ("int24",), ("uint128", "int128"))
_MAX_TICKS: Final = 256  # initialized ticks crossed at most
_MAX_WORDS: Final = 1_024
_READ_AHEAD: Final = 16  # words asked for at once, after the first few


@dataclass(frozen=True, slots=True)
class Start:
    """Where a swap begins.

    Attributes:
        sqrt_price: Q64.96.
        tick: the pool's own word for it, which differs from the price's tick right after a crossing downwards.
        liquidity: in range.
    """

    sqrt_price: int
    tick: int
    liquidity: int


class TickReader:
    """Reads bitmap words ahead in one direction, and what liquidity changes at a tick."""

    def __init__(self, at: Snapshot, pool: Pool, *, zero_for_one: bool) -> None:
        self._at = at
        self._pool = pool
        self._step = -1 if zero_for_one else 1
        self._words: dict[int, int] = {}
        self._ahead = 1

    async def word(self, position: int) -> int:
        """Return 256 ticks' bits.

        Raises:
            InvalidValue: TOO_DEEP: more words than one quote may read.
        """
        if position not in self._words:
            if len(self._words) >= _MAX_WORDS:
                raise _too_deep()
            asked = [position + self._step * index for index in range(self._ahead)]
            asked = [item for item in asked if self._may_hold_ticks(item)] or [position]
            found = await asyncio.gather(*(self._at.call(self._pool.address, _BITMAP, item) for item in asked))
            self._words.update(zip(asked, (integer(row[0]) for row in found), strict=True))
            self._ahead = min(self._ahead * 2, _READ_AHEAD)
        return self._words[position]

    async def liquidity_net(self, tick: int) -> int:
        """Return how much liquidity begins at a tick, going up; negative where it ends."""
        return integer((await self._at.call(self._pool.address, _TICKS, tick))[1])

    def _may_hold_ticks(self, position: int) -> bool:
        return MIN_TICK // self._pool.tick_spacing >> 8 <= position <= MAX_TICK // self._pool.tick_spacing >> 8


async def walk(at: Snapshot, pool: Pool, start: Start, amount: int, *, zero_for_one: bool) -> Swap:
    """Return what a swap would do, equal to the last unit to what the pool does.

    Args:
        at: the state to walk on.
        pool: a v3 pool.
        start: where its price is in that state.
        amount: units that go in when positive, that come out when negative.
        zero_for_one: whether token0 goes in.

    Raises:
        InvalidValue: NOT_ENOUGH_LIQUIDITY or TOO_DEEP.
        TradingError: as :meth:`Snapshot.call`.
    """
    reader = TickReader(at, pool, zero_for_one=zero_for_one)
    limit = MIN_SQRT_RATIO + 1 if zero_for_one else MAX_SQRT_RATIO - 1
    price, tick, liquidity = start.sqrt_price, start.tick, start.liquidity
    remaining, spent, received, crossed = amount, 0, 0, 0
    while remaining and price != limit:
        following, initialized = await _next_tick(reader, tick, pool.tick_spacing, zero_for_one=zero_for_one)
        following = max(MIN_TICK, min(MAX_TICK, following))
        boundary = sqrt_ratio_at(following)
        target = max(boundary, limit) if zero_for_one else min(boundary, limit)
        step = swap_step(price, target, liquidity, remaining, pool.fee_pips)
        price, spent, received = step.sqrt_price, spent + step.amount_in + step.fee, received + step.amount_out
        remaining += step.amount_out if amount < 0 else -(step.amount_in + step.fee)
        if price != boundary:
            break  # used up, or at the last price there is
        if initialized:
            crossed += 1
            if crossed > _MAX_TICKS:
                raise _too_deep()
            net = await reader.liquidity_net(following)
            liquidity += -net if zero_for_one else net
            if liquidity < 0:
                raise InvalidValue("the pool's ticks do not add up", code="GARBAGE")
        tick = following - 1 if zero_for_one else following
    if remaining:
        raise not_enough_liquidity(f"can use only {_share(amount, remaining)} of that amount")
    if not received:
        raise not_enough_liquidity("gives nothing for so little")
    return Swap(
        zero_for_one=zero_for_one, amount_in=spent, amount_out=received, method="tick-walk", ticks_crossed=crossed
    )


def _share(amount: int, remaining: int) -> str:
    return f"{(abs(amount) - abs(remaining)) * 100 // abs(amount)} %"


async def _next_tick(reader: TickReader, tick: int, spacing: int, *, zero_for_one: bool) -> tuple[int, bool]:
    """Return the next stop within the current word, and whether a position begins or ends there."""
    index = tick // spacing
    if zero_for_one:
        bit = index & 255
        found = await reader.word(index >> 8) & ((2 << bit) - 1)
        stop = found.bit_length() - 1 if found else 0
        return (index - bit + stop) * spacing, bool(found)
    index += 1
    bit = index & 255
    found = await reader.word(index >> 8) >> bit << bit
    stop = (found & -found).bit_length() - 1 if found else 255
    return (index - bit + stop) * spacing, bool(found)


def _too_deep() -> InvalidValue:
    return InvalidValue(
        f"the amount crosses more than {_MAX_TICKS} ticks of the pool", code="TOO_DEEP", suggestion="ask for less"
    )
