"""What every source of market data gives: one series of normalised updates, in the order they happened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from mcp_servers.market.order_book import RawLevels
from trading.adapters.market_wire import TradeUpdate
from trading.domain.identifiers import Venue
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle, Feed


@dataclass(frozen=True, slots=True)
class Rules:
    """The instruments of this source; comes first, and again when rules change."""

    instruments: tuple[Instrument, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole book. ``last_id`` is 0 for sources that only send whole books, ``venue_ts_ms`` 0 when it is unknown."""

    instrument_id: InstrumentId
    last_id: int
    bids: RawLevels
    asks: RawLevels
    venue_ts_ms: int
    received_ts_ms: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Changes of a book from update ``first_id`` to ``last_id``; quantity zero removes a level."""

    instrument_id: InstrumentId
    first_id: int
    last_id: int
    bids: RawLevels
    asks: RawLevels
    venue_ts_ms: int
    received_ts_ms: int


@dataclass(frozen=True, slots=True)
class BestQuote:
    """The best bid and ask at one update, [price text, quantity text] each."""

    instrument_id: InstrumentId
    update_id: int
    bid: tuple[str, str]
    ask: tuple[str, str]
    received_ts_ms: int


@dataclass(frozen=True, slots=True)
class Bar:
    """A finished candle of a market whose trades and book are not known; given once its interval is over."""

    candle: Candle


@dataclass(frozen=True, slots=True)
class Restarted:
    """The stream begins anew: books of these instruments are worthless until a snapshot.

    Attributes:
        reason: ``gap`` when a change was lost; otherwise a code or words for a person.
    """

    instrument_ids: tuple[InstrumentId, ...]
    reason: str


SourceUpdate = Rules | Snapshot | Difference | BestQuote | TradeUpdate | Bar | Restarted


class SourceState(StrEnum):
    """What a source is doing."""

    STARTING = "starting"
    RUNNING = "running"
    RECONNECTING = "reconnecting"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How a source is.

    Attributes:
        code: empty, or why there is no data: ``NO_NETWORK``, ``VENUE_REFUSED``, ``RECORDING_ENDED``.
        message: the same for a person, with what to do.
        counters: garbage frames, reconnects, passes and the like, by name.
    """

    state: SourceState
    code: str = ""
    message: str = ""
    counters: dict[str, int] = field(default_factory=dict[str, int])


class MarketSource(Protocol):
    """A source of one venue's public data."""

    @property
    def venue(self) -> Venue:
        """Whose data it is."""
        ...

    @property
    def feed(self) -> Feed:
        """What the data is; part of every signed message."""
        ...

    @property
    def catching_up(self) -> bool:
        """Whether the updates given now are history needed to build the books, not to be published."""
        ...

    def updates(self) -> AsyncIterator[SourceUpdate]:
        """Yield updates until the source ends; a live source never does, it reconnects."""
        ...

    def position(self) -> bytes | None:
        """Return where to resume after the update given last; None when it cannot."""
        ...

    def fresh_start(self) -> bytes | None:
        """Return where a source that was stopped in good order begins the next time; None when it cannot say."""
        ...

    def status(self) -> SourceStatus:
        """Return state and counters."""
        ...
