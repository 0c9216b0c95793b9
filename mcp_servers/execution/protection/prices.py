"""What a position could be closed at: by the feed while it is fresh, else by the venue itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

from trading.domain.errors import VenueError
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import add, multiply
from trading.ports.clock import Clock
from trading.ports.venue import ExecutionVenue


class Touch(NamedTuple):
    """The best bid and ask of one moment, quote per base."""

    bid: Decimal
    ask: Decimal

    def exit_price(self, side: Side) -> Decimal:
        """Return where an order on the closing ``side`` would begin to trade."""
        return self.bid if side is Side.SELL else self.ask

    @property
    def mid(self) -> Decimal:
        """Half way between bid and ask."""
        return multiply(add(self.bid, self.ask), Decimal("0.5"))


def touch_of(book: OrderBook | None) -> Touch | None:
    """Return the touch of a two-sided book, else None."""
    if book is None or not book.is_two_sided:
        return None
    return Touch(book.bids[0].price, book.asks[0].price)


class ExitPrices:
    """Finds a price that may be believed.

    Args:
        book: the newest book of the feed for an instrument at our venue.
        age_max_ms: age after which neither a book nor a quote counts.
        timeout_s: how long the venue's answer is waited for.
    """

    def __init__(
        self,
        book: Callable[[InstrumentId], OrderBook | None],
        venue: ExecutionVenue,
        clock: Clock,
        *,
        age_max_ms: int,
        timeout_s: float,
    ) -> None:
        self._book = book
        self._venue = venue
        self._clock = clock
        self._age_max_ms = age_max_ms
        self._timeout_s = timeout_s

    def of_feed(self, instrument_id: InstrumentId) -> Touch | None:
        """Return the feed's touch while it is fresh."""
        book = self._book(instrument_id)
        if book is None or book.age_ms(self._clock.now_ms()) > self._age_max_ms:
            return None
        return touch_of(book)

    async def of(self, instrument_id: InstrumentId) -> Touch | None:
        """Return the touch by the feed, else by the venue; None when neither knows."""
        found = self.of_feed(instrument_id)
        return found if found is not None else await self._of_venue(instrument_id)

    async def _of_venue(self, instrument_id: InstrumentId) -> Touch | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                quote = await self._venue.quote(instrument_id)
        except (VenueError, TimeoutError):
            return None
        if quote is None or quote.bid is None or quote.ask is None or quote.bid >= quote.ask:
            return None
        if self._clock.now_ms() - quote.as_of_ms > self._age_max_ms:
            return None
        return Touch(quote.bid, quote.ask)
