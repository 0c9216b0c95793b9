"""The newest prices: tickers, books and what an order would get, from memory alone.

Rules kept here:

- A caller that names no venue gets the desk's choice (``venues``); the answer names the venue really used.
- Whoever names a venue gets that one or an error, however good or bad its book is. The paper venue trades on the book
  of the desk's own venue, so its name stands for that one.
- Books are shown with their marks; nothing is priced from a marked one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.health import FeedHealth
from mcp_servers.market.quality import Judged, Mark, QualityJudge
from mcp_servers.market.settings import QualitySettings
from mcp_servers.market.sources.base import SourceStatus
from mcp_servers.market.venues import Choice, VenueBoard, describe
from mcp_servers.tool_errors import did_you_mean
from trading.adapters.market_stream import InstrumentStatus, MarketFeed, Subscription
from trading.domain.errors import InvalidValue, StaleData, Unavailable, UnknownInstrument
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, OrderBook, Side, TradePrint, WalkedBook
from trading.domain.money import ZERO, difference_bps, divide, multiply, quantize_nearest, subtract
from trading.ports.clock import Clock

DAY_MS: Final = 86_400_000


def _same_asset(symbol: str, near: Sequence[str]) -> bool:
    return bool(near) and symbol.upper().startswith(near[0].partition("/")[0])


@dataclass(frozen=True, slots=True)
class Priced:
    """A book, what speaks against it, and whose it is.

    Attributes:
        failed_over_from: the desk's own venue when another one stands in for it, else None.
        reason: why it does; empty otherwise.
    """

    instrument: Instrument
    judged: Judged
    failed_over_from: Venue | None = None
    reason: str = ""

    @property
    def book(self) -> OrderBook:
        """The book, however old."""
        return self.judged.book


@dataclass(frozen=True, slots=True)
class Tick:
    """Everything a ticker shows of one instrument.

    Attributes:
        age_ms: of the book, None before the first.
        stale: no order may be priced from it; ``marks`` says why.
        failed_over_from: the desk's own venue when another one stands in for it, else None.
        bar_close: close of the newest bar of a market that gives bars and no trades.
    """

    instrument: Instrument
    book: OrderBook | None
    last: TradePrint | None
    volume: Decimal
    age_ms: int | None
    stale: bool
    marks: tuple[Mark, ...] = ()
    failed_over_from: Venue | None = None
    bar_close: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a market order would get; amounts as in ``schemas.FillEstimate``.

    Attributes:
        book: the book that was walked.
        failed_over_from: the desk's own venue when another one stands in for it, else None.
    """

    instrument: Instrument
    requested: Decimal
    walked: WalkedBook
    fee: Decimal
    impact_bps: Decimal | None
    age_ms: int
    book: OrderBook
    failed_over_from: Venue | None = None


