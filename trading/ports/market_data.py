"""Last known market state, as risk and execution see it."""

from __future__ import annotations

from typing import Protocol

from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook


class MarketView(Protocol):
    """Answers from memory; never waits for the network."""

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest authenticated book, however old, or None if there never was one."""
        ...
