"""What the hosted agents see: the authenticated market stream, candles made of it, and the account's figures.

Reading is from memory and never waits; two tasks keep it fresh. An instrument whose book, rules or account figures
are not known gives no snapshot, and agents without one hold and withhold their consent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, Protocol, cast

from coordinator.rooms import Room
from mcp_servers.hosting import ToolFailure
from trading.domain.errors import InvalidValue, OutcomeUnknown, Unavailable
from trading.domain.identifiers import AccountId, Currency, Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.money import ZERO, add, multiply, parse_decimal
from trading.domain.portfolio import Balance
from trading.ports.clock import Clock
from trading.strategy.candles import CandleBuilder
from trading.strategy.indicators import WARM_UP
from trading.strategy.snapshot import MarketSnapshot

_log = logging.getLogger(__name__)

_CANDLES_KEPT: Final = 4 * WARM_UP
_CALL_TIMEOUT_S: Final = 1.0


class Market(Protocol):
    """What is read of ``trading.adapters.market_stream.MarketStreamView``."""

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest authenticated book."""
        ...

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules."""
        ...


class TradeFeed(Protocol):
    """A subscription to trades."""

    def __aiter__(self) -> TradeFeed: ...

    async def __anext__(self) -> TradePrint: ...


@dataclass(frozen=True, slots=True)
class AccountFigures:
    """Balances as execution told them.

    Attributes:
        read_ns: monotonic time of the answer.
    """

    balances: Mapping[Currency, Balance]
    read_ns: int


class SnapshotBook:
    """Makes snapshots of every symbol of the desk.

    Args:
        market: books and rules by the market venue's instruments.
        execution: asked for the account.
        venue: where orders go; its instruments are the market venue's, relabelled.
        market_venue: whose data prices them.
    """

    def __init__(
        self,
        market: Market,
        execution: Room,
        *,
        account_id: AccountId,
        venue: Venue,
        market_venue: Venue,
        symbols: Sequence[Symbol],
        quote: Currency,
        candle_ms: int,
        clock: Clock,
    ) -> None:
        self._market = market
        self._execution = execution
        self._account_id = account_id
        self._venue = venue
        self._market_venue = market_venue
        self._quote = quote
        self._clock = clock
        self._candles = {
            symbol: CandleBuilder(InstrumentId(market_venue, symbol), interval_ms=candle_ms, kept=_CANDLES_KEPT)
            for symbol in symbols
        }
        self._account: AccountFigures | None = None

    @property
    def account_age_ms(self) -> int | None:
        """Milliseconds since the account was read; None if it never was."""
        if self._account is None:
            return None
        return (self._clock.monotonic_ns() - self._account.read_ns) // 1_000_000

    def snapshot(self, symbol: Symbol) -> MarketSnapshot | None:
        """Return the present state of an instrument, None while something of it is not known."""
        source = InstrumentId(self._market_venue, symbol)
        book, rules, candles = self._market.book(source), self._market.instrument(source), self._candles.get(symbol)
        age_ms, account = self.account_age_ms, self._account
        if book is None or rules is None or candles is None or account is None or age_ms is None:
            return None
        candles.advance(book.venue_ts_ms)
        equity = self._equity(account)
        if equity is None:
            return None
        return MarketSnapshot(
            account_id=self._account_id,
            instrument=replace(rules, id=InstrumentId(self._venue, symbol)),
            book=book,
            candles=candles.closed,
            # All of it: a stop that rests at the venue locks the position and gives way to an approved order.
            held=max(ZERO, _total(account, rules.base)),
            equity=equity,
            cash=max(ZERO, _free(account, self._quote)),
            book_age_ms=book.age_ms(self._clock.now_ms()),
            account_age_ms=age_ms,
        )

    def _equity(self, account: AccountFigures) -> Decimal | None:
        """Return the worth of all balances in quote; None when one of ours has no price."""
        worth = ZERO
        marks = {self._quote: Decimal(1)}
        for symbol in self._candles:
            rules, book = (
                self._market.instrument(InstrumentId(self._market_venue, symbol)),
                self._market.book(InstrumentId(self._market_venue, symbol)),
            )
            if rules is not None and book is not None and book.mid is not None and rules.quote == self._quote:
                marks[rules.base] = book.mid
        for currency, balance in account.balances.items():
            if not balance.total:
                continue
            if currency not in marks:
                return None
            worth = add(worth, multiply(balance.total, marks[currency]))
        return worth

    def take(self, trade: TradePrint) -> None:
        """Count a trade into its candle."""
        candles = self._candles.get(trade.instrument_id.symbol)
        if candles is not None and trade.instrument_id.venue == self._market_venue:
            candles.add(trade)

    async def follow_trades(self, trades: TradeFeed) -> None:
        """Build candles for ever."""
        async for trade in trades:
            self.take(trade)

    async def read_account(self) -> None:
        """Ask execution for the account's balances, once.

        Raises:
            TradingError: no answer, a refusal, or figures that are no numbers.
        """
        data = await self._execution.call("execution_get_account", timeout_s=_CALL_TIMEOUT_S, account=self._account_id)
        self._account = AccountFigures(balances_of(data), self._clock.monotonic_ns())

    async def follow_account(self, every_ms: int) -> None:
        """Read the account again and again; a failure leaves the old figures to grow old."""
        failed = False
        while True:
            try:
                await self.read_account()
                failed = False
            except (ToolFailure, OutcomeUnknown, Unavailable, InvalidValue) as error:
                if not failed:
                    _log.info("the account cannot be read: %s", error.code)
                failed = True
            await asyncio.sleep(every_ms / 1_000)


def balances_of(data: dict[str, Any]) -> dict[Currency, Balance]:
    """Return the balances in the answer of ``execution_get_account``.

    Raises:
        InvalidValue: an amount is no number.
    """
    rows = cast("list[dict[str, Any]]", data.get("balances") or [])
    return {
        Currency(str(row["currency"])): Balance(
            parse_decimal(str(row["total"])), parse_decimal(str(row.get("locked") or "0"))
        )
        for row in rows
    }


def _total(account: AccountFigures, currency: Currency) -> Decimal:
    balance = account.balances.get(currency)
    return balance.total if balance is not None else ZERO


def _free(account: AccountFigures, currency: Currency) -> Decimal:
    balance = account.balances.get(currency)
    return balance.free if balance is not None else ZERO
