"""In-process market data: subscriptions with bounded mailboxes, and a feed that needs no Redis.

``LocalMarketFeed`` answers the same questions as ``MarketStreamView``; tests, benchmarks and backtests use it, and the
market server itself reads what it publishes through one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, cast

from trading.adapters.market_wire import BookUpdate, TradeUpdate, book_from_update, trade_from_update
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, OrderBook, TradePrint
from trading.ports.clock import Clock

T = TypeVar("T")

MAILBOX_LIMIT: Final = 20_000  # items per subscriber
EVERY_BOOK_PATIENCE: Final = 256  # items that wait before books replace each other for one who wants every book

MarketUpdate = OrderBook | TradePrint


@dataclass(frozen=True, slots=True)
class InstrumentStatus:
    """How fresh one instrument's data is, on the reader's clock.

    Attributes:
        book_age_ms, trade_age_ms: since publication; None when nothing has arrived yet.
        sequence: of the newest accepted message, 0 when there is none.
        feed: of the newest accepted message.
        usable: the newest book is two-sided.
    """

    instrument_id: InstrumentId
    book_age_ms: int | None
    trade_age_ms: int | None
    sequence: int
    feed: Feed | None
    usable: bool


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """What a view has seen.

    Attributes:
        connected: the last read succeeded; always True in process.
        counters: books, trades, and every kind of message that was refused, by name.
    """

    connected: bool
    instruments: tuple[InstrumentStatus, ...]
    counters: dict[str, int] = field(default_factory=dict[str, int])


class MarketFeed(Protocol):
    """The market as a room sees it: the port ``MarketView`` plus rules, subscriptions and status."""

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest accepted book, however old, or None."""
        ...

    def book_state(self, instrument_id: InstrumentId) -> str | None:
        """Return what its publisher said of the newest book, as in ``BookUpdate.state``; None when nothing is known."""
        ...

    def last_trade(self, instrument_id: InstrumentId) -> TradePrint | None:
        """Return the newest accepted trade, however old, or None."""
        ...

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules, or None when the instrument is unknown."""
        ...

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every known instrument."""
        ...

    def subscribe(self) -> Subscription[MarketUpdate]:
        """Return books and trades in the order of their sequences."""
        ...

    def subscribe_books(self) -> Subscription[OrderBook]:
        """Return books only."""
        ...

    def subscribe_trades(self) -> Subscription[TradePrint]:
        """Return trades only."""
        ...

    def status(self) -> FeedStatus:
        """Return ages and counters."""
        ...


