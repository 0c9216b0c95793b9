"""From a source's updates to published books and trades.

Rules kept here:

- A book is published on every change of its best levels, and otherwise within 50 ms of a change further down. Nothing
  is published without news: a source that falls silent lets its books age.
- A book that cannot be believed (gap, crossed, restart, outlier) is replaced by an empty one at once.
- A malformed update is counted and dropped; what it would have changed shows as a gap.
- Time on a venue's clock moves by believable times only: one trade stamped in another unit would otherwise close every
  candle to come, or make the whole past look watched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final, Protocol

from mcp_servers.market.health import BookStatus, Events
from mcp_servers.market.order_book import BookState, DepthBook
from mcp_servers.market.quality import Mark
from mcp_servers.market.sources.base import (
    Bar,
    BestQuote,
    Difference,
    MarketSource,
    Restarted,
    Rules,
    Snapshot,
    SourceUpdate,
)
from trading.adapters.market_wire import BookUpdate, LevelText, TradeUpdate
from trading.domain.errors import InvalidValue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle
from trading.ports.clock import Clock

BOOK_INTERVAL_MS: Final = 50
_AHEAD_MS: Final = 60_000  # a venue's time may be this much later than its arrival
_BEHIND_MS: Final = 30 * 86_400_000  # the last trades of a quiet market, told on connecting, may be this old


class MarketSink(Protocol):
    """Where published data goes: the streams, and this process's own feed."""

    def publish_instrument(self, instrument: Instrument) -> None:
        """Publish an instrument's rules."""
        ...

    def publish_book(self, update: BookUpdate) -> None:
        """Publish a book."""
        ...

    def publish_trade(self, update: TradeUpdate) -> None:
        """Publish a trade."""
        ...


class CandleSink(Protocol):
    """Where trades and finished bars are counted."""

    def add(self, instrument_id: InstrumentId, ts_ms: int, price: Decimal, quantity: Decimal) -> None:
        """Count a trade."""
        ...

    def add_bar(self, bar: Candle) -> None:
        """Take in a finished bar."""
        ...

    def advance(self, instrument_id: InstrumentId, ts_ms: int) -> None:
        """Note how far the venue's clock has come."""
        ...


class BookObserver(Protocol):
    """What measures every book on its way out."""

    def observe(self, update: BookUpdate) -> Mark | None:
        """Return OUTLIER when the book must not be published."""
        ...


class _Tracked:
    """One instrument's book and what was last said about it."""

    def __init__(self) -> None:
        self.book = DepthBook()
        self.best: tuple[LevelText, LevelText] | None = None
        self.state = BookState.WAITING
        self.outlier = False
        self.published_ns = -BOOK_INTERVAL_MS * 1_000_000
        self.changed = False
        self.venue_ts_ms = 0
        self.received_ts_ms = 0


