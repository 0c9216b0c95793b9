"""Public live data of an exchange through ccxt.pro: whole books and trades, no key, no account.

Rules kept here:

- ccxt keeps the book itself and gives it whole. It conflates: between two reads several changes may have happened.
  What was lost is seen in the raw frames (``sequences``), and a book is given only while its series is whole.
- Trades are never conflated. Those a venue repeats after a reconnect are dropped by their id; a batch as long as what
  ccxt keeps may have lost some, and is counted as ``trades_overrun``.
- Any failure ends the connection; the next try waits a random part of 1, 2, 4 … 30 s, or as long as the venue asks,
  for ever. Meanwhile books are empty, nothing is published, and the status says why under a stable code.
- A symbol that the venue does not have is left out and named; without any the venue refuses.
- Every exchange is closed, however its connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as random_numbers
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceStatus, SourceUpdate
from mcp_servers.market.sources.ccxt.connection import Connection
from mcp_servers.market.sources.ccxt.exchange import (
    TICK_SIZE,
    TRADES_LIMIT,
    Exchange,
    book_limit,
    heartbeat_of,
    open_exchange,
    trade_parameters,
)
from mcp_servers.market.sources.ccxt.failures import Resync, Trouble, trouble_of
from mcp_servers.market.sources.ccxt.instruments import instrument_of, levels_of
from mcp_servers.market.sources.ccxt.sequences import sequence_check
from mcp_servers.market.sources.ccxt.trades import TradeReader
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

SILENCE_S: Final = 30.0  # a book that gives nothing for this long is taken for dead
RULES_S: Final = 3_600.0  # how long loaded rules are used, over reconnects as well
_QUEUE: Final = 10_000  # updates between ccxt and the pipeline
_BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_STEADY_NS: Final = 10_000_000_000  # a connection that lasted so long does not lengthen the next wait
_START_S: Final = 60.0  # longest wait for the rules
_SUGGESTION: Final = "check the network, or start the market with --market replay"
_COUNTERS: Final = (
    "connections", "failures", "garbage", "old", "gaps", "resyncs", "silent", "refused", "trades_overrun",
    "trades_repeated", "missing_symbols",
)  # fmt: skip

_Item = SourceUpdate | Exception


class CcxtLiveSource:
    """Live public data of some symbols of one venue.

    Args:
        open_: makes a fresh exchange for every connection.
        sleep: waits for seconds between attempts; a test's clock replaces it.
        random: a number from 0 to 1 that spreads the attempts of many clients.
        silence_s: a book that gives nothing for so many seconds is subscribed to again.

    Attributes:
        clock_offset_ms: this machine's clock minus the venue's, by its REST time at connection; None when the venue
            does not tell. Half the round trip may be wrong about it.
    """

    feed = Feed.LIVE
    catching_up = False

    def __init__(
        self,
        venue: Venue,
        symbols: Sequence[Symbol],
        clock: Clock,
        *,
        open_: Callable[[], Exchange] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random: Callable[[], float] = random_numbers.random,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._venue = venue
        self._symbols = tuple(symbols)
        self._clock = clock
        self._open = open_ or (lambda: open_exchange(venue))
        self._sleep = sleep
        self._random = random
        self._silence_s = silence_s
        self._state = SourceState.STARTING
        self._trouble: Trouble | None = None
        self._missing: tuple[Symbol, ...] = ()
        self._counts: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._new_check = sequence_check(venue, lambda: self._markets)
        self._counts["sequence_checked"] = int(self._new_check().checks)
        self._markets: Mapping[str, Any] = {}
        self._markets_ns = 0
        self._trades = TradeReader(venue, self._symbols, self._counts)
        self._running_ns: int | None = None
        self.clock_offset_ms: int | None = None

    @property
    def venue(self) -> Venue:
        """Whose data it is."""
        return self._venue

    def position(self) -> None:
        """Return None: the present cannot be resumed."""
        return

    def fresh_start(self) -> None:
        """Return None: the next start begins with the present."""
        return

    def status(self) -> SourceStatus:
        """Return state, the reason of the last failure while it lasts, and counters."""
        trouble, message = self._trouble, ""
        if trouble is not None:
            wait = f"; it asks to wait {trouble.after_ms / 1_000:g} s" if trouble.after_ms else ""
            message = f"{self._venue} {trouble.reason} ({trouble.kind}){wait}; {_SUGGESTION}"
        elif self._missing:
            message = f"{self._venue} has no spot market {', '.join(self._missing)}"
        return SourceStatus(self._state, trouble.code if trouble else "", message, dict(self._counts))

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield live updates; connects again for ever."""
        attempt = 0
        closing: set[asyncio.Task[None]] = set()  # a half-open socket takes seconds to close; nobody waits for it
        try:
            while True:
                queue: asyncio.Queue[_Item] = asyncio.Queue(_QUEUE)
                worker = asyncio.create_task(self._connection(queue), name=f"market-live-{self._venue}")
                closing.add(worker)
                worker.add_done_callback(closing.discard)
                self._running_ns = None
                failure: Exception | None = None
                try:
                    while failure is None:
                        item = await queue.get()
                        if isinstance(item, Exception):
                            failure = item
                        else:
                            yield item
                finally:
                    if failure is None:  # nobody listens any more; a worker that failed is closing already
                        worker.cancel()
                assert failure is not None  # the loop ended
                trouble = self._failed(failure)
                yield Restarted(tuple(InstrumentId(self._venue, symbol) for symbol in self._symbols), trouble.code)
                attempt = 1 if self._was_steady() else attempt + 1
                await self._sleep(self._pause_s(attempt, trouble))
        finally:
            if closing:
                await asyncio.wait(closing)

    def _was_steady(self) -> bool:
        return self._running_ns is not None and self._clock.monotonic_ns() - self._running_ns >= _STEADY_NS

    def _pause_s(self, attempt: int, trouble: Trouble) -> float:
        """Return a random part of the attempt's longest wait, and at least what the venue asks for."""
        longest = _BACKOFF_S[min(attempt - 1, len(_BACKOFF_S) - 1)]
        return max(trouble.after_ms / 1_000, self._random() * longest)

    async def _connection(self, queue: asyncio.Queue[_Item]) -> None:
        """Fill the queue from one connection; its last item is why the connection ended."""
        exchange: Exchange | None = None
        try:
            exchange = await asyncio.to_thread(self._open)  # the first import of ccxt takes a second
            found = await self._load(exchange)
            await queue.put(Rules(found))
            symbols = tuple(item.symbol for item in found)
            link = Connection(exchange, symbols, new_check=self._new_check, clock=self._clock, counts=self._counts)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._compare_clocks(exchange))
                group.create_task(self._heartbeats(link))
                group.create_task(self._reload(exchange, found, queue))
                for symbol in symbols:
                    group.create_task(self._books(link, symbol, queue))
                    group.create_task(self._read_trades(link, symbol, queue))
        except Exception as error:  # noqa: BLE001  the boundary of the connection: whatever ccxt raises ends it
            await queue.put(error)
        finally:
            if exchange is not None:
                with contextlib.suppress(Exception):
                    await exchange.close()

    async def _load(self, exchange: Exchange, *, again: bool = False) -> tuple[Instrument, ...]:
        """Return the rules of the symbols the venue has; markets that are still good are not asked for again.

        Raises:
            ConfigurationError: it has none of them. Otherwise what ccxt raises.
        """
        fresh = self._markets and self._clock.monotonic_ns() - self._markets_ns < RULES_S * 1e9
        if fresh and not again:
            exchange.set_markets(list(self._markets.values()))
        async with asyncio.timeout(_START_S):
            markets = await exchange.load_markets(again)
        if not fresh or again:
            self._markets, self._markets_ns = markets, self._clock.monotonic_ns()
        known = [symbol for symbol in self._symbols if markets.get(symbol, {}).get("spot")]
        self._missing = tuple(symbol for symbol in self._symbols if symbol not in known)
        self._counts["missing_symbols"] = len(self._missing)
        if not known:
            raise ConfigurationError(
                f"has no spot market {', '.join(self._missing)}", code="UNKNOWN_INSTRUMENT" if markets else "GARBAGE"
            )
        tick_size = exchange.precisionMode == TICK_SIZE
        return tuple(instrument_of(self._venue, markets[symbol], tick_size=tick_size) for symbol in known)

    async def _reload(self, exchange: Exchange, known: tuple[Instrument, ...], queue: asyncio.Queue[_Item]) -> None:
        """Give the rules again when they changed; a failed look is tried again later."""
        while True:
            await asyncio.sleep(RULES_S)
            with contextlib.suppress(Exception):
                found = await self._load(exchange, again=True)
                if found != known:
                    await queue.put(Rules(found))
                known = found

    async def _compare_clocks(self, exchange: Exchange) -> None:
        if not exchange.has.get("fetchTime"):
            return
        before = self._clock.now_ms()
        with contextlib.suppress(Exception):  # a hint only; a venue that cannot be reached shows elsewhere
            async with asyncio.timeout(self._silence_s):
                theirs = await exchange.fetch_time()
            if theirs:
                self.clock_offset_ms = (before + self._clock.now_ms()) // 2 - int(theirs)

    async def _heartbeats(self, link: Connection) -> None:
        while (beat := heartbeat_of(self._venue, link.exchange)) is not None:
            with contextlib.suppress(Resync):
                await link.next(beat)

    async def _books(self, link: Connection, symbol: Symbol, queue: asyncio.Queue[_Item]) -> None:
        """Give a symbol's books; an empty one at once when a change was lost."""
        instrument_id = InstrumentId(self._venue, symbol)
        given = False
        while True:
            book, reason = await self._next_book(link, symbol)
            if reason and given:
                given = False
                await queue.put(Restarted((instrument_id,), reason))
            if book is None:
                continue
            now = link.received_ms or self._clock.now_ms()
            try:
                bids, asks = levels_of(book["bids"]), levels_of(book["asks"])
                update = Snapshot(instrument_id, 0, bids, asks, int(book.get("timestamp") or 0), now)
            except (InvalidValue, KeyError, TypeError, ValueError, IndexError):
                self._counts["garbage"] += 1
                continue
            self._connected()
            given = True
            await queue.put(update)

    async def _next_book(self, link: Connection, symbol: Symbol) -> tuple[dict[str, Any] | None, str]:
        """Return the next whole book, or why the one before became worthless."""
        watched = link.exchange.watch_order_book(symbol, book_limit(self._venue))
        try:
            book = await link.next(watched, limit_s=self._silence_s)
        except Resync as error:
            return None, link.take_broken(symbol) or str(error)
        except TimeoutError:
            link.check_silence(symbol, self._silence_s, running=self._running_ns is not None)
            return None, link.take_broken(symbol) or "silent"
        except Exception as error:
            if not any(kind.__name__ == "InvalidNonce" for kind in type(error).__mro__):
                raise
            self._counts["gaps"] += 1
            link.drop_all("gap")
            return None, link.take_broken(symbol) or "gap"
        reason = link.take_broken(symbol)  # lost after ccxt answered and before we woke
        return (None if reason else book), reason

    async def _read_trades(self, link: Connection, symbol: Symbol, queue: asyncio.Queue[_Item]) -> None:
        while True:
            try:
                batch = await link.next(link.exchange.watch_trades(symbol, params=trade_parameters(self._venue)))
            except Resync:
                continue
            if len(batch) >= TRADES_LIMIT:
                self._counts["trades_overrun"] += 1
                _log.warning("%s %s: trades may have been lost, too many came at once", self._venue, symbol)
            for update in self._trades.read(symbol, batch, link.received_ms or self._clock.now_ms()):
                await queue.put(update)

    def _connected(self) -> None:
        if self._running_ns is None:
            self._running_ns = self._clock.monotonic_ns()
            self._counts["connections"] += 1
            self._state, self._trouble = SourceState.RUNNING, None

    def _failed(self, error: Exception) -> Trouble:
        self._counts["failures"] += 1
        self._state = SourceState.RECONNECTING
        self._trouble = trouble_of(error)
        _log.warning("%s", self.status().message)
        return self._trouble
