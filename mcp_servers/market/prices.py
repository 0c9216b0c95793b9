"""The newest prices: tickers, books and what an order would get, from memory alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.sources.base import SourceStatus
from mcp_servers.tool_errors import did_you_mean
from trading.adapters.market_stream import InstrumentStatus, MarketFeed, Subscription
from trading.domain.errors import InvalidValue, StaleData, Unavailable, UnknownInstrument
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side, TradePrint, WalkedBook
from trading.domain.money import ZERO, difference_bps, divide, multiply, quantize_nearest, subtract
from trading.ports.clock import Clock

DAY_MS: Final = 86_400_000


def _same_asset(symbol: str, near: Sequence[str]) -> bool:
    return bool(near) and symbol.upper().startswith(near[0].partition("/")[0])


@dataclass(frozen=True, slots=True)
class Tick:
    """Everything a ticker shows of one instrument."""

    instrument: Instrument
    book: OrderBook | None
    last: TradePrint | None
    volume: Decimal
    age_ms: int | None
    stale: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a market order would get; amounts as in ``schemas.FillEstimate``."""

    instrument: Instrument
    requested: Decimal
    walked: WalkedBook
    fee: Decimal
    impact_bps: Decimal | None
    age_ms: int


class Prices:
    """Answers from the newest values; never waits.

    Args:
        feed: the books and trades of this desk.
        candles: built from the same trades.
        venue: whose data it is.
        aliases: other venue names a caller may use for it (the paper venue trades on this book).
        max_age_ms: older books are stale.
        source: how the source is, for when nothing has arrived from it.
    """

    def __init__(
        self,
        feed: MarketFeed,
        candles: CandleStore,
        clock: Clock,
        *,
        venue: Venue,
        aliases: Sequence[Venue] = (),
        max_age_ms: int,
        source: Callable[[], SourceStatus],
    ) -> None:
        self._feed = feed
        self._candles = candles
        self._clock = clock
        self.venue = venue
        self._aliases = frozenset((venue, *aliases))
        self.max_age_ms = max_age_ms
        self._source = source

    def instrument(self, symbol: str, venue: str | None = None) -> Instrument:
        """Return the rules of a symbol.

        Raises:
            UnknownInstrument: with the nearest names. InvalidValue: another venue.
            Unavailable: the source has not given any rules yet; ``code`` says why.
        """
        if venue is not None and venue not in self._aliases:
            raise InvalidValue(
                "this desk has no market data of that venue", code="UNKNOWN_VENUE", allowed=tuple(sorted(self._aliases))
            )
        found = self._feed.instrument(InstrumentId(self.venue, Symbol(symbol)))
        if found is not None:
            return found
        known = self._feed.instruments()
        if not known:
            status = self._source()
            raise Unavailable(
                status.message or "the market source has not started yet",
                code=status.code or "MARKET_STARTING",
                suggestion="ask market_get_status",
            )
        names = tuple(item.symbol for item in known)
        near = did_you_mean(symbol, names)
        raise UnknownInstrument(
            f"{self.venue} has no {symbol[:41]!r} here",
            # Another base is another asset: ETH/USDT is not a way to write BTC/USDT.
            suggestion=f"did you mean {near[0]}?" if _same_asset(symbol, near) else "use market_search_instruments",
            allowed=near or names[:10],
        )

    def search(self, query: str) -> list[Instrument]:
        """Return instruments whose symbol, base or quote contains ``query``, best match first."""
        wanted = "".join(character for character in query.upper() if character.isalnum())

        def rank(item: Instrument) -> tuple[int, str]:
            compact = item.symbol.replace("/", "")
            return (0 if compact == wanted or item.base == wanted else 1 if compact.startswith(wanted) else 2, compact)

        return sorted((i for i in self._feed.instruments() if wanted in i.symbol.replace("/", "")), key=rank)

    def tick(self, symbol: str, venue: str | None = None) -> Tick:
        """Return the ticker of a symbol; raises as ``instrument`` does."""
        instrument = self.instrument(symbol, venue)
        book, last = self._feed.book(instrument.id), self._feed.last_trade(instrument.id)
        age = None if book is None else book.age_ms(self._clock.now_ms())
        volume = self._candles.volume(instrument.id, DAY_MS)
        return Tick(instrument, book, last, volume, age, stale=book is None or self.is_stale(book))

    def book(self, symbol: str, venue: str | None = None) -> OrderBook:
        """Return the newest book, however old.

        Raises:
            StaleData: there has been none yet. Otherwise as ``instrument``.
        """
        instrument = self.instrument(symbol, venue)
        book = self._feed.book(instrument.id)
        if book is None:
            raise StaleData("no book has arrived yet", code="NO_BOOK", suggestion="ask market_get_status")
        return book

    def age_ms(self, book: OrderBook) -> int:
        """Return milliseconds since the book was published."""
        return book.age_ms(self._clock.now_ms())

    def is_stale(self, book: OrderBook) -> bool:
        """Return whether no order may be priced from this book: too old, empty or crossed."""
        return self.age_ms(book) > self.max_age_ms or not book.is_two_sided

    def estimate(
        self, symbol: str, side: Side, amount: Decimal, unit: Literal["base", "quote"], venue: str | None = None
    ) -> Estimate:
        """Return what a market order would get from the book as it is now.

        Args:
            amount: > 0, in base or in quote without fees.

        Raises:
            StaleData: the book is too old, empty or crossed. InvalidValue: smaller than one step.
        """
        instrument = self.instrument(symbol, venue)
        book = self.book(symbol, venue)
        age = self.age_ms(book)
        mid = book.mid
        if mid is None or age > self.max_age_ms:
            reason = f"it is {age} ms old" if mid is not None else "it is empty or crossed"
            raise StaleData(f"the book of {symbol} cannot be used: {reason}", suggestion="ask market_get_status")
        levels = book.asks if side is Side.BUY else book.bids
        base = amount if unit == "base" else base_for_quote(levels, amount)
        quantity = instrument.quantity_floor(base)
        if quantity <= ZERO:
            least = instrument.smallest_quantity(levels[0].price)
            raise InvalidValue(
                "the amount is smaller than one step", code="QUANTITY_TOO_SMALL", suggestion=f"at least {least} base"
            )
        walked = book.walk(side, quantity)
        vwap = walked.average_price
        impact = None if vwap is None else multiply(difference_bps(vwap, mid), Decimal(side.sign))
        fee = multiply(walked.notional, instrument.taker_fee)
        return Estimate(instrument, quantity, walked, fee, None if impact is None else quantize_nearest(impact, 4), age)

    def subscribe_books(self) -> Subscription[OrderBook]:
        """Return every instrument's books from now on; one that waits is replaced by a newer one."""
        return self._feed.subscribe_books()

    def newest(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book, None before the first."""
        return self._feed.book(instrument_id)

    def feeds(self) -> tuple[InstrumentStatus, ...]:
        """Return the ages of every instrument."""
        return self._feed.status().instruments


def base_for_quote(levels: Sequence[tuple[Decimal, Decimal]], amount: Decimal) -> Decimal:
    """Return how much base ``amount`` of quote buys or must be sold for, walking ``levels`` (best first).

    What the levels cannot give is counted at the last price, so that it shows as unfilled.
    """
    remaining, base, last = amount, ZERO, ZERO
    for price, quantity in levels:
        value, last = multiply(price, quantity), price
        if value >= remaining:
            return base + divide(remaining, price)
        remaining, base = subtract(remaining, value), base + quantity
    return base + divide(remaining, last)
