"""Venues that do what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from itertools import count

from mcp_servers.market.sources.base import Restarted, Rules, Snapshot, SourceState, SourceStatus, SourceUpdate
from trading.adapters.market_stream import TradeUpdate
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed, Side
from trading.ports.clock import Clock
from trading.testing.builders import build_instrument

BTC = Symbol("BTC/USDT")
_TRADE_IDS = count(1)


class FakeSource:
    """A live source of BTC/USDT without a network: it gives what the test puts in."""

    feed = Feed.LIVE
    catching_up = False

    def __init__(self, venue: str, clock: Clock) -> None:
        self.venue = Venue(venue)
        self.instrument = build_instrument(venue=venue)
        self._clock = clock
        self._queue: asyncio.Queue[SourceUpdate | Exception] = asyncio.Queue()
        self._status = SourceStatus(SourceState.STARTING)

    @property
    def id(self) -> InstrumentId:
        """The only instrument."""
        return self.instrument.id

    def start(self, mid: int = 100) -> None:
        """Give rules and a good book."""
        self._status = SourceStatus(SourceState.RUNNING)
        self.put(Rules((self.instrument,)))
        self.book(mid)

    def book(self, mid: int = 100) -> None:
        """Give a whole book one unit around ``mid``."""
        self._status = SourceStatus(SourceState.RUNNING)
        now = self._clock.now_ms()
        self.put(Snapshot(self.id, 0, [[str(mid - 1), "5"]], [[str(mid + 1), "5"]], now, now))

    def trade(self, price: str = "100", quantity: str = "1", *, trade_id: str = "") -> None:
        """Give a trade, a new one unless its id is given."""
        now, name = self._clock.now_ms(), trade_id or f"{self.venue}-{next(_TRADE_IDS)}"
        self.put(TradeUpdate(self.id, name, price, quantity, Side.BUY, now, now))

    def disconnect(self) -> None:
        """Lose the connection; the next book brings it back."""
        self._status = SourceStatus(SourceState.RECONNECTING, "NO_NETWORK", f"{self.venue} cannot be reached")
        self.put(Restarted((self.id,), "NO_NETWORK"))

    def put(self, item: SourceUpdate | Exception) -> None:
        """Give an update, or end with an error."""
        self._queue.put_nowait(item)

    async def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield what the test puts in."""
        while True:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def position(self) -> None:
        """Return None: it cannot resume."""
        return

    def fresh_start(self) -> None:
        """Return None."""
        return

    def status(self) -> SourceStatus:
        """Return what the test made of it."""
        return self._status


class Told:
    """Keeps market events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, object]]] = []

    def publish(self, event_type: str, payload: Mapping[str, object]) -> None:
        """Keep one event."""
        self.events.append((event_type, payload))

    @property
    def types(self) -> list[str]:
        """The kinds of the events, in order."""
        return [event_type for event_type, _ in self.events]
