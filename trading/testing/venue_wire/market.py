"""What is true at the venue now: the books, the trades so far and how far the tape was played.

The books are rebuilt here in the plainest way there is, a dictionary and a sort, so that a client's cleverer book can
be compared with something that shares no code with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NamedTuple

from trading.testing.venue_wire.recorded import BookChange, Event, Print, RawLevel, StartingBook, Tape


class Top(NamedTuple):
    """The best levels of a book, best first: price and quantity as plain decimal text without trailing zeros."""

    bids: tuple[RawLevel, ...]
    asks: tuple[RawLevel, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """Open, high, low, close and volume of the trades of one interval."""

    open_ts_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trades: int


def plain_text(number: str) -> str:
    """Return decimal text without exponent and without trailing zeros."""
    text = format(Decimal(number), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class TrueBook:
    """One symbol's book: a dictionary per side, sorted whenever somebody asks.

    Attributes:
        last_id: the venue's id of the newest update in it.
        ts_us: when it last changed, the venue's clock.
    """

    def __init__(self, start: StartingBook) -> None:
        self._bids = {Decimal(price): (price, quantity) for price, quantity in start.bids}
        self._asks = {Decimal(price): (price, quantity) for price, quantity in start.asks}
        self.last_id = start.last_id
        self.ts_us = start.ts_us

    def apply(self, change: BookChange) -> None:
        """Set the levels of a change; quantity zero removes one."""
        for side, levels in ((self._bids, change.bids), (self._asks, change.asks)):
            for price, quantity in levels:
                if Decimal(quantity):
                    side[Decimal(price)] = (price, quantity)
                else:
                    side.pop(Decimal(price), None)
        self.last_id, self.ts_us = change.last_id, change.ts_us

    def bids(self, count: int | None = None) -> list[RawLevel]:
        """Return the best bids as the venue writes them, highest price first."""
        return [self._bids[price] for price in sorted(self._bids, reverse=True)[:count]]

    def asks(self, count: int | None = None) -> list[RawLevel]:
        """Return the best asks as the venue writes them, lowest price first."""
        return [self._asks[price] for price in sorted(self._asks)[:count]]

    def has_bid(self, price: str) -> bool:
        """Return whether anything is bid at a price."""
        return Decimal(price) in self._bids

    def has_ask(self, price: str) -> bool:
        """Return whether anything is asked at a price."""
        return Decimal(price) in self._asks

    def top(self, count: int = 50) -> Top:
        """Return the best levels in comparable text."""
        return Top(*(tuple((plain_text(p), plain_text(q)) for p, q in side(count)) for side in (self.bids, self.asks)))


class WireMarket:
    """The venue's state while a tape is played.

    Args:
        tape: what happens.
        clock_us: the venue's clock in microseconds; then everything happens when it is played, and not when it was
            recorded. Who believes only fresh data needs that.

    Attributes:
        books: the true book of every symbol.
        prints: every trade so far, oldest first.
        position: how many events were played.
    """

    def __init__(self, tape: Tape, clock_us: Callable[[], int] | None = None) -> None:
        self._tape = tape
        self._clock_us = clock_us
        recorded_us = max((start.ts_us for start in tape.books.values()), default=0)
        self._newest_us = recorded_us if clock_us is None else clock_us()
        self.books = {symbol: TrueBook(start) for symbol, start in tape.books.items()}
        if clock_us is not None:
            for book in self.books.values():
                book.ts_us = self._newest_us
        self.prints: list[Print] = []
        self.position = 0

    @property
    def now_us(self) -> int:
        """The venue's time: its clock, or that of the newest event."""
        return self._newest_us if self._clock_us is None else max(self._newest_us, self._clock_us())

    @property
    def left(self) -> int:
        """How many events were not played yet."""
        return len(self._tape.events) - self.position

    def take(self, count: int) -> Iterator[Event]:
        """Yield the next events, each after it became true here."""
        for event in self._tape.events[self.position : self.position + count]:
            self.position += 1
            if self._clock_us is None:
                self._newest_us = max(self._newest_us, event.ts_us)
            else:
                self._newest_us = self.now_us
                event = replace(event, ts_us=self._newest_us)
            if isinstance(event, BookChange):
                self.books[event.symbol].apply(event)
            else:
                self.prints.append(event)
            yield event

    def events_until(self, wanted: Callable[[Event], bool]) -> int:
        """Return how many events lie before the next one that is wanted; all that are left when none is."""
        rest = self._tape.events[self.position :]
        return next((index for index, event in enumerate(rest) if wanted(event)), len(rest))

    def peek_ts_us(self) -> int | None:
        """Return when the next event happened; None at the end of the tape."""
        return self._tape.events[self.position].ts_us if self.left else None

    def prints_of(self, symbol: str) -> list[Print]:
        """Return the trades of one symbol so far, oldest first."""
        return [item for item in self.prints if item.symbol == symbol]

    def bars(self, symbol: str, interval_ms: int) -> list[Bar]:
        """Return the candles of the trades so far, oldest first; intervals without trades have none."""
        by_start: dict[int, list[Print]] = {}
        for item in self.prints_of(symbol):
            by_start.setdefault(item.ts_us // 1_000 // interval_ms * interval_ms, []).append(item)
        return [_bar(start, items) for start, items in sorted(by_start.items())]


def _bar(start: int, items: Iterable[Print]) -> Bar:
    trades = [(Decimal(item.price), Decimal(item.quantity)) for item in items]
    prices = [price for price, _ in trades]
    volume, quote = sum((q for _, q in trades), Decimal(0)), sum((p * q for p, q in trades), Decimal(0))
    return Bar(start, prices[0], max(prices), min(prices), prices[-1], volume, quote, len(trades))
