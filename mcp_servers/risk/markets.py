"""Prices and venue rules as risk reads them itself: relabelled to the trading venue, judged for freshness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Protocol

from trading.domain.identifiers import Currency
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.proposals import Mode

from .context import MarketFrame
from .limits import RiskLimits
from .unrest import Unrest


class MarketSource(Protocol):
    """The part of a market feed that risk reads; answers from memory."""

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest authenticated book, None if there never was one."""
        ...

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules, None when the instrument is unknown."""
        ...


class _Known:
    """What is remembered of one instrument between frames."""

    __slots__ = ("book", "flaw", "instrument", "mid", "raw", "seen_ms", "unrest")

    def __init__(self) -> None:
        self.book: OrderBook | None = None
        self.flaw = _flaw(None)
        self.raw: Instrument | None = None
        self.instrument: Instrument | None = None
        self.mid: Decimal | None = None
        self.seen_ms = 0
        self.unrest = Unrest()

    def take(self, book: OrderBook | None, now_ms: int, window_ms: int) -> None:
        """Look at another book; its mid replaces the last one if it has any."""
        self.book, self.flaw = book, _flaw(book)
        mid = None if book is None else book.mid
        if mid is not None:
            self.mid = mid
            self.unrest.range.observe(mid, now_ms, window_ms)


class Markets:
    """Builds the market part of a frame.

    Args:
        source: the market room's feed.
        instruments: what the desk trades.
        data_of: whose market data prices an instrument (the paper venue trades on another venue's book).
        mode: outside paper the venue's own time must be fresh too.
        last_trade: the newest public trade of an instrument; None where none are read.
    """

    def __init__(
        self,
        source: MarketSource,
        instruments: tuple[InstrumentId, ...],
        data_of: Callable[[InstrumentId], InstrumentId],
        mode: Mode,
        last_trade: Callable[[InstrumentId], TradePrint | None] | None = None,
    ) -> None:
        self._source = source
        self._data_of = {instrument_id: data_of(instrument_id) for instrument_id in instruments}
        self._mode = mode
        self._last_trade = last_trade
        self._known = {instrument_id: _Known() for instrument_id in instruments}

    def frames(self, limits: RiskLimits, now_ms: int) -> dict[InstrumentId, MarketFrame]:
        """Return every instrument of the desk at this moment."""
        return {instrument_id: self._frame(instrument_id, limits, now_ms) for instrument_id in self._data_of}

    def _frame(self, instrument_id: InstrumentId, limits: RiskLimits, now_ms: int) -> MarketFrame:
        data_id, known = self._data_of[instrument_id], self._known[instrument_id]
        raw = self._source.instrument(data_id)
        if raw is not None and raw is not known.raw:
            known.raw, known.instrument = raw, replace(raw, id=instrument_id)
            known.seen_ms = now_ms
        book = self._source.book(data_id)
        if book is not known.book:
            known.take(book, now_ms, limits.move_window_ms)
        if self._last_trade is not None:
            known.unrest.sizes.observe(self._last_trade(data_id))
        age, problem = None, known.flaw
        if book is not None:
            age = self._age_ms(book, now_ms)
            if not problem and age > limits.market_max_age_ms:
                problem = f"the book is {age} ms old"
        if not problem and raw is not None:
            known.seen_ms = now_ms  # the market room is alive and stands by its rules
        rules_age = None if known.instrument is None else max(0, now_ms - known.seen_ms)
        return MarketFrame(
            instrument=known.instrument,
            instrument_age_ms=rules_age,
            book=book,
            mid=known.mid,
            age_ms=age,
            problem=problem,
            unrest=known.unrest,
        )

    def _age_ms(self, book: OrderBook, now_ms: int) -> int:
        age = book.age_ms(now_ms)
        return age if self._mode is Mode.PAPER else max(age, now_ms - book.venue_ts_ms)


def _flaw(book: OrderBook | None) -> str:
    """Return why the book gives no price, whatever its age; empty when it does."""
    if book is None:
        return "there is no market data"
    if not book.bids or not book.asks:
        return "the book is one-sided"
    return "" if book.is_two_sided else "the book is crossed or locked"


def marks_of(markets: dict[InstrumentId, MarketFrame], quote: Currency) -> dict[Currency, Decimal]:
    """Return the fresh mid of every currency that the desk trades against ``quote``."""
    marks: dict[Currency, Decimal] = {}
    for market in markets.values():
        instrument = market.instrument
        if instrument is not None and instrument.quote == quote and market.mid is not None and not market.problem:
            marks[instrument.base] = market.mid
    return marks
