"""Uniswap v2 pairs: price, exact quote and average price.

Source: Adams, Zinsmeister, Robinson: Uniswap v2 Core (2020), sections 2.2 (oracle) and 3.2 (fee). Amounts are integers
with the contracts' rounding; a pair takes 0.3 % of what goes in.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from trading.adapters.chain.abi import Function, integer
from trading.adapters.chain.errors import BadContract, BlockGone, StateGone
from trading.adapters.chain.pools import NoTwap, Pool, Swap, Twap, not_enough_liquidity
from trading.adapters.chain.ratios import decimal_of, root_of
from trading.adapters.chain.snapshot import Snapshot
from trading.domain.errors import InvalidValue

_RESERVES: Final = Function("getReserves", (), ("uint112", "uint112", "uint32"))
_CUMULATIVE0: Final = Function("price0CumulativeLast", (), ("uint256",))
_KEPT: Final = 997  # thousandths of what goes in that count for the price
_PARTS: Final = 1_000
_Q112: Final = 1 << 112
_WORD: Final = 1 << 256
_STAMP: Final = 1 << 32  # the pair counts seconds modulo this
_REMEMBERED: Final = 128
_SPARSE_S: Final = 10  # between two observations that are kept
_SEARCHES: Final = 6


@dataclass(frozen=True, slots=True)
class PairState:
    """A pair at one block.

    Attributes:
        reserve0, reserve1: units held of each token.
        updated_s: when a swap or deposit last touched it, seconds modulo 2**32.
    """

    reserve0: int
    reserve1: int
    updated_s: int


@dataclass(frozen=True, slots=True)
class _Observation:
    """The integral over time of token1 per token0 (UQ112x112), as it stood at a block."""

    number: int
    hash: str
    timestamp_s: int
    cumulative0: int


async def read_pair(at: Snapshot, pool: Pool) -> PairState:
    """Return a pair's reserves.

    Raises:
        TradingError: as :meth:`Snapshot.call`; NOT_ENOUGH_LIQUIDITY when it is empty.
    """
    reserve0, reserve1, updated_s = [integer(value) for value in await at.call(pool.address, _RESERVES)]
    if not reserve0 or not reserve1:
        raise not_enough_liquidity("is empty")
    return PairState(reserve0, reserve1, updated_s)


def price_of(pool: Pool, state: PairState) -> Decimal:
    """Return token1 per token0, whole tokens, to ``PRICE_DIGITS`` digits."""
    return decimal_of(Fraction(state.reserve1, state.reserve0) * pool.scale)


def depth_of(pool: Pool, state: PairState) -> Decimal:
    """Return the square root of the reserves' product, in whole tokens: comparable with a v3 pool's liquidity."""
    return root_of(Fraction(state.reserve0 * state.reserve1, 10 ** (pool.token0.decimals + pool.token1.decimals)))


def swap_exact_in(state: PairState, amount_in: int, *, zero_for_one: bool) -> Swap:
    """Return what comes out for exactly ``amount_in`` units, > 0; never more than the pair holds.

    Raises:
        InvalidValue: NOT_ENOUGH_LIQUIDITY when nothing comes out.
    """
    held_in, held_out = _ordered(state, zero_for_one)
    kept = amount_in * _KEPT
    amount_out = kept * held_out // (held_in * _PARTS + kept)
    if not amount_out:
        raise not_enough_liquidity("gives nothing for so little")
    return Swap(zero_for_one=zero_for_one, amount_in=amount_in, amount_out=amount_out, method="formula")


def swap_exact_out(state: PairState, amount_out: int, *, zero_for_one: bool) -> Swap:
    """Return what must go in for exactly ``amount_out`` units, > 0.

    Raises:
        InvalidValue: NOT_ENOUGH_LIQUIDITY when the pair does not hold that much.
    """
    held_in, held_out = _ordered(state, zero_for_one)
    if amount_out >= held_out:
        raise not_enough_liquidity("does not hold that much")
    amount_in = held_in * amount_out * _PARTS // ((held_out - amount_out) * _KEPT) + 1
    return Swap(zero_for_one=zero_for_one, amount_in=amount_in, amount_out=amount_out, method="formula")


class PairTwap:
    """Average prices of one pair. A pair stores one sum only, so the sum of an earlier block is needed as well.

    That block's state is asked of the node, which has it for the last 128 blocks or, as an archive, for ever; else the
    oldest observation made here serves, if its block is still on the chain.
    """

    def __init__(self) -> None:
        self._seen: deque[_Observation] = deque(maxlen=_REMEMBERED)

    async def read(self, at: Snapshot, pool: Pool, state: PairState, window_s: int) -> Twap:
        """Return the average price over the last ``window_s`` seconds, or over as many as there are.

        Raises:
            NoTwap: no earlier sum is known yet.
            TradingError: as :meth:`Snapshot.call`.
        """
        now = await _observe(at, pool, state)
        then = await self._past(at, pool, window_s) or await self._remembered(at, window_s)
        if not self._seen or now.timestamp_s >= self._seen[-1].timestamp_s + _SPARSE_S:
            self._seen.append(now)
        seconds = now.timestamp_s - then.timestamp_s if then else 0
        if then is None or seconds <= 0:
            raise NoTwap(
                "a v2 pair's average needs two observations; the node keeps no earlier state, and this is the first",
                suggestion="ask again after some blocks, or use an archive node",
            )
        mean = Fraction((now.cumulative0 - then.cumulative0) % _WORD, seconds * _Q112)
        why = "" if seconds >= window_s else f"the oldest observation known is {seconds} s old"
        return Twap(price=decimal_of(mean * pool.scale), window_s=seconds, wanted_s=window_s, why_short=why)

    async def _past(self, at: Snapshot, pool: Pool, window_s: int) -> _Observation | None:
        """Return what the chain itself knows of the newest block at least ``window_s`` ago."""
        try:
            earlier = await _before(at, at.block.timestamp_s - window_s)
            return None if earlier is None else await _observe(earlier, pool, await read_pair(earlier, pool))
        except (StateGone, BlockGone, BadContract, InvalidValue):  # the pair may not have been there, or been empty
            return None

    async def _remembered(self, at: Snapshot, window_s: int) -> _Observation | None:
        """Return our newest observation that is old enough, else the oldest; those of lost branches are dropped."""
        target = at.block.timestamp_s - window_s
        for found in sorted(self._seen, key=lambda item: (item.timestamp_s > target, abs(item.timestamp_s - target))):
            try:
                if (await at.client.block(found.number)).hash == found.hash:
                    return found
            except BlockGone:
                pass
            with contextlib.suppress(ValueError):  # another question may have dropped it meanwhile
                self._seen.remove(found)
        return None


async def _observe(at: Snapshot, pool: Pool, state: PairState) -> _Observation:
    """Return the sum as it would be if the pair were touched in this block (it only adds up when touched)."""
    (stored,) = await at.call(pool.address, _CUMULATIVE0)
    elapsed = (at.block.timestamp_s - state.updated_s) % _STAMP
    current = integer(stored) + (state.reserve1 * _Q112 // state.reserve0) * elapsed
    return _Observation(at.block.number, at.block.hash, at.block.timestamp_s, current % _WORD)


async def _before(at: Snapshot, target_s: int) -> Snapshot | None:
    """Return the state at a block not after ``target_s`` and near it, found by the spacing of blocks; None if none.

    Fewer headers are read than a bisection needs: the average wants a window of about the right length, not of it.
    """
    newest = at.block
    step = max(newest.number // 2, 1) if newest.number < 64 else 32
    for _ in range(_SEARCHES):
        if not newest.number:
            return None
        found = await at.earlier(max(newest.number - step, 0))
        missing = found.block.timestamp_s - target_s
        if missing <= 0:
            return found
        if not found.block.number:
            return None
        spacing = Fraction(newest.timestamp_s - found.block.timestamp_s, newest.number - found.block.number)
        step += int(missing / spacing) + 1 if spacing > 0 else step
    return None


def _ordered(state: PairState, zero_for_one: bool) -> tuple[int, int]:
    return (state.reserve0, state.reserve1) if zero_for_one else (state.reserve1, state.reserve0)
