"""One symbol over many venues: who is best, how far apart they are, and one book of all.

Rules kept here:

1. Only usable books take part. Who was left out, and why, is part of the answer.
2. One symbol exactly: USD and USDT are different quotes, and mixing them is refused.
3. Definitions. *index*: the median of the usable mids, the mean of the middle two when their number is even. *mid*:
   half way between the best bid and the best ask of all venues. *mark*: the median of best bid, index and best ask,
   which is the index kept within what can be traded now. Nothing is smoothed over time.
   Source of the median of three: Binance Futures, "What Are Mark Price and Price Index?".
4. A negative spread says that one venue bids above another's ask. It is before fees and transfers unless rates are
   given, and no profit by itself: coins and money must already be where they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from mcp_servers.market.quality import Judged, Mark, median
from trading.domain.errors import InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import BPS, ONE, add, difference_bps, divide, multiply, subtract

_HALF: Final = Decimal("0.5")


class VenueLevel(NamedTuple):
    """A price in quote per base, the base that rests there, and where."""

    price: Decimal
    quantity: Decimal
    venue: Venue


@dataclass(frozen=True, slots=True)
class VenueRow:
    """One venue beside the others.

    Attributes:
        mid: of its book; None when that has not two sides.
        deviation_bps: of that mid from the index, positive above it; None without one of them.
    """

    judged: Judged
    mid: Decimal | None
    deviation_bps: Decimal | None

    @property
    def venue(self) -> Venue:
        """Whose book it is."""
        return self.judged.book.instrument_id.venue


@dataclass(frozen=True, slots=True)
class Consolidated:
    """The venues of one symbol together; prices are None when no venue is usable.

    Attributes:
        bid, ask: the best of all usable venues; between equal prices the larger quantity.
        mid, index, mark: as the module defines them.
        spread_bps: best ask less best bid over mid, before fees and transfers; negative when they cross.
        rows: every venue, also those left out, in the order given.
        left_out: venues whose book is not usable, and why.
    """

    symbol: Symbol | None
    bid: VenueLevel | None
    ask: VenueLevel | None
    mid: Decimal | None
    index: Decimal | None
    mark: Decimal | None
    spread_bps: Decimal | None
    rows: tuple[VenueRow, ...]
    left_out: Mapping[Venue, tuple[Mark, ...]]


def consolidate(judged: Sequence[Judged]) -> Consolidated:
    """Return the venues of one symbol together.

    Args:
        judged: at most one book per venue.

    Raises:
        InvalidValue: books of different symbols, or two of one venue.
    """
    symbol = _one_symbol(judged)
    usable = [item for item in judged if item.usable]
    mids = [mid for item in usable if (mid := item.book.mid) is not None]
    index = median(mids)
    bid, ask = _best(judged, Side.SELL), _best(judged, Side.BUY)
    mid = mark = spread = None
    if bid is not None and ask is not None and index is not None:
        mid = multiply(add(bid.price, ask.price), _HALF)
        mark = median((bid.price, index, ask.price))
        spread = multiply(divide(subtract(ask.price, bid.price), mid), BPS)
    rows = tuple([_row(item, index) for item in judged])
    left_out = {item.book.instrument_id.venue: item.marks for item in judged if not item.usable}
    return Consolidated(symbol, bid, ask, mid, index, mark, spread, rows, left_out)


def merge(
    judged: Iterable[Judged], side: Side, rates: Mapping[Venue, Decimal] | None = None, *, depth: int | None = None
) -> list[VenueLevel]:
    """Return the levels that an order on ``side`` would meet on all usable venues, best first.

    Levels of equal price stay apart: each belongs to one venue.

    Args:
        side: a buy meets the asks.
        rates: taker fee rates of notional. With them prices include the fee: what a buyer pays or a seller gets.
        depth: levels of each venue at most; all of them by default.
    """
    levels: list[VenueLevel] = []
    for item in judged:
        if item.usable:
            levels += levels_of(item.book, side, None if rates is None else rates[item.book.instrument_id.venue])[
                :depth
            ]
    # copy_negate is exact, the operator rounds to the ambient precision.
    if side is Side.BUY:
        levels.sort(key=lambda level: (level.price, level.quantity.copy_negate(), level.venue))
    else:
        levels.sort(key=lambda level: (level.price.copy_negate(), level.quantity.copy_negate(), level.venue))
    return levels


def levels_of(book: OrderBook, side: Side, rate: Decimal | None = None) -> list[VenueLevel]:
    """Return the levels that an order on ``side`` would meet in one book, with a fee of ``rate`` in their prices."""
    venue, levels = book.instrument_id.venue, book.asks if side is Side.BUY else book.bids
    if rate is None:
        return [VenueLevel(price, quantity, venue) for price, quantity in levels]
    factor = fee_factor(side, rate)
    return [VenueLevel(multiply(price, factor), quantity, venue) for price, quantity in levels]


def fee_factor(side: Side, rate: Decimal) -> Decimal:
    """Return what a price is multiplied with to include a fee of ``rate`` of notional."""
    return add(ONE, multiply(rate, Decimal(side.sign)))


def spread_after_fees_bps(judged: Iterable[Judged], rates: Mapping[Venue, Decimal]) -> Decimal | None:
    """Return the spread of all usable venues with taker fees in both prices, before transfers; None without one."""
    known = list(judged)
    bid, ask = _best(known, Side.SELL, rates), _best(known, Side.BUY, rates)
    if bid is None or ask is None:
        return None
    middle = multiply(add(bid.price, ask.price), _HALF)
    return multiply(divide(subtract(ask.price, bid.price), middle), BPS)


def _one_symbol(judged: Sequence[Judged]) -> Symbol | None:
    symbols = sorted({item.book.instrument_id.symbol for item in judged})
    if len(symbols) > 1:
        raise InvalidValue("different symbols are never put together", code="MIXED_SYMBOLS", allowed=tuple(symbols))
    if len({item.book.instrument_id.venue for item in judged}) < len(judged):
        raise InvalidValue("a venue has one book of a symbol", code="MIXED_SYMBOLS")
    return symbols[0] if symbols else None


def _best(judged: Iterable[Judged], side: Side, rates: Mapping[Venue, Decimal] | None = None) -> VenueLevel | None:
    return next(iter(merge(judged, side, rates, depth=1)), None)


def _row(item: Judged, index: Decimal | None) -> VenueRow:
    mid = item.book.mid
    deviation = None if mid is None or index is None else difference_bps(mid, index)
    return VenueRow(item, mid, deviation)
