"""Unsolicited reports: what changed at the venue without having been asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from trading.adapters.venues.paper.orders import PaperOrder
from trading.domain.identifiers import ClientOrderId
from trading.ports.venue import VenueReport


class ReportStream(AsyncIterator[VenueReport]):
    """One reader's queue of changed orders.

    An order that changes again before it was read is reported once, with its newest state and every trade since the
    last report: nothing is lost, and the queue is never longer than the number of orders that changed.

    Args:
        orders: the venue's orders by client order id.
        forget: called once when the reader closes.
    """

    def __init__(self, orders: Mapping[ClientOrderId, PaperOrder], forget: Callable[[ReportStream], None]) -> None:
        self._orders = orders
        self._forget = forget
        self._first_trade: dict[ClientOrderId, int] = {}  # in the order of the first unread change
        self._wakeup = asyncio.Event()
        self._closed = False

    @property
    def backlog(self) -> int:
        """Orders whose change has not been read."""
        return len(self._first_trade)

    def push(self, client_order_id: ClientOrderId, first_trade: int) -> None:
        """Note that an order changed; ``first_trade`` is the index of its first new trade.

        With latency a later change may arrive first, so the lowest unread index counts.
        """
        known = self._first_trade.get(client_order_id, first_trade)
        self._first_trade[client_order_id] = min(known, first_trade)
        self._wakeup.set()

    async def __anext__(self) -> VenueReport:
        """Return the next change; wait for one."""
        while not self._first_trade:
            if self._closed:
                raise StopAsyncIteration
            self._wakeup.clear()
            await self._wakeup.wait()
        client_order_id = next(iter(self._first_trade))
        first_trade = self._first_trade.pop(client_order_id)
        return self._orders[client_order_id].report(first_trade)

    async def aclose(self) -> None:
        """Stop: unread changes are dropped, a waiting reader ends."""
        self._first_trade.clear()
        self.end()

    def end(self) -> None:
        """Let the reader finish what is queued, then end."""
        if not self._closed:
            self._closed = True
            self._forget(self)
        self._wakeup.set()