class MarketPipeline:
    """Builds the books of one source and publishes them.

    Args:
        source: where updates come from.
        sinks: where results go, in this order.
        candles: fed with every trade, those of catching up included.
        on_position: told the source's position after every published update.
        judge: measures every book; one that it takes for an outlier is published empty.
        events: told of gaps, outliers and changed rules.

    Attributes:
        counters: updates and what became of them, by name.
        heard_ts_ms: when the newest update was taken in, on the desk's clock; None before the first.
    """

    def __init__(
        self,
        source: MarketSource,
        sinks: Sequence[MarketSink],
        candles: CandleSink,
        clock: Clock,
        *,
        on_position: Callable[[bytes], None] | None = None,
        judge: BookObserver | None = None,
        events: Events | None = None,
    ) -> None:
        self._source = source
        self._sinks = tuple(sinks)
        self._candles = candles
        self._clock = clock
        self._on_position = on_position
        self._judge = judge
        self._events = events
        self._tracked: dict[InstrumentId, _Tracked] = {}
        self._rules: dict[InstrumentId, Instrument] = {}
        self.heard_ts_ms: int | None = None
        self.counters: dict[str, int] = dict.fromkeys(
            ("updates", "trades", "books", "bars", "malformed", "restarts", "outliers"), 0
        )

    async def run(self) -> None:
        """Carry updates until the source ends."""
        async for update in self._source.updates():
            self.handle(update)

    async def run_timer(self) -> None:
        """Publish changes below the best levels, for ever; run it beside :meth:`run`."""
        while True:
            await asyncio.sleep(BOOK_INTERVAL_MS / 1_000)
            self.tick()

    def tick(self) -> None:
        """Publish the books whose deeper levels changed since they were published."""
        for instrument_id, tracked in self._tracked.items():
            if tracked.changed:
                self._publish(instrument_id, tracked)

    def handle(self, update: SourceUpdate) -> None:
        """Take one update in; never waits and never raises for bad data."""
        self.counters["updates"] += 1
        self.heard_ts_ms = self._clock.now_ms()
        try:
            self._dispatch(update)
        except InvalidValue:
            self.counters["malformed"] += 1
        if self._on_position is not None and not self._source.catching_up:
            position = self._source.position()
            if position is not None:
                self._on_position(position)

    def abandon(self) -> None:
        """Publish empty books: the source is gone, and what it said last must not be traded on until it is too old."""
        for instrument_id, tracked in self._tracked.items():
            tracked.book.reset()
            self._publish(instrument_id, tracked)

    def book_status(self) -> BookStatus:
        """Return the state and counters of every book."""
        return {
            key: (BookState.OUTLIER if tracked.outlier else tracked.book.state, dict(tracked.book.counters))
            for key, tracked in self._tracked.items()
        }

    def _dispatch(self, update: SourceUpdate) -> None:
        match update:
            case TradeUpdate():
                self._trade(update)
            case BestQuote():
                tracked = self._track(update.instrument_id)
                if tracked.book.quote(update.update_id, update.bid, update.ask):
                    self._book_changed(update.instrument_id, tracked, 0, update.received_ts_ms)
            case Difference():
                tracked = self._track(update.instrument_id)
                tracked.book.difference(update.first_id, update.last_id, update.bids, update.asks)
                self._book_changed(update.instrument_id, tracked, update.venue_ts_ms, update.received_ts_ms)
            case Snapshot():
                tracked = self._track(update.instrument_id)
                tracked.book.snapshot(update.last_id, update.bids, update.asks)
                self._book_changed(update.instrument_id, tracked, update.venue_ts_ms, update.received_ts_ms)
            case Bar():
                self._candles.add_bar(update.candle)
                self.counters["bars"] += 1
            case Rules():
                for instrument in update.instruments:
                    self._rules_given(instrument)
            case Restarted():
                self.counters["restarts"] += 1
                for instrument_id in update.instrument_ids:
                    tracked = self._track(instrument_id)
                    tracked.book.reset()
                    if update.reason == "gap":  # a live source finds the lost change itself
                        self._tell("market.gap_detected", instrument_id)
                    if not self._source.catching_up:
                        self._book_changed(instrument_id, tracked, 0, tracked.received_ts_ms)

    def _rules_given(self, instrument: Instrument) -> None:
        known = self._rules.get(instrument.id)
        self._rules[instrument.id] = instrument
        if known is not None and known != instrument:
            self._tell("market.rules_changed", instrument.id)
        for sink in self._sinks:
            sink.publish_instrument(instrument)

    def _track(self, instrument_id: InstrumentId) -> _Tracked:
        tracked = self._tracked.get(instrument_id)
        if tracked is None:
            tracked = self._tracked[instrument_id] = _Tracked()
        return tracked

    def _trade(self, update: TradeUpdate) -> None:
        self.counters["trades"] += 1
        if not _is_believable(update.venue_ts_ms, update.received_ts_ms):
            raise InvalidValue("a trade of another time", code="MALFORMED")
        price, quantity = Decimal(update.price), Decimal(update.quantity)
        self._candles.add(update.instrument_id, update.venue_ts_ms, price, quantity)
        if not self._source.catching_up:
            for sink in self._sinks:
                sink.publish_trade(update)

    def _book_changed(
        self, instrument_id: InstrumentId, tracked: _Tracked, venue_ts_ms: int, received_ts_ms: int
    ) -> None:
        """Publish now if the best levels or the state changed or 50 ms have passed, else leave it to the timer."""
        if venue_ts_ms:  # quotes carry no venue time: theirs is that of the newest difference
            tracked.venue_ts_ms = venue_ts_ms
            if _is_believable(venue_ts_ms, received_ts_ms):
                self._candles.advance(instrument_id, venue_ts_ms)
        tracked.received_ts_ms = received_ts_ms
        if self._source.catching_up:
            return
        tracked.changed = True
        elapsed_ms = (self._clock.monotonic_ns() - tracked.published_ns) // 1_000_000
        best, state = tracked.book.best(), tracked.book.state
        if best != tracked.best or state is not tracked.state or elapsed_ms >= BOOK_INTERVAL_MS:
            self._publish(instrument_id, tracked)

    def _publish(self, instrument_id: InstrumentId, tracked: _Tracked) -> None:
        bids, asks = tracked.book.top()
        state = tracked.book.state
        if state is BookState.GAP and tracked.state is not BookState.GAP:
            self._tell("market.gap_detected", instrument_id)
        tracked.best = (bids[0], asks[0]) if bids and asks else None
        tracked.state = state
        tracked.published_ns = self._clock.monotonic_ns()
        tracked.changed = False
        self.counters["books"] += 1
        update = BookUpdate(instrument_id, bids, asks, tracked.venue_ts_ms, tracked.received_ts_ms, state.value)
        if self._judge is not None:
            update = self._judged(update, tracked, self._judge)
        for sink in self._sinks:
            sink.publish_book(update)

    def _judged(self, update: BookUpdate, tracked: _Tracked, judge: BookObserver) -> BookUpdate:
        """Return the update, or an empty book in its place: nobody may price an order from an outlier."""
        was_outlier = tracked.outlier
        tracked.outlier = judge.observe(update) is Mark.OUTLIER
        if not tracked.outlier:
            return update
        self.counters["outliers"] += 1
        if not was_outlier:
            self._tell("market.outlier_detected", update.instrument_id, bid=update.bids[0][0], ask=update.asks[0][0])
        return replace(update, bids=[], asks=[], state=BookState.OUTLIER.value)

    def _tell(self, event_type: str, instrument_id: InstrumentId, **more: object) -> None:
        if self._events is not None:
            self._events.publish(event_type, {"venue": instrument_id.venue, "symbol": instrument_id.symbol, **more})


def _is_believable(venue_ts_ms: int, received_ts_ms: int) -> bool:
    return -_BEHIND_MS <= venue_ts_ms - received_ts_ms <= _AHEAD_MS
