"""The numbers of the running desk: values its book, finds its history, follows its equity curve.

Importing this is cheap; numpy and the bundled history are loaded, off the event loop, when a report is first asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from mcp_servers.risk.context import Frame, MarketFrame
from trading.domain.accounts import split_symbol
from trading.domain.errors import LedgerError, Unavailable
from trading.domain.identifiers import Currency
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed
from trading.domain.money import ZERO, add, multiply, subtract
from trading.ports.ledger import Ledger, Row, Unit

from .equity_curve import SCOPE, EquityCurve, read_curve
from .liquidity import Holding, flatten

if TYPE_CHECKING:
    from .history import ClosesSource, OwnHistory, Returns
    from .report import Book, Report

log = logging.getLogger("grekko.risk")

#: What is measured: what is held, or the larger of both worst cases of what is held and promised.
Basis = Literal["held", "worst_case"]
#: Where returns are from: the desk's own if they suffice, own ones only, or the bundled years.
History = Literal["best", "own", "assumed"]


class RiskNumbers:
    """Answers what the present book may lose; changes nothing.

    Args:
        closes: the archive of closed candles; without one every report rests on the bundled years.
        data_of: whose market data prices an instrument.
    """

    def __init__(self, closes: ClosesSource | None, data_of: Callable[[InstrumentId], InstrumentId]) -> None:
        self._closes = closes
        self._data_of = data_of
        self._own: OwnHistory | None = None
        self.curve = EquityCurve()

    def restore(self, states: Mapping[str, Row]) -> None:
        """Go on where the last run stopped; ``states`` are the rows of ``desk_state`` by scope."""
        self.curve = EquityCurve(read_curve(states.get(SCOPE)))

    async def follow(self, frame: Frame, ledger: Ledger) -> None:
        """Take a point of the equity curve and keep it, at most once a minute."""
        self.curve.sample(frame.equity, frame.portfolio.trading_result(frame.marks), frame.now_ms)
        row = self.curve.unsaved(frame.now_ms)
        if row is None:
            return
        try:
            await ledger.commit(Unit(writes=(row,)))
        except LedgerError as error:
            if error.code == "LEASE_LOST":
                raise
            log.warning("the equity curve is not written yet (%s)", error.code)
            return
        self.curve.saved(frame.now_ms)

    async def report(self, frame: Frame, *, basis: Basis = "held", history: History = "best") -> Report:
        """Return every number of the present book.

        Raises:
            Unavailable: something held or promised never had a price.
        """
        await asyncio.to_thread(_load)
        from .report import make_report

        book, notes = _book(frame, basis)
        returns = await self._returns(frame, book, history, notes)
        flattening = flatten(_holding(frame, item, market) for item, market in frame.markets.items())
        # Beside the loop, which goes on signing: what is passed is a picture of this moment.
        return await asyncio.to_thread(make_report, book, returns, flattening, self.curve.state, notes)

    async def _returns(self, frame: Frame, book: Book, history: History, notes: list[str]) -> dict[str, Returns]:
        from .history import ENOUGH, HORIZONS, assumed

        found: dict[str, Returns] = {}
        for horizon in HORIZONS:
            own = None if history == "assumed" else await self._own_returns(horizon, frame, book, notes)
            if own is not None and (history == "own" or len(own.matrix) >= ENOUGH):
                found[horizon] = own
            elif history != "own":
                found[horizon] = assumed(horizon, tuple(book.values))
        return found

    async def _own_returns(self, horizon: str, frame: Frame, book: Book, notes: list[str]) -> Returns | None:
        if self._closes is None:
            return None
        from .history import BENCHMARK, OwnHistory

        self._own = self._own or OwnHistory(self._closes)
        books = [market.book for market in frame.markets.values() if market.book is not None]
        feeds = {each.feed for each in books}
        if len(feeds) != 1:
            return None  # nothing to value, or live and recorded prices side by side
        feed = feeds.pop()
        now_ms = frame.now_ms if feed is Feed.LIVE else max(each.venue_ts_ms for each in books)
        priced = {_base(item): self._data_of(item) for item in frame.markets}
        assets = {asset: item for asset, item in priced.items() if asset in book.values or asset == BENCHMARK}
        try:
            return await self._own.returns(horizon, assets, feed, now_ms)
        except LedgerError as error:
            note = f"the market archive does not answer ({error.code})"
            notes += [] if note in notes else [note]
            return None


def _load() -> None:
    """Import numpy and read the bundled history, once."""
    from .bundled import bundled

    bundled()


def _book(frame: Frame, basis: Basis) -> tuple[Book, list[str]]:
    """Return the book and what must be said about its prices."""
    from .report import Book

    values, stale = dict[Currency, float](), list[str]()
    for item, market in frame.markets.items():
        size = _size(frame, item, basis)
        if not size:
            continue
        if market.mid is None:
            raise Unavailable(f"{item.symbol} never had a price, so the book cannot be valued", code="NO_MARK")
        if market.problem:
            stale.append(item.symbol)
        values[_base(item)] = values.get(_base(item), 0.0) + float(multiply(size, market.mid))
    notes = [f"valued at the last known price: {', '.join(stale)}"] if stale else []
    priced = {_base(item) for item in frame.markets} | {frame.portfolio.quote}
    strange = sorted(name for name, amount in frame.portfolio.book.totals.items() if amount and name not in priced)
    if strange:
        notes.append(f"not counted, for nothing here prices it: {', '.join(strange)}")
    return Book(values, None if frame.equity is None else float(frame.equity)), notes


def _size(frame: Frame, instrument_id: InstrumentId, basis: Basis) -> Decimal:
    """Return base held; or, of the two worst cases, the one that is further from zero, with its sign."""
    held = frame.portfolio.held(instrument_id)
    if basis == "held":
        return held
    exposure = frame.reservations.exposure(instrument_id)
    long, short = add(held, exposure.buy_open), subtract(held, exposure.sell_open)
    return long if abs(long) >= abs(short) else short


def _holding(frame: Frame, instrument_id: InstrumentId, market: MarketFrame) -> Holding:
    held = frame.portfolio.held(instrument_id)
    return Holding(held, market.mid or ZERO, None if market.problem else market.book)


def _base(instrument_id: InstrumentId) -> Currency:
    return split_symbol(instrument_id)[0]
