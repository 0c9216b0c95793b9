"""Stops that rest at the venue: one for each position at most, of its size, at its level.

Rules kept here:

- A stop is replaced by a confirmed cancel and then the next slice, never by two at once.
- One that has triggered is left to do its work.
- A venue that refuses a stop is left alone for a while; the watch of this room protects meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal

from mcp_servers.execution.cancels import Cancels
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.protection.permits import ExitFacts, is_frozen
from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.protection.slices import ExitSlices
from mcp_servers.execution.protection.stops import Stop, behind_bps, is_nearer, on_tick
from trading.domain.errors import VenueError
from trading.domain.identifiers import OrderId
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import difference_bps
from trading.domain.orders import Order, OrderStatus
from trading.domain.standing_exits import PROTECTION, StandingExit
from trading.ports.clock import Clock

log = logging.getLogger(__name__)

_AT_WORK = (OrderStatus.TRIGGERED, OrderStatus.PARTIALLY_FILLED)


class RestingStops:
    """Keeps the stop order of each position as it should be."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        cancels: Cancels,
        slices: ExitSlices,
        facts: ExitFacts,
        rules: ProtectionRules,
        clock: Clock,
    ) -> None:
        self._lifecycle = lifecycle
        self._cancels = cancels
        self._slices = slices
        self._facts = facts
        self._rules = rules
        self._clock = clock

    def orders(self, instrument_id: InstrumentId) -> list[Order]:
        """Return the protective orders of an instrument that are not over."""
        return [
            order
            for order in self._lifecycle.book.open_orders.values()
            if order.agent_id == PROTECTION and order.terms.instrument_id == instrument_id
        ]

    def find(self, instrument_id: InstrumentId) -> OrderId | None:
        """Return the protective order of an instrument that is open, None if there is none."""
        return next((order.order_id for order in self.orders(instrument_id)), None)

    async def withdraw_all(self, instrument_id: InstrumentId) -> bool:
        """Cancel every protective order of an instrument; True when none is left."""
        for order in self.orders(instrument_id):
            await self.withdraw(order)
        return not self.orders(instrument_id)

    async def withdraw(self, order: Order) -> Order:
        """Cancel an order and return it as it is after the venue's answer, or after a bounded wait for it."""
        try:
            async with asyncio.timeout(self._rules.withdraw_s):
                return await self._cancels.withdraw(order, by=PROTECTION)
        except (VenueError, TimeoutError) as error:
            log.warning("order %s could not be withdrawn: %s", order.order_id, getattr(error, "code", "TIMEOUT"))
            return self._lifecycle.book.order(order.order_id) or order

    async def fit(self, post: Post, found: StandingExit) -> None:
        """Have a stop of the right size rest at the right level.

        Raises:
            GateRefused: the exit does not allow it.
            VenueError: the venue takes no order now.
            LedgerUnavailable: the ledger failed.
        """
        guard, name, now_ms = post.open_guard, post.instrument.id, self._clock.now_ms()
        if guard is None or guard.stop is None or guard.side is not Side.SELL:  # spot venues rest sales only
            return
        if not self._rules.native or is_frozen(self._facts.pulse, guard.account_id, name.symbol):
            return
        resting = self.orders(name)
        size = self._size(post, sum((order.leaves for order in resting), Decimal(0)))
        if len(resting) == 1:
            if self._fits(resting[0], post, found, size, guard.stop):
                return
            grows = size >= resting[0].leaves and resting[0].status is OrderStatus.ACCEPTED
            if grows and now_ms - post.fitted_ms < self._rules.fit_every_ms:
                return
        if now_ms < post.refused_ms or not await self.withdraw_all(name):
            return
        await self._place(post, found, guard.stop)

    async def _place(self, post: Post, found: StandingExit, stop: Stop) -> None:
        guard, instrument, now_ms = post.open_guard, post.instrument, self._clock.now_ms()
        limit = reach(found, instrument, stop.price, self._rules.stop_band_bps)
        size = self._size(post, Decimal(0))
        if guard is None or size < instrument.smallest_quantity(limit):
            return
        post.fitted_ms = now_ms
        used, order = await self._slices.rest_stop(guard, found, instrument, size, stop=stop.price, limit=limit)
        post.sent(used)
        if order.status in (OrderStatus.REJECTED, OrderStatus.NOT_SENT):
            post.refused_ms = now_ms + self._rules.refused_ms

    def _size(self, post: Post, resting: Decimal) -> Decimal:
        """Return what a stop should cover: all that is open and that nothing else is closing."""
        slack = self._facts.slack(post.instrument.id, Side.SELL) + resting
        size = post.instrument.quantity_floor(slack)
        return size if post.instrument.quantity_max is None else min(size, post.instrument.quantity_max)

    def _fits(self, order: Order, post: Post, found: StandingExit, size: Decimal, stop: Stop) -> bool:
        guard = post.open_guard
        if order.status in _AT_WORK:
            return True
        if order.status is not OrderStatus.ACCEPTED or order.terms.stop_price is None or guard is None:
            return False
        same_exit = guard.exit_id == found.exit_id and order.approval_id == guard.last_slice
        off_bps = abs(difference_bps(stop.price, order.terms.stop_price))
        return same_exit and order.leaves == size and off_bps <= self._rules.step_bps


def reach(found: StandingExit, instrument: Instrument, price: Decimal, bps: Decimal) -> Decimal:
    """Return the limit of an order that may trade ``bps`` beyond a price, but never beyond the floor."""
    side, floor = found.terms.side, found.terms.floor
    limit = on_tick(side, behind_bps(side, price, bps), instrument.price_tick)
    return on_tick(side, floor, instrument.price_tick) if is_nearer(side, floor, limit) else limit
