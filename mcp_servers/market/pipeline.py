"""From a source's updates to published books and trades.

Rules kept here:

- A book is published on every change of its best levels, and otherwise within 50 ms of a change further down. Nothing
  is published without news: a source that falls silent lets its books age.
- A book that cannot be believed (gap, crossed, restart) is replaced by an empty one at once.
- A malformed update is counted and dropped; what it would have changed shows as a gap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, Protocol

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.order_book import BookState, DepthBook
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
from trading.ports.clock import Clock

BOOK_INTERVAL_MS: Final = 50


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


class _Tracked:
    """One instrument's book and what was last said about it."""

    def __init__(self) -> None:
        self.book = DepthBook()
        self.best: tuple[LevelText, LevelText] | None = None
        self.state = BookState.WAITING
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
    """

    def __init__(
        self,
        source: MarketSource,
        sinks: Sequence[MarketSink],
        candles: CandleStore,
        clock: Clock,
        *,
        on_position: Callable[[bytes], None] | None = None,
    ) -> None:
        self._source = source
        self._sinks = tuple(sinks)
        self._candles = candles
        self._clock = clock
        self._on_position = on_position
        self._tracked: dict[InstrumentId, _Tracked] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("updates", "trades", "books", "bars", "malformed", "restarts"), 0
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
        try:
            self._dispatch(update)
        except InvalidValue:
            self.counters["malformed"] += 1
        if self._on_position is not None and not self._source.catching_up:
            position = self._source.position()
            if position is not None:
                self._on_position(position)

    def book_status(self) -> dict[InstrumentId, tuple[BookState, dict[str, int]]]:
        """Return the state and counters of every book."""
        return {key: (tracked.book.state, dict(tracked.book.counters)) for key, tracked in self._tracked.items()}

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
                    for sink in self._sinks:
                        sink.publish_instrument(instrument)
            case Restarted():
                self.counters["restarts"] += 1
                for instrument_id in update.instrument_ids:
                    tracked = self._track(instrument_id)
                    tracked.book.reset()
                    if not self._source.catching_up:
                        self._book_changed(instrument_id, tracked, 0, tracked.received_ts_ms)

    def _track(self, instrument_id: InstrumentId) -> _Tracked:
        tracked = self._tracked.get(instrument_id)
        if tracked is None:
            tracked = self._tracked[instrument_id] = _Tracked()
        return tracked

    def _trade(self, update: TradeUpdate) -> None:
        self.counters["trades"] += 1
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
        tracked.best = (bids[0], asks[0]) if bids and asks else None
        tracked.state = tracked.book.state
        tracked.published_ns = self._clock.monotonic_ns()
        tracked.changed = False
        self.counters["books"] += 1
        update = BookUpdate(
            instrument_id, bids, asks, tracked.venue_ts_ms, tracked.received_ts_ms, tracked.book.state.value
        )
        for sink in self._sinks:
            sink.publish_book(update)
