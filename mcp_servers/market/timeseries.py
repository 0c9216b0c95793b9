"""Ticks and closed candles as InfluxDB line protocol, to a server that accepts v2 writes.

One measurement, ``market_data``; tags ``symbol``, ``exchange`` and ``data_type``::

    trade       price, quantity, side (1 bought, -1 sold)      every print
    quote       bid, ask, bid_size, ask_size                   every change of the best levels that is published
    candle_1m   open, high, low, close, volume, trades, complete

Times are the venue's, in nanoseconds. A venue gives milliseconds: the six digits below tell points of one millisecond
apart, which would otherwise replace one another; they say nothing of time. A candle's are zero, so that it can be
written again. Rules kept here:

- The feed only appends to a bounded buffer. When it is full the oldest points are dropped and counted.
- One request at a time. A server that is away, busy or refuses the token is asked again with growing, jittered pauses,
  or when its Retry-After says; points it calls malformed are dropped and counted.
- At the stop what is left is sent, for a few seconds at most, and the rest counted.
- The token goes to that address alone: redirects are not followed, and plain ``http`` is for this machine.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from importlib import import_module
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.settings import InfluxSettings
from trading.adapters.market_wire import BookUpdate, TradeUpdate
from trading.domain.errors import ConfigurationError
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle, Side
from trading.domain.money import plain
from trading.ports.clock import Clock

MEASUREMENT: Final = "market_data"
_BATCH: Final = 1_000
_FLUSH_S: Final = 1.0
_STOP_S: Final = 3.0
_REQUEST_TIMEOUT_MS: Final = 10_000
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_LONGEST_RETRY_AFTER_S: Final = 300.0
_NS_PER_MS: Final = 1_000_000
_MALFORMED: Final = frozenset((400, 422))
_TOO_LARGE: Final = 413
_NAMES: Final = {length: name for name, length in TIMEFRAMES.items()}

_log = logging.getLogger(__name__)


class _Point(NamedTuple):
    instrument_id: InstrumentId
    data_type: str
    fields: str
    time_ns: int


class _Refusal(NamedTuple):
    """Why points were not taken: HTTP status (0 without an answer), and how long the server wants to be left alone."""

    status: int
    retry_after_s: float
    reason: str


def check_url(url: str) -> str:
    """Return the address of a server that may be given the token.

    Raises:
        ConfigurationError: not http or https, or unencrypted to another machine.
    """
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme not in ("http", "https") or not parts.hostname or (parts.scheme == "http" and not local):
        raise ConfigurationError("[market.influx] url must be https unless it is on this machine")
    return url


class TimeSeries:
    """Writes what is published; a sink of the pipelines (``MarketSink``).

    Args:
        settings: with ``url``.
        clock: reads a Retry-After that names a date.
        sleep: waits for seconds; a test's replaces it.
        jitter: a number within [0, 1).

    Raises:
        ConfigurationError: no address, or one that may not be used.
    """

    def __init__(
        self,
        settings: InfluxSettings,
        clock: Clock,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        batch: int = _BATCH,
        flush_s: float = _FLUSH_S,
        stop_s: float = _STOP_S,
    ) -> None:
        self._url = check_url(settings.url or "")
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._batch = batch
        self._flush_s = flush_s
        self._stop_s = stop_s
        self._buffer: deque[_Point] = deque(maxlen=settings.buffer)
        self._full = asyncio.Event()
        self._quotes: dict[InstrumentId, tuple[str, str, str, str]] = {}
        self._ticks = 0
        self._prefixes: dict[tuple[InstrumentId, str], str] = {}
        self._api: Any = None
        self._sending: asyncio.Task[_Refusal | None] | None = None
        self._sent = (0, 0)  # points of the request that is out, and how many had been dropped before it
        self.counters: dict[str, int] = dict.fromkeys(
            ("points", "written", "dropped", "rejected", "requests", "failures"), 0
        )

    @property
    def waiting(self) -> int:
        """Points that are not written yet."""
        return len(self._buffer)

    # ---- called by the feed: appends, never waits

    def publish_instrument(self, instrument: Instrument) -> None:
        """Do nothing: rules are no series."""

    def publish_trade(self, update: TradeUpdate) -> None:
        """Take a trade."""
        side = 1 if update.aggressor is Side.BUY else -1
        fields = f"price={update.price},quantity={update.quantity},side={side}i"
        self._append(update.instrument_id, "trade", fields, self._tick_ns(update.venue_ts_ms))

    def publish_book(self, update: BookUpdate) -> None:
        """Take the best levels if they have changed; those of an unusable book are no quote."""
        if not update.bids or not update.asks or update.state != "ok":
            self._quotes.pop(update.instrument_id, None)
            return
        bid, ask = update.bids[0], update.asks[0]
        quote = (bid[0], ask[0], bid[1], ask[1])
        if self._quotes.get(update.instrument_id) == quote:
            return
        self._quotes[update.instrument_id] = quote
        fields = f"bid={bid[0]},ask={ask[0]},bid_size={bid[1]},ask_size={ask[1]}"
        time_ns = self._tick_ns(update.venue_ts_ms or update.received_ts_ms)
        self._append(update.instrument_id, "quote", fields, time_ns)

    def on_candle_closed(self, candle: Candle, complete: bool) -> None:
        """Take a closed candle; a hook of the archive (``OnCandleClosed``)."""
        prices = ",".join(f"{name}={plain(getattr(candle, name))}" for name in ("open", "high", "low", "close"))
        fields = f"{prices},volume={plain(candle.volume)},trades={candle.trades}i,complete={str(complete).lower()}"
        name = f"candle_{_NAMES[candle.interval_ms]}"
        self._append(candle.instrument_id, name, fields, candle.open_ts_ms * _NS_PER_MS)

    def _tick_ns(self, ts_ms: int) -> int:
        self._ticks = (self._ticks + 1) % _NS_PER_MS
        return ts_ms * _NS_PER_MS + self._ticks

    def _append(self, instrument_id: InstrumentId, data_type: str, fields: str, time_ns: int) -> None:
        buffer = self._buffer
        self.counters["points"] += 1
        self.counters["dropped"] += len(buffer) == buffer.maxlen
        buffer.append(_Point(instrument_id, data_type, fields, time_ns))
        if len(buffer) >= self._batch:
            self._full.set()

    # ---- the writer

    async def run(self) -> None:
        """Send until cancelled; then send what is left, for a few seconds at most."""
        try:
            client = await self._connect()
            try:
                await self._send_for_ever()
            finally:
                try:
                    await self._send_the_rest()
                finally:
                    await client.close()
        finally:
            if self._buffer:
                self.counters["dropped"] += len(self._buffer)
                _log.warning("%d points were not written before the stop", len(self._buffer))
                self._buffer.clear()

    async def _connect(self) -> Any:
        # The library takes a while to load: the feed goes on meanwhile.
        module = await asyncio.to_thread(import_module, "influxdb_client.client.influxdb_client_async")
        client: Any = module.InfluxDBClientAsync(
            url=self._url,
            token=self._settings.token.get_secret_value() or None,
            org=self._settings.org,
            timeout=_REQUEST_TIMEOUT_MS,
            enable_gzip=True,
            allow_redirects=False,
        )
        self._api = client.write_api()
        return client

    async def _send_for_ever(self) -> None:
        pause_s = 0.0
        while True:
            if pause_s:
                await self._sleep(pause_s)
            else:
                await self._enough()
            refusal = await self._send()
            pause_s = 0.0 if refusal is None else self._next_pause(pause_s, refusal)

    async def _enough(self) -> None:
        """Wait until a batch is full or a second has passed."""
        self._full.clear()
        if len(self._buffer) < self._batch:
            try:
                async with asyncio.timeout(self._flush_s):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _next_pause(self, last_s: float, refusal: _Refusal) -> float:
        if not last_s:
            _log.warning("%s does not take points and is asked again: %s", self._host, refusal.reason)
        self.counters["failures"] += 1
        longest = min(max(_FIRST_PAUSE_S, last_s * 2), _LONGEST_PAUSE_S)
        return max(longest * (0.5 + self._jitter() / 2), refusal.retry_after_s)

    @property
    def _host(self) -> str:
        return urlsplit(self._url).netloc.rpartition("@")[2]

    async def _send(self) -> _Refusal | None:
        """Send the oldest points; return why they are to be sent again.

        They stay in the buffer until the server has them, so that the buffer's bound holds for them too.
        """
        if self._sending is None:
            points = list(islice(self._buffer, self._batch))
            if not points:
                return None
            self._sent = (len(points), self.counters["dropped"])
            self._sending = asyncio.create_task(self._request(points))
        refusal = await asyncio.shield(self._sending)  # a stop asks for the same answer again
        self._sending = None
        count, dropped_before = self._sent
        if refusal is None:
            self._take_out(count, dropped_before)
            self.counters["written"] += count
            return None
        if refusal.status == _TOO_LARGE and count > 1:
            self._batch = count // 2
            return None
        if refusal.status in _MALFORMED or refusal.status == _TOO_LARGE:
            if not self.counters["rejected"]:
                _log.error("%s calls points malformed: %s", self._host, refusal.reason)
            self._take_out(count, dropped_before)
            self.counters["rejected"] += count
            return None
        return refusal

    def _take_out(self, count: int, dropped_before: int) -> None:
        """Remove the points of an answered request; some may have been pushed out, and so counted, meanwhile."""
        pushed_out = min(count, self.counters["dropped"] - dropped_before)
        self.counters["dropped"] -= pushed_out
        for _ in range(count - pushed_out):
            self._buffer.popleft()

    async def _request(self, points: list[_Point]) -> _Refusal | None:
        lines = [f"{self._prefix(point)} {point.fields} {point.time_ns}" for point in points]
        self.counters["requests"] += 1
        try:
            taken = await self._api.write(bucket=self._settings.bucket, record="\n".join(lines).encode())
        except Exception as error:  # noqa: BLE001  aiohttp, urllib3 and the client each have errors of their own
            status: int = getattr(error, "status", 0) or 0
            after = retry_after_s(getattr(error, "retry_after", None), now_ms=self._clock.now_ms())
            return _Refusal(status, after, f"status {status}" if status else type(error).__name__)
        return None if taken else _Refusal(0, 0.0, "an answer that is no acceptance")

    def _prefix(self, point: _Point) -> str:
        """Return measurement and tags as the client library escapes them."""
        key = (point.instrument_id, point.data_type)
        prefix = self._prefixes.get(key)
        if prefix is None:
            from influxdb_client.client.write.point import Point

            made: Any = Point(MEASUREMENT)
            tags = {"symbol": key[0].symbol, "exchange": key[0].venue, "data_type": key[1]}
            for name, value in tags.items():
                made.tag(name, value)
            line: str = made.field("x", 1).to_line_protocol()
            prefix = self._prefixes[key] = line.removesuffix(" x=1i")
        return prefix

    async def _send_the_rest(self) -> None:
        try:
            async with asyncio.timeout(self._stop_s):
                while self._buffer and await self._send() is None:
                    pass
        except TimeoutError:
            pass
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})


def retry_after_s(text: str | None, *, now_ms: int) -> float:
    """Return how many seconds a Retry-After header asks for, at most five minutes; 0 for none or nonsense.

    Args:
        text: seconds, or an HTTP date (RFC 9110, section 10.2.3).
    """
    if not text:
        return 0.0
    if text.isdecimal() and len(text) < 10:
        return min(float(text), _LONGEST_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, aware.timestamp() - now_ms / 1_000), _LONGEST_RETRY_AFTER_S)
