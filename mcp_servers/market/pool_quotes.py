"""What a swap of one size would get from one Uniswap pool, in the tokens' own names and whole amounts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal

from trading.adapters.chain import uniswap_v2, uniswap_v3
from trading.adapters.chain.pools import PIPS, NoTwap, Pool, Swap, Twap
from trading.adapters.chain.ratios import decimal_of
from trading.adapters.chain.snapshot import Snapshot
from trading.adapters.chain.tokens import Token
from trading.domain.errors import InvalidValue
from trading.domain.money import MAX_MAGNITUDE, MAX_SCALE, difference_bps, quantize_nearest

SideName = Literal["buy", "sell"]
Unit = Literal["base", "quote"]

#: From here on a price is marked as away from its own average: it was just moved, perhaps for one block only.
_OFF_AVERAGE_BPS: Final = 100
_BPS_PLACES: Final = 4


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for.

    Attributes:
        base: the token bought or sold; the other one of the pool is the quote.
        side: buy or sell, of base.
        amount: > 0, whole tokens.
        unit: of which token ``amount`` is.
    """

    base: str
    side: SideName
    amount: Decimal
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolQuote:
    """One pool's answer; prices in quote per base, amounts in whole tokens.

    Attributes:
        pool: which one.
        base, quote: its tokens, in the order asked for.
        price: in the pool at the block, before the swap and without fee.
        liquidity: root of base times quote in range: how deep the pool is at its price.
        twap: average price up to the block; None when there is none.
        deviation_bps: how far the price is above its average.
        pays, gets: amounts in and out; a buyer pays quote and gets base. The fee is in ``pays``.
        average_price: what the swap as a whole pays per base, fee included.
        impact_bps: how much worse than ``price``, fee not counted.
        fee: part of ``pays``.
        method: how the amount was computed.
        marks: ``NO_TWAP``, ``SHORT_TWAP``, ``OFF_TWAP``.
        notes: the reasons behind marks, in words.
    """

    pool: Pool
    base: Token
    quote: Token
    price: Decimal
    liquidity: Decimal
    twap: Twap | None
    deviation_bps: Decimal | None
    pays: Decimal
    gets: Decimal
    average_price: Decimal
    impact_bps: Decimal
    fee: Decimal
    method: str
    marks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PoolQuoter:
    """Prices swaps on one pool; remembers what a v2 pair's average needs.

    Args:
        pool: the pool.
        twap_s: seconds to average over.
        quoter: a QuoterV2 contract, or None.
    """

    def __init__(self, pool: Pool, *, twap_s: int, quoter: str | None) -> None:
        self.pool = pool
        self._twap_s = twap_s
        self._quoter = quoter
        self._pair_twap = uniswap_v2.PairTwap()

    async def quote(self, at: Snapshot, order: Order) -> PoolQuote:
        """Return what ``order`` would get.

        Raises:
            InvalidValue: NOT_ENOUGH_LIQUIDITY, TOO_DEEP, QUANTITY_TOO_SMALL or OUT_OF_RANGE.
            TradingError: the chain could not be read.
        """
        direct = order.base == self.pool.token0.address
        base, quote = (self.pool.token0, self.pool.token1) if direct else (self.pool.token1, self.pool.token0)
        units = (base if order.unit == "base" else quote).units(order.amount)
        exact_in = (order.side == "sell") == (order.unit == "base")
        zero_for_one = (order.side == "sell") == direct
        marks, notes = list[str](), list[str]()
        found = await self._read(at, units if exact_in else -units, zero_for_one, marks, notes)
        price, twap, depth, swap = found
        if not direct:
            price = decimal_of(1 / Fraction(price))
            # An average turned around is the harmonic instead of the arithmetic one; v3's geometric stays itself.
            twap = replace(twap, price=decimal_of(1 / Fraction(twap.price))) if twap and twap.price else None
        deviation = difference_bps(price, twap.price) if twap and twap.price else None
        if deviation is not None and abs(deviation) > _OFF_AVERAGE_BPS:
            marks.append("OFF_TWAP")
        paid, got = (base, quote) if order.side == "sell" else (quote, base)
        return PoolQuote(
            pool=self.pool,
            base=base,
            quote=quote,
            price=_readable(price, f"{base.symbol}/{quote.symbol}"),
            liquidity=_readable(depth, "the liquidity"),
            twap=twap and replace(twap, price=_readable(twap.price, "the average price")),
            deviation_bps=None if deviation is None else quantize_nearest(deviation, _BPS_PLACES),
            pays=_readable(paid.amount(swap.amount_in), "the amount"),
            gets=_readable(got.amount(swap.amount_out), "the amount"),
            fee=quantize_nearest(
                decimal_of(Fraction(paid.amount(swap.amount_in)) * self.pool.fee_pips / PIPS), MAX_SCALE
            ),
            method=swap.method,
            marks=tuple(marks),
            notes=tuple(notes),
            **_averages(
                order.side, price, paid.amount(swap.amount_in), got.amount(swap.amount_out), self.pool.fee_pips
            ),
        )

    async def _read(
        self, at: Snapshot, amount: int, zero_for_one: bool, marks: list[str], notes: list[str]
    ) -> tuple[Decimal, Twap | None, Decimal, Swap]:
        """Return price and average of token1 per token0, depth, and the swap."""
        pool, twap = self.pool, None
        if pool.version == "v2":
            pair = await uniswap_v2.read_pair(at, pool)
            swap = (
                uniswap_v2.swap_exact_in(pair, amount, zero_for_one=zero_for_one)
                if amount > 0
                else uniswap_v2.swap_exact_out(pair, -amount, zero_for_one=zero_for_one)
            )
            price, depth = uniswap_v2.price_of(pool, pair), uniswap_v2.depth_of(pool, pair)
            averaging = self._pair_twap.read(at, pool, pair, self._twap_s)
        else:
            state = await uniswap_v3.read_state(at, pool)
            swap = await uniswap_v3.quote(at, pool, state, amount, zero_for_one=zero_for_one, quoter=self._quoter)
            price, depth = uniswap_v3.price_of(pool, state.sqrt_price), uniswap_v3.depth_of(pool, state)
            averaging = uniswap_v3.read_twap(at, pool, state, self._twap_s)
        try:
            twap = await averaging
        except NoTwap as reason:
            marks.append("NO_TWAP")
            notes.append(str(reason))
        if twap is not None and twap.why_short:
            marks.append("SHORT_TWAP")
            notes.append(twap.why_short)
        return price, twap, depth, swap


