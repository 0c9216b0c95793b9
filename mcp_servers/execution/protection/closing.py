"""Closing a position whose stop was hit: whatever rests on the closing side gives way, then slices until it is flat."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.protection import alarms
from mcp_servers.execution.protection.alarms import Episodes
from mcp_servers.execution.protection.permits import ExitFacts, is_frozen
from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.prices import Touch
from mcp_servers.execution.protection.resting import RestingStops, reach
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.protection.slices import ExitSlices
from mcp_servers.execution.protection.stops import StopKind, on_tick
from trading.domain.money import ZERO, plain
from trading.domain.orders import WORKING, OrderStatus
from trading.domain.standing_exits import StandingExit
from trading.ports.clock import Clock

_OVER = (OrderStatus.REJECTED, OrderStatus.NOT_SENT)


class Closing:
    """Closes one position at a time, each by the caller who holds its post."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        resting: RestingStops,
        slices: ExitSlices,
        facts: ExitFacts,
        rules: ProtectionRules,
        clock: Clock,
    ) -> None:
        self._lifecycle = lifecycle
        self._resting = resting
        self._slices = slices
        self._facts = facts
        self._rules = rules
        self._clock = clock

    async def close(
        self, post: Post, found: StandingExit, kind: StopKind, touch: Touch | None, episodes: Episodes
    ) -> None:
        """Close the position as far as the market gives; call again while it is open.

        Args:
            post: of the position; its guard remembers that the stop was hit.
            found: the exit to use.
            kind: the stop that was hit.
            touch: the price now; without one nothing is sent, unless the rules close blindly.
            episodes: where alarms go, after the first slice.

        Raises:
            GateRefused: the exit does not allow it.
            VenueError: the venue takes no order now.
            LedgerUnavailable: the ledger failed.
        """
        name, now_ms = post.instrument.id, self._clock.now_ms()
        post.mark_hit(kind)
        if is_frozen(self._facts.pulse, found.account_id, found.symbol):
            episodes.begin(alarms.STUCK, name, f"the {kind} stop was hit, but trading is frozen by the operator")
            return
        blind = touch is None and not post.is_blind_for(self._rules.close_blind_ms, now_ms)
        if blind or (post.tried_ms and now_ms - post.tried_ms < self._rules.retry_ms):
            return
        post.tried_ms = now_ms
        await self._clear(post, found)
        for limit in self._limits(post, found, touch):
            size = self._size(post, found)
            if size < post.instrument.smallest_quantity(limit):
                break
            guard = post.open_guard
            if guard is None:
                break
            used, order = await self._slices.close_now(guard, found, post.instrument, size, limit)
            post.sent(used)
            episodes.begin(alarms.HIT, name, f"the {kind} stop was hit at {_at(touch)}; the position is being closed")
            if not order.is_terminal or order.status in _OVER:
                break
        self._judge(post, kind, episodes)

    async def _clear(self, post: Post, found: StandingExit) -> None:
        """Withdraw what rests on the closing side: the stop at the venue, and what agents have there."""
        working = [
            order
            for order in self._lifecycle.book.open_orders.values()
            if order.terms.instrument_id == post.instrument.id
            and order.terms.side is found.terms.side
            and order.status in WORKING
        ]
        if working:
            await asyncio.gather(*(self._resting.withdraw(order) for order in working))

    def _limits(self, post: Post, found: StandingExit, touch: Touch | None) -> list[Decimal]:
        """Return how far each slice may reach: bands around the price, then the floor.

        What only an agent has asked for stays within the first band: an exit that risk approves is bounded as well.
        """
        side = found.terms.side
        floor = on_tick(side, found.terms.floor, post.instrument.price_tick)
        if touch is None:
            return [floor]
        price = touch.exit_price(side)
        limits = [reach(found, post.instrument, price, bps) for bps in self._rules.bands_bps]
        position = self._lifecycle.book.positions.get(post.instrument.id)
        entry = None if position is None else position.average_price
        if entry is not None and post.is_agents_alone(found, entry, price, self._clock.now_ms()):
            return limits[:1]  # tried again by the next price; only the plan's own stops may reach down to the floor
        return [*limits, floor]

    def _size(self, post: Post, found: StandingExit) -> Decimal:
        size = post.instrument.quantity_floor(self._facts.slack(post.instrument.id, found.terms.side))
        return size if post.instrument.quantity_max is None else min(size, post.instrument.quantity_max)

    def _judge(self, post: Post, kind: StopKind, episodes: Episodes) -> None:
        position = self._lifecycle.book.positions.get(post.instrument.id)
        left = ZERO if position is None else abs(position.quantity)
        if post.open_guard is not None and left >= post.instrument.quantity_min and left:
            text = f"the {kind} stop was hit and {plain(left)} {post.instrument.base} are still open; tried again"
            episodes.begin(alarms.STUCK, post.instrument.id, text)


def _at(touch: Touch | None) -> str:
    return "an unknown price" if touch is None else f"{plain(touch.bid)} / {plain(touch.ask)}"