class Subscription(Generic[T], AsyncIterator[T]):
    """An endless, bounded series of updates; iterate over it, and ``close()`` it when done.

    A book that the reader has not taken yet is replaced by the next one of the same instrument, with ``patience`` only
    once so many items wait; a trade never is.
    When ``limit`` items wait, the oldest is dropped and counted in ``overruns``: a reader that sees the count rise
    has lost trades and must say so.
    """

    def __init__(
        self, detach: Callable[[Subscription[T]], None], *, limit: int = MAILBOX_LIMIT, patience: int = 0
    ) -> None:
        self._items: deque[tuple[InstrumentId | None, Callable[[], T | None]]] = deque()
        self._limit = limit
        self._patience = patience
        self._ready = asyncio.Event()
        self._detach = detach
        self._closed = False
        self.overruns = 0

    def put(self, make: Callable[[], T | None], *, replaces: InstrumentId | None = None) -> None:
        """Add an update, decoded only when it is taken; ``replaces`` names the instrument of a book."""
        if self._closed:
            return
        if replaces is not None and len(self._items) > self._patience and self._items[-1][0] == replaces:
            self._items[-1] = (replaces, make)
            return
        if len(self._items) >= self._limit:
            self._items.popleft()
            self.overruns += 1
        self._items.append((replaces, make))
        self._ready.set()

    def drain(self) -> list[T]:
        """Return everything that waits, without waiting."""
        taken: list[T] = []
        while self._items:
            item = self._items.popleft()[1]()
            if item is not None:
                taken.append(item)
        return taken

    def close(self) -> None:
        """End the iteration after what already waits, and stop receiving."""
        if not self._closed:
            self._closed = True
            self._detach(self)
            self._ready.set()

    def __aiter__(self) -> Subscription[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            while self._items:
                item = self._items.popleft()[1]()
                if item is not None:
                    return item
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Fanout:
    """Hands every update to the subscriptions that want it."""

    def __init__(self) -> None:
        self._books: list[Subscription[MarketUpdate]] = []
        self._trades: list[Subscription[MarketUpdate]] = []

    def open(self, *, books: bool, trades: bool, every_book: bool = False) -> Subscription[MarketUpdate]:
        """Return a new subscription, empty until the next update."""
        patience = EVERY_BOOK_PATIENCE if every_book else 0
        subscription: Subscription[MarketUpdate] = Subscription(self._detach, patience=patience)
        if books:
            self._books.append(subscription)
        if trades:
            self._trades.append(subscription)
        return subscription

    def book(self, instrument_id: InstrumentId, make: Callable[[], OrderBook | None]) -> None:
        """Deliver a book."""
        for subscription in self._books:
            subscription.put(make, replaces=instrument_id)

    def trades(self, trades: Iterable[TradePrint]) -> None:
        """Deliver trades."""
        for trade in trades:
            for subscription in self._trades:
                subscription.put(lambda item=trade: item)

    @property
    def wants_trades(self) -> bool:
        """Whether anybody listens to trades."""
        return bool(self._trades)

    @property
    def overruns(self) -> int:
        """Updates lost by slow readers that are still subscribed."""
        unique = {id(s): s.overruns for s in (*self._books, *self._trades)}
        return sum(unique.values())

    def close(self) -> None:
        """End every subscription."""
        for subscription in [*self._books, *self._trades]:
            subscription.close()

    def _detach(self, subscription: Subscription[MarketUpdate]) -> None:
        self._books = [s for s in self._books if s is not subscription]
        self._trades = [s for s in self._trades if s is not subscription]


class LocalMarketFeed:
    """A market in memory: feed it updates, read it as any other view.

    Args:
        clock: stamps publication.
        feed: what the data is; readers may refuse it.
        instruments: rules known from the start.
    """

    def __init__(self, clock: Clock, *, feed: Feed = Feed.SYNTHETIC, instruments: Iterable[Instrument] = ()) -> None:
        self._clock = clock
        self._feed = feed
        self._rules = {instrument.id: instrument for instrument in instruments}
        self._updates: dict[InstrumentId, tuple[BookUpdate, int, int]] = {}
        self._books: dict[InstrumentId, OrderBook] = {}
        self._states: dict[InstrumentId, str] = {}
        self._last: dict[InstrumentId, TradePrint] = {}
        self._fanout = Fanout()
        self._sequence = 0
        self._counts = {"books": 0, "trades": 0}

    def publish_instrument(self, instrument: Instrument) -> None:
        """Make an instrument's rules known, or replace them."""
        self._rules[instrument.id] = instrument

    def publish_book(self, update: BookUpdate) -> None:
        """Make a book the newest one; it is decoded when somebody asks."""
        self._sequence += 1
        sequence, published = self._sequence, self._clock.now_ms()
        self._counts["books"] += 1
        self._updates[update.instrument_id] = (update, sequence, published)
        self._states[update.instrument_id] = update.state
        self._fanout.book(
            update.instrument_id,
            lambda: book_from_update(update, sequence=sequence, feed=self._feed, published_ts_ms=published),
        )

    def publish_trade(self, update: TradeUpdate) -> None:
        """Make a trade the newest one."""
        self._sequence += 1
        trade = trade_from_update(
            update, sequence=self._sequence, feed=self._feed, published_ts_ms=self._clock.now_ms()
        )
        self._counts["trades"] += 1
        self._last[update.instrument_id] = trade
        self._fanout.trades((trade,))

    def put_book(self, book: OrderBook) -> None:
        """Make a finished domain book the newest one, its times and sequence untouched."""
        self._counts["books"] += 1
        self._sequence = max(self._sequence, book.sequence)
        self._updates.pop(book.instrument_id, None)
        self._states.pop(book.instrument_id, None)
        self._books[book.instrument_id] = book
        self._fanout.book(book.instrument_id, lambda: book)

    def put_trade(self, trade: TradePrint) -> None:
        """Make a finished domain trade the newest one, its times and sequence untouched."""
        self._counts["trades"] += 1
        self._sequence = max(self._sequence, trade.sequence)
        self._last[trade.instrument_id] = trade
        self._fanout.trades((trade,))

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book, however old, or None."""
        waiting = self._updates.pop(instrument_id, None)
        if waiting is not None:
            update, sequence, published = waiting
            self._books[instrument_id] = book_from_update(
                update, sequence=sequence, feed=self._feed, published_ts_ms=published
            )
        return self._books.get(instrument_id)

    def book_state(self, instrument_id: InstrumentId) -> str | None:
        """Return what was said of the newest book, None when nothing was."""
        return self._states.get(instrument_id)

    def last_trade(self, instrument_id: InstrumentId) -> TradePrint | None:
        """Return the newest trade, however old, or None."""
        return self._last.get(instrument_id)

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules, or None when the instrument is unknown."""
        return self._rules.get(instrument_id)

    def instruments(self) -> tuple[Instrument, ...]:
        """Return every known instrument."""
        return tuple(self._rules.values())

    def subscribe(self) -> Subscription[MarketUpdate]:
        """Return books and trades in the order of their sequences."""
        return self._fanout.open(books=True, trades=True)

    def subscribe_books(self) -> Subscription[OrderBook]:
        """Return books only."""
        return cast("Subscription[OrderBook]", self._fanout.open(books=True, trades=False))

    def subscribe_trades(self) -> Subscription[TradePrint]:
        """Return trades only."""
        return cast("Subscription[TradePrint]", self._fanout.open(books=False, trades=True))

    def status(self) -> FeedStatus:
        """Return ages and counters."""
        now = self._clock.now_ms()
        known = list(dict.fromkeys([*self._rules, *self._updates, *self._books, *self._last]))
        rows = tuple(instrument_status(i, self.book(i), self._last.get(i), now) for i in known)
        return FeedStatus(
            connected=True, instruments=rows, counters={**self._counts, "overruns": self._fanout.overruns}
        )

    def close(self) -> None:
        """End every subscription."""
        self._fanout.close()


def instrument_status(
    instrument_id: InstrumentId, book: OrderBook | None, trade: TradePrint | None, now_ms: int
) -> InstrumentStatus:
    """Return the freshness of one instrument."""
    newest = max((item for item in (book, trade) if item is not None), key=lambda item: item.sequence, default=None)
    return InstrumentStatus(
        instrument_id,
        book.age_ms(now_ms) if book is not None else None,
        max(0, now_ms - trade.published_ts_ms) if trade is not None else None,
        newest.sequence if newest is not None else 0,
        newest.feed if newest is not None else None,
        book is not None and book.is_two_sided,
    )