def _averages(side: SideName, price: Decimal, paid: Decimal, got: Decimal, fee_pips: int) -> dict[str, Decimal]:
    """Return what the swap pays per base, and how much worse that is than ``price`` when the fee is left out."""
    whole, spot = Fraction(paid), Fraction(price)
    used = whole * (PIPS - fee_pips) / PIPS
    if side == "sell":
        average, net = Fraction(got) / whole, Fraction(got) / used
        worse = (spot - net) / spot
    else:
        average, net = whole / Fraction(got), used / Fraction(got)
        worse = (net - spot) / spot
    return {
        "average_price": _readable(decimal_of(average), "the average price"),
        "impact_bps": quantize_nearest(decimal_of(worse * 10_000), _BPS_PLACES),
    }


def _readable(value: Decimal, what: str) -> Decimal:
    """Return a positive number as it is shown, with 18 decimals at most.

    Raises:
        InvalidValue: nothing of it would be left, or it is too large to be shown.
    """
    shown = quantize_nearest(value, MAX_SCALE) if value < MAX_MAGNITUDE else value
    if not shown or shown >= MAX_MAGNITUDE:
        raise InvalidValue(
            f"{what} is too {'large' if shown else 'small'} to be written with {MAX_SCALE} decimals",
            code="OUT_OF_RANGE",
            suggestion="ask for the two tokens the other way around",
        )
    return shown
