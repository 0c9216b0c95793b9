"""What the market says, and how old it is.

Every value carries three times in integer milliseconds since the epoch, UTC: ``venue_ts_ms`` (the venue's clock),
``received_ts_ms`` (the source's clock on arrival) and ``published_ts_ms`` (the desk's clock when the market room
signed it). A recording keeps its first two; in paper mode its age is measured from the third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from trading.domain.identifiers import TradeId
from trading.domain.instruments import InstrumentId
from trading.domain.money import BPS, ZERO, add, divide, multiply, subtract


class Feed(StrEnum):
    """Where a value comes from. Testnet and live accept only ``LIVE``."""

    LIVE = "live"
    REPLAY = "replay"
    SYNTHETIC = "synthetic"


class Side(StrEnum):
    """The direction of an order or of the aggressor of a trade."""

    BUY = "buy"
    SELL = "sell"

    @property
    def opposite(self) -> Side:
        """The other side."""
        return Side.SELL if self is Side.BUY else Side.BUY

    @property
    def sign(self) -> int:
        """+1 for a buy, -1 for a sell."""
        return 1 if self is Side.BUY else -1


class Level(NamedTuple):
    """A price in quote per base and the quantity in base that rests there."""

    price: Decimal
    quantity: Decimal


class WalkedBook(NamedTuple):
    """The outcome of taking a quantity out of one side of a book.

    Attributes:
        filled: base that the book could give.
        notional: quote exchanged for it, exactly.
        worst_price: the last level touched; None when nothing was filled.
    """

    filled: Decimal
    notional: Decimal
    worst_price: Decimal | None

    @property
    def average_price(self) -> Decimal | None:
        """Volume-weighted average price to 34 digits; None when nothing was filled."""
        return divide(self.notional, self.filled) if self.filled else None


@dataclass(frozen=True, slots=True)
class OrderBook:
    """One instant of an instrument's book, best level first on both sides.

    Attributes:
        bids: descending by price.
        asks: ascending by price.
        sequence: strictly increasing per instrument; gaps are the market room's business.
    """

    instrument_id: InstrumentId
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    sequence: int
    venue_ts_ms: int
    received_ts_ms: int
    published_ts_ms: int
    feed: Feed

    @property
    def best_bid(self) -> Level | None:
        """Highest bid, None when that side is empty."""
        return self.bids[0] if self.bids else None

    @property
    def best_ask(self) -> Level | None:
        """Lowest ask, None when that side is empty."""
        return self.asks[0] if self.asks else None

    @property
    def is_two_sided(self) -> bool:
        """Whether both sides exist and are not crossed or locked; only such a book may price an order."""
        return bool(self.bids) and bool(self.asks) and self.bids[0].price < self.asks[0].price

    @property
    def mid(self) -> Decimal | None:
        """Half way between best bid and ask, exactly; None unless two-sided."""
        if not self.is_two_sided:
            return None
        return multiply(add(self.bids[0].price, self.asks[0].price), Decimal("0.5"))

    @property
    def spread_bps(self) -> Decimal | None:
        """Spread over mid in basis points; None unless two-sided."""
        mid = self.mid
        if mid is None:
            return None
        return multiply(divide(subtract(self.asks[0].price, self.bids[0].price), mid), BPS)

    def age_ms(self, now_ms: int) -> int:
        """Return milliseconds since the market room published this; never negative.

        A recording's own times lie in the past by design, so publication is what ages (paper only).
        Live feeds must also be checked against ``venue_ts_ms``.
        """
        return max(0, now_ms - self.published_ts_ms)

    def walk(self, side: Side, quantity: Decimal, *, limit_price: Decimal | None = None) -> WalkedBook:
        """Return what an aggressive order would get from this book.

        Args:
            side: the order's side; a buy walks the asks.
            quantity: base, > 0.
            limit_price: stop before a worse price; None walks the whole book.
        """
        return walk_levels(
            self.asks if side is Side.BUY else self.bids,
            side,
            quantity,
            limit_price=limit_price,
        )


def walk_levels(
    levels: Sequence[Level],
    side: Side,
    quantity: Decimal,
    *,
    limit_price: Decimal | None = None,
) -> WalkedBook:
    """Take ``quantity`` (base, > 0) from ``levels`` (best first) without passing ``limit_price``."""
    remaining, notional, worst = quantity, ZERO, None
    for price, available in levels:
        if remaining <= 0 or (limit_price is not None and is_worse(price, limit_price, side)):
            break
        taken = min(remaining, available)
        notional = add(notional, multiply(taken, price))
        remaining = subtract(remaining, taken)
        worst = price
    return WalkedBook(subtract(quantity, remaining), notional, worst)


def is_worse(price: Decimal, reference: Decimal, side: Side) -> bool:
    """Return whether ``price`` is worse than ``reference`` for an order on ``side``."""
    return price > reference if side is Side.BUY else price < reference


@dataclass(frozen=True, slots=True)
class TradePrint:
    """A trade that happened at the venue between others (a public print).

    Attributes:
        aggressor: side of the order that took liquidity.
    """

    instrument_id: InstrumentId
    trade_id: TradeId
    price: Decimal
    quantity: Decimal
    aggressor: Side
    sequence: int
    venue_ts_ms: int
    received_ts_ms: int
    published_ts_ms: int
    feed: Feed


@dataclass(frozen=True, slots=True)
class Candle:
    """Open, high, low and close (quote per base) and volume (base) of one interval.

    Attributes:
        open_ts_ms: start of the interval on the venue's clock, inclusive.
        closed: False while trades may still change it; indicators use closed candles only.
    """

    instrument_id: InstrumentId
    interval_ms: int
    open_ts_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    trades: int
    closed: bool
