"""Public live data of an exchange through ccxt.pro: whole books and trades, no key, no account.

Rules kept here:

- ccxt is imported only when this source starts: it is large.
- ccxt keeps the book itself and gives it whole. It conflates: between two reads several changes may have happened.
  Trades are not conflated.
- Any failure ends the connection; the next one is tried after 1, 2, 4 … 30 s, for ever. Meanwhile books are empty,
  nothing is published, and the status says why under a stable code.
- Numbers pass through ccxt as floats; their shortest text is the venue's text for any number of up to 15 digits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol, cast

from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceStatus, SourceUpdate
from trading.adapters.market_wire import MAX_LEVELS, TradeUpdate
from trading.domain.errors import ConfigurationError, InvalidValue
from trading.domain.identifiers import Currency, Symbol, Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed, Side
from trading.domain.money import check_decimal, plain
from trading.ports.clock import Clock

_log = logging.getLogger(__name__)

_QUEUE: Final = 10_000  # updates between ccxt and the pipeline
_BACKOFF_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_SILENCE_S: Final = 30.0  # a subscription that gives nothing for this long is taken for dead
_TICK_SIZE: Final = 4  # ccxt.TICK_SIZE
_SUGGESTION: Final = "check the network, or start the market with --market replay"


class Exchange(Protocol):
    """The part of a ccxt.pro exchange that is used here."""

    precisionMode: int  # noqa: N815  ccxt's name

    async def load_markets(self) -> dict[str, Any]:
        """Return the venue's markets by symbol."""
        ...

    async def watch_order_book(self, symbol: str) -> dict[str, Any]:
        """Return the book after its next change."""
        ...

    async def watch_trades(self, symbol: str) -> list[dict[str, Any]]:
        """Return the trades since the last call."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


def open_exchange(venue: str, *, rest_url: str | None = None, ws_url: str | None = None) -> Exchange:
    """Make a ccxt.pro exchange for public spot data.

    Args:
        venue: ccxt's id, such as ``binance``.
        rest_url, ws_url: other addresses, for tests and testnets (Binance's layout).

    Raises:
        ConfigurationError: ccxt has no such venue.
    """
    import ccxt.pro as ccxt_pro  # pyright: ignore[reportMissingTypeStubs]

    kind: Any = getattr(ccxt_pro, venue, None) if venue in ccxt_pro.exchanges else None
    if kind is None:
        raise ConfigurationError(f"no public live data for venue {venue!r}", suggestion="use a ccxt exchange id")
    exchange: Any = kind(
        {"enableRateLimit": True, "options": {"defaultType": "spot", "fetchMarkets": {"types": ["spot"]}}}
    )
    if rest_url:
        for name in ("public", "private", "v1"):
            exchange.urls["api"][name] = rest_url
    if ws_url:
        exchange.urls["api"]["ws"]["spot"] = ws_url
    return cast("Exchange", exchange)


class CcxtLiveSource:
    """Live public data of some symbols of one venue.

    Args:
        open_: makes a fresh exchange for every connection.
        sleep: waits for seconds between attempts; a test's clock replaces it.
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
    ) -> None:
        self._venue = venue
        self._symbols = tuple(symbols)
        self._clock = clock
        self._open = open_ or (lambda: open_exchange(venue))
        self._sleep = sleep
        self._state = SourceState.STARTING
        self._code = self._message = ""
        self._counts: dict[str, int] = dict.fromkeys(("connections", "failures", "garbage"), 0)
        self._received = False

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
        return SourceStatus(self._state, self._code, self._message, dict(self._counts))

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield live updates; connects again for ever."""
        attempt = 0
        while True:
            queue: asyncio.Queue[SourceUpdate | Exception] = asyncio.Queue(_QUEUE)
            worker = asyncio.create_task(self._connection(queue), name=f"market-live-{self._venue}")
            self._received = False
            try:
                while True:
                    item = await queue.get()
                    if isinstance(item, Exception):
                        self._failed(item)
                        break
                    yield item
            finally:
                worker.cancel()
                await asyncio.wait([worker])
            yield Restarted(tuple(InstrumentId(self._venue, symbol) for symbol in self._symbols), self._code)
            attempt = 0 if self._received else attempt + 1
            await self._sleep(_BACKOFF_S[min(max(attempt - 1, 0), len(_BACKOFF_S) - 1)])

    async def _connection(self, queue: asyncio.Queue[SourceUpdate | Exception]) -> None:
        """Fill the queue from one connection; its last item is why the connection ended."""
        exchange: Exchange | None = None
        try:
            exchange = self._open()
            markets = await exchange.load_markets()
            await queue.put(Rules(tuple(self._instrument(exchange, markets, symbol) for symbol in self._symbols)))
            async with asyncio.TaskGroup() as group:
                for symbol in self._symbols:
                    group.create_task(self._books(exchange, symbol, queue))
                    group.create_task(self._trades(exchange, symbol, queue))
        except Exception as error:  # noqa: BLE001  the boundary of the connection: whatever ccxt raises ends it
            await queue.put(_first_of(error))
        finally:
            if exchange is not None:
                with contextlib.suppress(Exception):
                    await exchange.close()

    async def _books(self, exchange: Exchange, symbol: Symbol, queue: asyncio.Queue[SourceUpdate | Exception]) -> None:
        instrument_id = InstrumentId(self._venue, symbol)
        while True:
            async with asyncio.timeout(_SILENCE_S):
                book = await exchange.watch_order_book(symbol)
            now = self._clock.now_ms()
            try:
                bids, asks = (_levels(book[side]) for side in ("bids", "asks"))
                update = Snapshot(instrument_id, 0, bids, asks, int(book.get("timestamp") or now), now)
            except (InvalidValue, KeyError, TypeError, ValueError):
                self._counts["garbage"] += 1
                continue
            self._connected()
            await queue.put(update)

    async def _trades(self, exchange: Exchange, symbol: Symbol, queue: asyncio.Queue[SourceUpdate | Exception]) -> None:
        instrument_id = InstrumentId(self._venue, symbol)
        while True:
            for trade in await exchange.watch_trades(symbol):
                now = self._clock.now_ms()
                try:
                    price, quantity = number_text(trade["price"]), number_text(trade["amount"])
                    side, venue_ts = Side(str(trade["side"])), int(trade.get("timestamp") or now)
                    update = TradeUpdate(instrument_id, str(trade["id"]), price, quantity, side, venue_ts, now)
                except (InvalidValue, KeyError, TypeError, ValueError):
                    self._counts["garbage"] += 1
                    continue
                await queue.put(update)

    def _connected(self) -> None:
        if not self._received:
            self._received = True
            self._counts["connections"] += 1
            self._state, self._code, self._message = SourceState.RUNNING, "", ""

    def _failed(self, error: Exception) -> None:
        self._counts["failures"] += 1
        self._state = SourceState.RECONNECTING
        network = is_network_error(error)
        self._code = "NO_NETWORK" if network else "VENUE_REFUSED"
        reason = "cannot be reached" if network else "does not give its data"
        self._message = f"{self._venue} {reason} ({type(error).__name__}); {_SUGGESTION}"
        _log.warning("%s", self._message)

    def _instrument(self, exchange: Exchange, markets: dict[str, Any], symbol: Symbol) -> Instrument:
        market = markets.get(symbol)
        if market is None or not market.get("spot", True):
            raise ConfigurationError(f"{self._venue} has no spot market {symbol}")
        return instrument_of(self._venue, market, tick_size=exchange.precisionMode == _TICK_SIZE)


def _first_of(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error


def instrument_of(venue: Venue, market: dict[str, Any], *, tick_size: bool) -> Instrument:
    """Return the rules in a unified ccxt market.

    Args:
        market: ccxt's market structure.
        tick_size: whether its precisions are steps; otherwise they are numbers of decimal places.

    Raises:
        InvalidValue: tick or step is missing.
    """
    precision, limits = market["precision"], market["limits"]

    def step(value: object) -> Decimal:
        if value is None:
            raise InvalidValue(f"{venue} does not say tick and step of {market['symbol']}", code="INVALID_INSTRUMENT")
        return _decimal(value) if tick_size else Decimal(1).scaleb(-int(_decimal(value)))

    def bound(kind: str, end: str) -> Decimal | None:
        range_: dict[str, object] = limits.get(kind) or {}
        value = range_.get(end)
        return None if value is None else _decimal(value)

    return Instrument(
        id=InstrumentId(venue, Symbol(market["symbol"])),
        base=Currency(market["base"]),
        quote=Currency(market["quote"]),
        price_tick=step(precision.get("price")),
        quantity_step=step(precision.get("amount")),
        quantity_min=bound("amount", "min") or Decimal(0),
        quantity_max=bound("amount", "max"),
        notional_min=bound("cost", "min") or Decimal(0),
        notional_max=bound("cost", "max"),
        maker_fee=_decimal(market.get("maker") or 0),
        taker_fee=_decimal(market.get("taker") or 0),
    )


def is_network_error(error: BaseException) -> bool:
    """Return whether the venue was not reached, as opposed to answering with a refusal."""
    if isinstance(error, (OSError, TimeoutError)):
        return True
    return any(kind.__name__ == "NetworkError" for kind in type(error).__mro__)


def _levels(rows: Sequence[Sequence[object]]) -> list[tuple[str, str]]:
    return [(number_text(row[0]), number_text(row[1])) for row in rows[:MAX_LEVELS]]


def number_text(value: object) -> str:
    """Return a positive number of ccxt's as plain decimal text.

    Raises:
        InvalidValue: not a finite number greater than zero.
    """
    number = _decimal(value)
    if number <= 0:
        raise InvalidValue("a price or quantity is not positive", code="MALFORMED")
    return plain(number)


def _decimal(value: object) -> Decimal:
    try:
        return check_decimal(Decimal(str(value)))
    except ArithmeticError as error:
        raise InvalidValue("not a number", code="MALFORMED") from error
