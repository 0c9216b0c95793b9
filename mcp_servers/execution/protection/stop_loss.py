"""The stop-loss manager: every open position has a stop that acts, whoever else is alive.

Rules kept here:

- It needs nobody: it acts on a signed exit, on the feed's price or the venue's own, and on this room's clock.
- One protective order at a time for each instrument. What is in doubt is reconciled first, never sent again.
- Where the venue takes stop orders one rests there; this room watches all the same. Between a confirmed cancel and the
  next stop at the venue the watch alone protects.
- A stop that was hit closes the position, in slices that reach further and at last down to the exit's floor.
- A closed position ends all of it: no stop is left behind.
- A position without a usable exit, or without any price, is an alarm, and is protected again as soon as it can be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mcp_servers.execution.gate import GateRules
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.protection import alarms
from mcp_servers.execution.protection.alarms import Episodes
from mcp_servers.execution.protection.closing import Closing
from mcp_servers.execution.protection.equity import EquityDay
from mcp_servers.execution.protection.exits import StandingExits
from mcp_servers.execution.protection.guards import Guard, guard_of, guard_row
from mcp_servers.execution.protection.posts import Post
from mcp_servers.execution.protection.prices import ExitPrices, Touch, touch_of
from mcp_servers.execution.protection.resting import RestingStops
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.protection.stops import StopKind
from mcp_servers.execution.protection.tightening import Wish, check_tick, tighten, would_trigger
from mcp_servers.execution.protection.views import Protection, view_of
from mcp_servers.execution.protection.watching import Watching
from trading.domain.approvals import ApprovedOrder
from trading.domain.errors import GateRefused, LedgerUnavailable, Retryable, VenueError
from trading.domain.events import EventEnvelope
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import ZERO
from trading.domain.orders import OrderStatus
from trading.domain.positions import Position
from trading.domain.proposals import TimeInForce
from trading.domain.standing_exits import StandingExit
from trading.ports.clock import Clock
from trading.ports.ledger import Ledger, LedgerReader, Unit

log = logging.getLogger(__name__)

_DOUBT = (OrderStatus.INITIALIZED, OrderStatus.SUBMITTED, OrderStatus.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLossParts:
    """What the manager is made of.

    Attributes:
        equity: the account's worth in quote with these marks by instrument; None when it cannot be valued.
        is_risk_heard: whether risk was heard lately.
    """

    lifecycle: Lifecycle
    ledger: Ledger
    exits: StandingExits
    prices: ExitPrices
    closing: Closing
    resting: RestingStops
    gate: GateRules
    rules: ProtectionRules
    clock: Clock
    equity: Callable[[Mapping[InstrumentId, Decimal]], Decimal | None]
    is_risk_heard: Callable[[], bool]


class StopLoss:
    """Watches every position of one account."""

    def __init__(self, parts: StopLossParts) -> None:
        self._parts = parts
        self.exits = parts.exits
        self.alarms = Episodes(parts.lifecycle)
        self._watching = Watching(self.alarms, parts.exits, parts.clock, parts.is_risk_heard)
        self.day = EquityDay(parts.gate.account_id, parts.ledger)
        self._posts: dict[InstrumentId, Post] = {}
        self._dirty: set[InstrumentId] = set()
        self._woken = asyncio.Event()
        parts.lifecycle.on_position = self.on_position

    async def load(self, instruments: Mapping[InstrumentId, Instrument]) -> None:
        """Read back exits and guards.

        Raises:
            LedgerUnavailable: the ledger failed.
        """
        self._posts = {name: Post(instrument) for name, instrument in instruments.items()}
        await self.exits.load()
        await self.day.load()
        for row in await self._parts.ledger.rows("protections", {"account_id": self._parts.gate.account_id}):
            guard = guard_of(row)
            if (post := self._posts.get(guard.instrument_id)) is not None:
                post.guard = post.saved = guard
        for name, post in self._posts.items():
            post.resting = self._parts.resting.find(name)
        self._measure(self._posts)

    async def catch_up(self, risk: LedgerReader) -> None:
        """Adopt exits that risk has signed while this room was not running.

        Raises:
            LedgerError: risk's ledger cannot be read, or an exit could not be written down.
        """
        await self.exits.catch_up(risk)
        self._measure(self._posts)

    def _measure(self, names: Iterable[InstrumentId]) -> None:
        for name in names:
            for side in Side:
                if (found := self.exits.of(name, side)) is not None:
                    self._posts[name].measure(found.terms.plan)

    # --- what comes in -------------------------------------------------------------------------------------------

    def on_book(self, book: OrderBook) -> None:
        """Take a price of an instrument, under our venue's name for it."""
        post = self._posts.get(book.instrument_id)
        if post is None or (post.ranges is None and post.open_guard is None):
            return
        touch = touch_of(book)
        if touch is not None:
            self._see(post, touch)

    def _see(self, post: Post, touch: Touch) -> None:
        if post.ranges is not None:
            post.ranges.observe(touch.mid, self._parts.clock.now_ms())
        guard = post.open_guard
        if guard is None:
            return
        price = touch.exit_price(guard.side)
        seen = guard.saw(price)
        found = self._exit(post)
        if seen is not guard:
            post.guard = seen
            position = self._position(post)
            if found is not None and position is not None and position.average_price is not None:
                post.restop(found, position.average_price)
        if found is not None and post.hit_by(price, found, self._parts.clock.now_ms()) is not None:
            self.wake(post.instrument.id)

    def on_position(self, instrument_id: InstrumentId) -> None:
        """Take a fill: the position of an instrument has moved."""
        post = self._posts.get(instrument_id)
        if post is not None:
            guard, position = post.open_guard, self._parts.lifecycle.book.positions.get(instrument_id)
            post.follow(position, self._parts.gate.account_id, self._parts.clock.now_ms())
            if guard is not None and (post.open_guard is None or post.open_guard.side is not guard.side):
                self._tell_of_end(post, guard)
            self.wake(instrument_id)

    def _tell_of_end(self, post: Post, guard: Guard) -> None:
        """Say that the stop at the venue has closed the position, if it has; nothing else is of concern any more."""
        order = None if post.resting is None else self._parts.lifecycle.book.order(post.resting)
        if order is not None and order.filled:
            text = f"the {guard.kind} stop was hit at the venue; the position is closed"
            self.alarms.begin(alarms.HIT, post.instrument.id, text)
        self.alarms.end_all(post.instrument.id)

    async def follow(self, event: EventEnvelope) -> None:
        """Take one event of risk's ledger: it may renew an exit.

        Raises:
            LedgerError: a renewed exit could not be written down.
        """
        renewed = await self.exits.follow(event)
        if renewed is not None and renewed in self._posts:
            self._measure((renewed,))
            self.wake(renewed)

    def wake(self, instrument_id: InstrumentId) -> None:
        """Have an instrument looked at now."""
        self._dirty.add(instrument_id)
        self._woken.set()

    # --- rounds --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at positions when something has happened, and all of them several times a second."""
        async with asyncio.TaskGroup() as group:
            while True:
                full = False
                try:
                    async with asyncio.timeout(self._parts.rules.check_every_s):
                        await self._woken.wait()
                except TimeoutError:
                    full = True
                self._woken.clear()
                names, self._dirty = self._dirty, set()
                if full:
                    names |= {name for name, post in self._posts.items() if self._is_due(post)}
                    if names or self.day.is_over(self._parts.clock.now_ms()):
                        group.create_task(self._quietly(self.value()))
                for name in names:
                    if not self._posts[name].lock.locked():
                        group.create_task(self._quietly(self.attend(name)))
                    else:  # whoever is there sees what was new, or the next round does
                        self._dirty.add(name)
                await asyncio.sleep(self._parts.rules.pace_s)

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (VenueError, LedgerUnavailable) as error:
            log.warning("a look at a position was cut short: %s %s", error.code, error)

    def _is_due(self, post: Post) -> bool:
        position = self._position(post)
        return post.open_guard is not None or post.resting is not None or bool(position and position.quantity)

    async def value(self) -> None:
        """Value the account for the portfolio stop.

        Raises:
            LedgerError: the day's level could not be written down.
        """
        marks: dict[InstrumentId, Decimal] = {}
        for name, post in self._posts.items():
            if self._parts.lifecycle.book.totals.get(post.instrument.base):
                touch = await self._parts.prices.of(name)
                if touch is not None:
                    marks[name] = touch.mid
        await self.day.observe(self._parts.equity(marks), self._parts.clock.now_ms())

    async def attend(self, instrument_id: InstrumentId) -> None:
        """Look at one position and do what its protection needs now.

        Raises:
            VenueError: the venue could not be asked; the next look tries again.
            LedgerError: the ledger failed.
        """
        post = self._posts[instrument_id]
        async with post.lock:
            try:
                await self._attend(post)
            except GateRefused as error:
                self.alarms.begin(alarms.STUCK, instrument_id, f"{error.code}: {error}")
            finally:
                post.resting = self._parts.resting.find(instrument_id)
            await self._save(post)
            await self._parts.lifecycle.flush()
        if instrument_id in self._dirty:
            self._woken.set()

    async def _attend(self, post: Post) -> None:
        name, now_ms = post.instrument.id, self._parts.clock.now_ms()
        position = self._position(post)
        guard = post.follow(position, self._parts.gate.account_id, now_ms)
        if guard is None or position is None or position.average_price is None:
            self.alarms.end_all(name)
            await self._parts.resting.withdraw_all(name)
            return
        found = self._exit(post)
        touch = await self._parts.prices.of(name)
        self._watching.price(post, touch)
        if touch is not None:
            self._see(post, touch)
        if found is None:
            self._watching.missing(post)
            return
        self.alarms.end(alarms.MISSING, name)
        post.measure(found.terms.plan)
        self._watching.life(post, found)
        post.restop(found, position.average_price)
        if any(order.status in _DOUBT for order in self._parts.resting.orders(name)):
            return
        kind = self._hit(post, found, touch)
        if kind is not None:
            await self._parts.closing.close(post, found, kind, touch, self.alarms)
        else:
            await self._parts.resting.fit(post, found)
            self.alarms.end(alarms.STUCK, name)

    def _hit(self, post: Post, found: StandingExit, touch: Touch | None) -> StopKind | None:
        now_ms = self._parts.clock.now_ms()
        price = None if touch is None else touch.exit_price(found.terms.side)
        kind = post.hit_by(price, found, now_ms)
        if kind is None and self.day.is_lost(found.terms.plan.portfolio_loss_pct):
            kind = StopKind.PORTFOLIO
        if kind is None and post.is_blind_for(self._parts.rules.close_blind_ms, now_ms):
            kind = StopKind.BLIND
        return kind

    # --- small parts ---------------------------------------------------------------------------------------------

    def post(self, instrument_id: InstrumentId) -> Post | None:
        """Return what is known of an instrument's protection."""
        return self._posts.get(instrument_id)

    def view(self, instrument_id: InstrumentId) -> Protection:
        """Return how the position in an instrument is protected."""
        post, lifecycle = self._posts.get(instrument_id), self._parts.lifecycle
        guard = None if post is None else post.open_guard
        reducible = ZERO if guard is None else lifecycle.reducible(instrument_id, guard.side)
        found = None if post is None else self._exit(post)
        return view_of(post, found, self._parts.resting.orders(instrument_id), reducible)

    def _exit(self, post: Post) -> StandingExit | None:
        guard = post.open_guard
        return None if guard is None else self.exits.usable(post.instrument.id, guard.side)

    def _position(self, post: Post) -> Position | None:
        """Return the position, None when what is held is less than the smallest order."""
        position = self._parts.lifecycle.book.positions.get(post.instrument.id)
        if position is None or position.average_price is None:
            return None
        least = post.instrument.smallest_quantity(position.average_price)
        return position if abs(position.quantity) >= least else None

    async def _save(self, post: Post) -> None:
        now_ms = self._parts.clock.now_ms()
        guard = post.guard
        if guard is not None and post.is_unsaved(now_ms, self._parts.rules.save_every_ms):
            await self._parts.ledger.commit(Unit(writes=(guard_row(guard),)))
            post.saved, post.saved_ms = guard, now_ms

    async def tighten(self, instrument_id: InstrumentId, wish: Wish) -> Post:
        """Bring the stop of an open position nearer, for good; return its post once that is written down.

        Raises:
            GateRefused: NO_POSITION, PROTECTION_MISSING, or as ``tightening.tighten``.
            InvalidValue: PRICE_TICK.
            Retryable: PROTECTION_BUSY, the position is being closed.
            LedgerError: it could not be written down; it holds all the same.
        """
        post = self._posts.get(instrument_id)
        guard = None if post is None else post.open_guard
        if post is None or guard is None:
            raise GateRefused(f"there is no open position in {instrument_id.symbol}", code="NO_POSITION")
        try:
            async with asyncio.timeout(self._parts.rules.withdraw_s), post.lock:
                touch = await self._parts.prices.of(instrument_id)
                await self._tighten(post, wish, touch)
        except TimeoutError:
            raise Retryable("its stop is at work just now", code="PROTECTION_BUSY") from None
        self.wake(instrument_id)
        return post

    async def _tighten(self, post: Post, wish: Wish, touch: Touch | None) -> None:
        guard, found, position = post.open_guard, self._exit(post), self._position(post)
        if guard is None or found is None or position is None or position.average_price is None:
            raise GateRefused("the position has no exit that a stop could use", code=alarms.MISSING)
        check_tick(wish, post.instrument)
        price = None if touch is None else touch.exit_price(guard.side)
        now_ms = self._parts.clock.now_ms()
        was_hit = post.hit_by(price, found, now_ms) is not None
        post.guard = tighten(guard, found.terms.plan, wish, price=price)
        post.restop(found, position.average_price)
        if not was_hit and post.hit_by(price, found, now_ms) is not None:
            post.guard = guard
            raise would_trigger("it")
        await self._save(post)

    # --- what the gate asks --------------------------------------------------------------------------------------

    def withdrawable(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return how much base a stop at the venue holds that would give way to an approved order on ``side``."""
        post = self._posts.get(instrument_id)
        if post is None or post.resting is None:
            return ZERO
        order = self._parts.lifecycle.book.order(post.resting)
        guard = post.open_guard
        closing = guard is not None and guard.hit is not None
        if order is None or closing or order.terms.side is not side or order.status is not OrderStatus.ACCEPTED:
            return ZERO
        return order.leaves

    def _is_closing(self, instrument_id: InstrumentId, side: Side) -> bool:
        guard = post.open_guard if (post := self._posts.get(instrument_id)) is not None else None
        return guard is not None and guard.side is side and guard.hit is not None

    async def has_room(self, order: ApprovedOrder) -> bool:
        """Return whether an admitted order that closes has its quantity; the stop at the venue gives way to it.

        Args:
            order: its quantity is counted among what closes the position already, so that what is protected again
                afterwards is what is left.
        """
        name, side = order.instrument_id, order.side
        if order.time_in_force is TimeInForce.GTC and self._is_closing(name, side):
            return False  # it could hold back, again and again, what the stop is about to sell
        if self._parts.lifecycle.slack(name, side) < 0 and (post := self._posts.get(name)) is not None:
            try:
                async with asyncio.timeout(self._parts.rules.withdraw_s), post.lock:
                    await self._parts.resting.withdraw_all(name)
                    post.resting = self._parts.resting.find(name)
            except TimeoutError:
                log.warning("the stop of %s did not give way in time", name)
            self.wake(name)
        return self._parts.lifecycle.slack(name, side) >= 0