class Prices:
    """Answers from the newest values; never waits.

    Args:
        feed: the books and trades of this desk.
        candles: built from the same trades.
        venue: the desk's own, whose data prices its orders.
        aliases: other venue names a caller may use for it (the paper venue trades on this book).
        max_age_ms: older books are stale.
        source: how the desk's own venue is, for when nothing has arrived from it.
        judge: says what speaks against a book; one with the default thresholds unless given.
        board: knows the other venues and chooses; of the desk's own venue alone unless given.
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
        judge: QualityJudge | None = None,
        board: VenueBoard | None = None,
    ) -> None:
        self._feed = feed
        self._candles = candles
        self._clock = clock
        self.venue = venue
        self._aliases = tuple(aliases)
        self.max_age_ms = max_age_ms
        self._source = source
        self._judge = judge or QualityJudge(QualitySettings(), clock, max_age_ms)
        self.board = board or VenueBoard(
            feed, (venue,), (), judge=self._judge, clock=clock, health=lambda _: FeedHealth(source())
        )

    @property
    def venues(self) -> tuple[Venue, ...]:
        """Every venue that can be asked for, the desk's own first."""
        return self.board.venues

    def choose(self, symbol: str, venue: str | None = None) -> Choice:
        """Return the venue that answers for a symbol.

        Raises:
            InvalidValue: code UNKNOWN_VENUE, with the venues there are.
        """
        if venue is None:
            return self.board.choose(Symbol(symbol))
        if venue in self._aliases:
            return Choice(self.venue)
        if venue not in self.venues:
            allowed = tuple(sorted({*self.venues, *self._aliases}))
            near = did_you_mean(venue, allowed, limit=1)
            raise InvalidValue(
                f"there is no venue {venue[:64]!r} in this desk's market data",
                code="UNKNOWN_VENUE",
                suggestion=f"did you mean {near[0]}?" if near else "name one of the allowed, or leave venue out",
                allowed=allowed,
            )
        return Choice(Venue(venue))

    def instrument(self, symbol: str, venue: str | None = None) -> Instrument:
        """Return the rules of a symbol at the venue that answers for it.

        Raises:
            UnknownInstrument: with the nearest names. InvalidValue: another venue.
            Unavailable: the source has not given any rules yet; ``code`` says why.
        """
        return self._instrument(symbol, self.choose(symbol, venue).venue)

    def _instrument(self, symbol: str, venue: Venue) -> Instrument:
        found = self._feed.instrument(InstrumentId(venue, Symbol(symbol)))
        if found is not None:
            return found
        known = [item for item in self._feed.instruments() if item.venue == venue]
        if not known:
            raise self._nothing_yet(venue)
        names = tuple(item.symbol for item in known)
        near = did_you_mean(symbol, names)
        raise UnknownInstrument(
            f"{venue} has no {symbol[:41]!r} here",
            # Another base is another asset: ETH/USDT is not a way to write BTC/USDT.
            suggestion=f"did you mean {near[0]}?" if _same_asset(symbol, near) else "use market_search_instruments",
            allowed=near or names[:10],
        )

    def _nothing_yet(self, venue: Venue) -> Unavailable:
        status = self._source()
        if venue != self.venue:
            health = self.board.health(venue)
            status = SourceStatus(health.state, health.code, health.message)
        return Unavailable(
            status.message or f"the feed of {venue} has not started yet",
            code=status.code or "MARKET_STARTING",
            suggestion="ask market_get_status",
        )

    def search(self, query: str) -> list[Instrument]:
        """Return instruments whose symbol, base or quote contains ``query``, best match first."""
        wanted = "".join(character for character in query.upper() if character.isalnum())

        order = {venue: index for index, venue in enumerate(self.venues)}

        def rank(item: Instrument) -> tuple[int, str, int]:
            compact = item.symbol.replace("/", "")
            nearness = 0 if compact == wanted or item.base == wanted else 1 if compact.startswith(wanted) else 2
            return nearness, compact, order[item.venue]

        return sorted((i for i in self._feed.instruments() if wanted in i.symbol.replace("/", "")), key=rank)

    def tick(self, symbol: str, venue: str | None = None) -> Tick:
        """Return the ticker of a symbol; raises as ``instrument`` does."""
        choice = self.choose(symbol, venue)
        instrument = self._instrument(symbol, choice.venue)
        judged = self.judged(instrument.id)
        return Tick(
            instrument,
            None if judged is None else judged.book,
            self._feed.last_trade(instrument.id),
            self._candles.volume(instrument.id, DAY_MS),
            None if judged is None else judged.age_ms,
            stale=judged is None or not judged.usable,
            marks=() if judged is None else judged.marks,
            failed_over_from=choice.failed_over_from,
            bar_close=self._candles.last_close(instrument.id),
        )

    def priced(self, symbol: str, venue: str | None = None) -> Priced:
        """Return the newest book, however old, with its marks.

        Raises:
            StaleData: code NO_BOOK: there has been none yet. Otherwise as ``instrument``.
        """
        choice = self.choose(symbol, venue)
        instrument = self._instrument(symbol, choice.venue)
        judged = self.judged(instrument.id)
        if judged is None:
            raise StaleData(
                f"no book has arrived from {choice.venue} yet", code="NO_BOOK", suggestion="ask market_get_status"
            )
        return Priced(instrument, judged, choice.failed_over_from, choice.reason)

    def usable(self, symbol: str, venue: str | None = None) -> Priced:
        """Return a book that an order may be priced from.

        Raises:
            StaleData: a mark forbids it, and is named. Otherwise as ``priced``.
        """
        found = self.priced(symbol, venue)
        if not found.judged.usable:
            raise StaleData(
                f"the book of {symbol} on {found.instrument.venue} cannot be used: {describe(found.judged)}",
                suggestion="ask market_get_status, or name another venue",
            )
        return found

    def book(self, symbol: str, venue: str | None = None) -> OrderBook:
        """Return the newest book, however old; raises as ``priced`` does."""
        return self.priced(symbol, venue).book

    def judged(self, instrument_id: InstrumentId) -> Judged | None:
        """Return the newest book with what speaks against it, None before the first."""
        return self.board.judged(instrument_id)

    def age_ms(self, book: OrderBook) -> int:
        """Return milliseconds since the book was published, or by the venue's clock when that is more (live)."""
        return self._judge.judge(book, state=None).age_ms

    def trade_age_ms(self, trade: TradePrint) -> int:
        """Return milliseconds since the trade was published, or by the venue's clock when that is more (live).

        A venue repeats its last trades to whoever connects, in a quiet market hours after they were made.
        """
        age_ms = max(0, self._clock.now_ms() - trade.published_ts_ms)
        if trade.feed is not Feed.LIVE:
            return age_ms
        return max(age_ms, self._judge.venue_age_ms(trade.instrument_id.venue, trade.venue_ts_ms))

    def is_stale(self, book: OrderBook) -> bool:
        """Return whether no order may be priced from this book; ``judged`` says why."""
        return not self._judge.judge(book, state=None).usable

    def estimate(
        self, symbol: str, side: Side, amount: Decimal, unit: Literal["base", "quote"], venue: str | None = None
    ) -> Estimate:
        """Return what a market order would get from the book as it is now.

        Args:
            symbol, side, venue: what and where.
            amount: > 0, in base or in quote without fees.
            unit: of the amount.

        Raises:
            StaleData: the book must not be used. InvalidValue: smaller than one step. Otherwise as ``instrument``.
        """
        found = self.usable(symbol, venue)
        instrument, book = found.instrument, found.book
        levels = book.asks if side is Side.BUY else book.bids
        base = amount if unit == "base" else base_for_quote(levels, amount)
        quantity = instrument.quantity_floor(base)
        if quantity <= ZERO:
            least = instrument.smallest_quantity(levels[0].price)
            raise InvalidValue(
                "the amount is smaller than one step", code="QUANTITY_TOO_SMALL", suggestion=f"at least {least} base"
            )
        walked = book.walk(side, quantity)
        vwap, mid = walked.average_price, book.mid
        impact = None if vwap is None or mid is None else multiply(difference_bps(vwap, mid), Decimal(side.sign))
        return Estimate(
            instrument,
            quantity,
            walked,
            multiply(walked.notional, instrument.taker_fee),
            None if impact is None else quantize_nearest(impact, 4),
            found.judged.age_ms,
            book,
            found.failed_over_from,
        )

    def subscribe_books(self) -> Subscription[OrderBook]:
        """Return every instrument's books from now on; one that waits is replaced by a newer one."""
        return self._feed.subscribe_books()

    def newest(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book, None before the first."""
        return self._feed.book(instrument_id)

    def book_state(self, instrument_id: InstrumentId) -> str | None:
        """Return what the publisher said of the newest book, as in ``BookUpdate.state``."""
        return self._feed.book_state(instrument_id)

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
