"""The lives of this account's orders: what the venue says becomes events, and events become state and rows.

Rules kept here:

- Memory moves at once, in the order things were heard; the ledger follows in the same order, as few commits as it can.
  Whoever answers a caller waits for ``flush`` first.
- A trade id applies once; an order moves only along its table; what the table forbids raises an alarm, never a guess.
- An order is not called over while the venue's cumulative quantity exceeds the fills that were applied.
- If the ledger fails, memory is ahead of it and nothing more may be decided: the room stops and starts again from the
  ledger and the venue.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from decimal import Decimal

from mcp_servers.execution.rows import balance_row, fill_row, order_of, order_row, position_row
from trading.domain.accounts import AccountBook
from trading.domain.errors import LedgerError, LedgerUnavailable
from trading.domain.events import (
    AccountFunded,
    AlarmRaised,
    DomainEvent,
    EventMetadata,
    OrderAccepted,
    OrderCanceled,
    OrderExpired,
    OrderFilled,
    OrderOutcomeUnknown,
    OrderRejected,
    OrderSubmitted,
    OrderTriggered,
)
from trading.domain.fills import Fill
from trading.domain.identifiers import AccountId, ApprovalId, ClientOrderId, Currency, OrderId, VenueOrderId
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Side
from trading.domain.money import ZERO, add, subtract
from trading.domain.orders import TRANSITIONS, Order, OrderAlarm, OrderStatus, OrderTrigger, next_status
from trading.domain.positions import Position
from trading.domain.proposals import OrderType
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Insert, Ledger, Unit, Upsert
from trading.ports.venue import VenueOrderState, VenueReport, VenueTrade

_STOPS = (OrderType.STOP, OrderType.STOP_LIMIT)
_NEWLY_FOUND = (OrderStatus.SUBMITTED, OrderStatus.UNKNOWN, OrderStatus.ABSENT)
_ENDINGS = {
    VenueOrderState.CANCELED: (OrderTrigger.CANCEL, OrderCanceled),
    VenueOrderState.EXPIRED: (OrderTrigger.EXPIRE, OrderExpired),
}


class Lifecycle:
    """Orders, positions and balances of one account, in memory and on their way to the ledger.

    Args:
        terminal_kept: finished orders that stay in memory for late fills and repeated requests; older ones are read
            back from the ledger when somebody asks.
    """

    def __init__(self, account_id: AccountId, ledger: Ledger, clock: Clock, *, terminal_kept: int = 2_000) -> None:
        self.book = AccountBook(account_id, terminal_kept=terminal_kept)
        #: Client order ids whose venue reports more filled than it listed trades for.
        self.gaps: set[ClientOrderId] = set()
        #: Set when the ledger failed: the room must stop.
        self.broken = asyncio.Event()
        self.fill_watermark_ms = 0
        self._ledger = ledger
        self._clock = clock
        self._by_client: dict[ClientOrderId, OrderId] = {}
        self._by_approval: dict[ApprovalId, OrderId] = {}
        self._finished: OrderedDict[OrderId, Order] = OrderedDict()
        self._terminal_kept = terminal_kept
        self._leaves: dict[tuple[InstrumentId, Side], Decimal] = {}
        self._held: dict[tuple[InstrumentId, Side], Decimal] = {}
        self._drafts: list[EventDraft] = []
        self._fills: list[Insert] = []
        self._dirty: dict[OrderId, Order] = {}
        self._moved: set[InstrumentId] = set()
        self._balances: dict[Currency, tuple[Decimal, Decimal]] = {}
        self._recorded = 0
        self._durable = 0
        self._flushing: asyncio.Task[None] | None = None
        #: Called at once when a fill has moved a position.
        self.on_position: Callable[[InstrumentId], None] = _ignore

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def recorded(self) -> int:
        """How many events were recorded in this process; unchanged means that nothing has happened."""
        return self._recorded

    def order_of_client(self, client_order_id: ClientOrderId) -> Order | None:
        """Return the order in memory that has this client order id."""
        order_id = self._by_client.get(client_order_id)
        return None if order_id is None else self.book.order(order_id)

    def order_of_approval(self, approval_id: ApprovalId) -> Order | None:
        """Return the order in memory that consumed this approval."""
        order_id = self._by_approval.get(approval_id)
        return None if order_id is None else self.book.order(order_id)

    def reducible(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return how much base ``side`` may still close: position less working, unknown and admitted orders there."""
        return max(ZERO, self.slack(instrument_id, side))

    def slack(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return what ``reducible`` does, but negative when more is on its way out than is open."""
        position = self.book.positions.get(instrument_id)
        held = ZERO if position is None else position.quantity
        key = instrument_id, side
        return (held if side is Side.SELL else -held) - self._leaves.get(key, ZERO) - self._held.get(key, ZERO)

    def hold(self, instrument_id: InstrumentId, side: Side, quantity: Decimal) -> None:
        """Count an admitted order against ``reducible`` until it is an order; a negative quantity gives it back."""
        key = instrument_id, side
        self._held[key] = add(self._held.get(key, ZERO), quantity)

    # --- what happened -------------------------------------------------------------------------------------------

    def restore(self, order: Order) -> Order:
        """Take an order as the ledger holds it: read back, or just claimed."""
        known = self.book.order(order.order_id)
        self.book.restore(order)
        self._index(None if known is order else known, order)
        return order

    def record(self, event: DomainEvent, *, about: Order | None = None) -> Order | None:
        """Apply an event to memory and queue it for the ledger.

        Args:
            event: something that has happened.
            about: the order that it moves, if it moves one.

        Returns:
            The order as it is now.

        Raises:
            InvalidTransition: the order's table forbids it; nothing was changed.
            LedgerUnavailable: the ledger has failed before.
        """
        self._refuse_broken()
        alarm = self.book.apply(event, now_ms=self._clock.now_ms())
        metadata = EventMetadata() if about is None else EventMetadata(correlation_id=about.approval_id)
        self._drafts.append(EventDraft(event, metadata))
        self._recorded += 1
        if about is None:
            return None
        order = self.book.order(about.order_id)
        if order is None:  # pragma: no cover - the book keeps more than one flush can finish
            return None
        self._index(about, order)
        self._dirty[order.order_id] = order
        if alarm is not None:
            self.alarm(alarm.value, _ALARMS[alarm], subject=order.order_id)
        return order

    def alarm(self, code: str, message: str, *, subject: str) -> None:
        """Record something that a person should know."""
        self._drafts.append(EventDraft(AlarmRaised(code=code, message=message, subject=subject)))
        self._recorded += 1

    def fund(self, currency: Currency, amount: Decimal) -> None:
        """Record money that came in from outside the desk."""
        self.record(AccountFunded(account_id=self.book.account_id, currency=currency, amount=amount))

    def lose(self, order: Order, reason: str) -> Order:
        """Record that nobody knows whether the venue has the order; one that has moved on meanwhile is left alone."""
        order = self.book.order(order.order_id) or order
        if (order.status, OrderTrigger.LOSE) not in TRANSITIONS:
            return order
        return self.record(OrderOutcomeUnknown(order_id=order.order_id, reason=reason), about=order) or order

    def reject(self, order: Order, reason: str) -> Order:
        """Record the venue's definitive refusal."""
        if (order.status, OrderTrigger.REJECT) not in TRANSITIONS:
            if order.status is not OrderStatus.REJECTED:
                self._contradiction(order, "refused it")
            return order
        return self.record(OrderRejected(order_id=order.order_id, reason=reason), about=order) or order

    def apply_report(self, report: VenueReport) -> Order | None:
        """Apply what the venue says of an order.

        Reports come late, twice and out of order; only what is new changes anything.

        Returns:
            The order as it is now; None when no order in memory has that client order id.

        Raises:
            LedgerUnavailable: the ledger has failed before.
        """
        order = self.order_of_client(report.client_order_id)
        if order is None:
            return None
        if order.status is OrderStatus.INITIALIZED:  # the answer outran our own bookkeeping of the send
            order = self.record(OrderSubmitted(order_id=order.order_id), about=order) or order
        if report.state is VenueOrderState.REJECTED:
            return self.reject(order, report.reason)
        if order.status in (OrderStatus.NOT_SENT, OrderStatus.DENIED, OrderStatus.REJECTED):
            self._contradiction(order, f"has it as {report.state}")
            return order
        if order.status in _NEWLY_FOUND:
            order = self._found(order, report.venue_order_id)
        if report.triggered and order.status is OrderStatus.ACCEPTED and order.terms.order_type in _STOPS:
            order = self.record(OrderTriggered(order_id=order.order_id), about=order) or order
        for trade in report.trades:
            order = self.apply_trade(trade) or order
        if report.filled > order.filled:
            self.gaps.add(report.client_order_id)
            return order
        self.gaps.discard(report.client_order_id)
        if (ending := _ENDINGS.get(report.state)) is not None and (order.status, ending[0]) in TRANSITIONS:
            order = self.record(ending[1](order_id=order.order_id, reason=report.reason), about=order) or order
        return order

    def apply_trade(self, trade: VenueTrade) -> Order | None:
        """Apply one execution; None when no order in memory has its client order id."""
        order = self.order_of_client(trade.client_order_id)
        if order is None or trade.trade_id in order.trade_ids:
            return order
        if order.status is OrderStatus.INITIALIZED:
            order = self.record(OrderSubmitted(order_id=order.order_id), about=order) or order
        if order.status in _NEWLY_FOUND:
            order = self._found(order, trade.venue_order_id)
        filled = add(order.filled, trade.quantity)
        trigger = OrderTrigger.FILL if filled >= order.terms.quantity else OrderTrigger.FILL_PARTLY
        if (order.status, trigger) not in TRANSITIONS:
            self._contradiction(order, f"filled it (trade {trade.trade_id})")
            return order
        fill = _fill_of(trade, order)
        event = OrderFilled(fill=fill, status=next_status(order.status, trigger).value, filled=filled)
        self._fills.append(Insert("fills", fill_row(fill)))
        self._moved.add(fill.instrument_id)
        self.fill_watermark_ms = max(self.fill_watermark_ms, fill.venue_ts_ms)
        moved = self.record(event, about=order)
        self.on_position(fill.instrument_id)
        return moved

    def _found(self, order: Order, venue_order_id: VenueOrderId) -> Order:
        if order.status is OrderStatus.ABSENT:
            self.alarm(
                OrderAlarm.FOUND_AFTER_ABSENT.value, _ALARMS[OrderAlarm.FOUND_AFTER_ABSENT], subject=order.order_id
            )
        event = OrderAccepted(order_id=order.order_id, venue_order_id=venue_order_id)
        return self.record(event, about=order) or order

    def _contradiction(self, order: Order, what: str) -> None:
        self.alarm(
            "VENUE_CONTRADICTS",
            f"order {order.order_id} is {order.status} here, but the venue {what}; reconcile before trading on",
            subject=order.order_id,
        )

    # --- keeping it ----------------------------------------------------------------------------------------------

    async def load(self, client_order_id: ClientOrderId) -> Order | None:
        """Return the order with this client order id, reading it back from the ledger if it left memory."""
        order = self.order_of_client(client_order_id)
        if order is not None:
            return order
        rows = await self._ledger.rows("orders", {"client_order_id": client_order_id})
        if not rows or self.order_of_client(client_order_id) is not None:
            return self.order_of_client(client_order_id)
        return self.restore(order_of(rows[0]))

    async def flush(self) -> None:
        """Return when everything recorded so far is durable. Cancelling the caller does not stop the commit.

        Raises:
            LedgerUnavailable: it is not, and the room must stop.
        """
        target = self._recorded
        while self._durable < target:
            self._refuse_broken()
            if self._flushing is None or self._flushing.done():
                self._flushing = asyncio.create_task(self._commit_pending())
            await asyncio.shield(self._flushing)

    async def flush_all(self) -> None:
        """Flush until nothing is waiting, also what is recorded meanwhile; raises as ``flush`` does."""
        while self._durable < self._recorded:
            await self.flush()

    async def _commit_pending(self) -> None:
        written = False
        try:
            upto, unit = self._recorded, self._take_unit()
            await self._ledger.commit(unit)
            written = True
        except LedgerError as error:
            raise LedgerUnavailable(
                "the execution ledger failed; the room stops and starts again from ledger and venue",
                suggestion="wait for the restart, then read the order",
            ) from error
        finally:
            if not written:  # whatever it was: the unit is gone, and the next commit must not count it as durable
                self.broken.set()
        self._durable = upto

    def _take_unit(self) -> Unit:
        writes: list[Insert | Upsert] = [*self._fills]
        writes += [Upsert("orders", order_row(order)) for order in self._dirty.values()]
        writes += [Upsert("positions", position_row(self.book.positions[key])) for key in self._moved]
        writes += self._changed_balances()
        unit = Unit(events=tuple(self._drafts), writes=tuple(writes))
        self._drafts, self._fills, self._dirty, self._moved = [], [], {}, set()
        return unit

    def _changed_balances(self) -> list[Upsert]:
        locked, changed = self.book.locked(), list[Upsert]()
        for currency, total in self.book.totals.items():
            now = total, locked.get(currency, ZERO)
            if self._balances.get(currency) != now:
                self._balances[currency] = now
                changed.append(Upsert("balances", balance_row(self.book.account_id, currency, *now)))
        return changed

    def restore_balances(self, totals: dict[Currency, Decimal], positions: dict[InstrumentId, Position]) -> None:
        """Take balances and positions as the ledger holds them."""
        self.book.totals.update(totals)
        self.book.positions.update(positions)

    def _refuse_broken(self) -> None:
        if self.broken.is_set():
            raise LedgerUnavailable("the execution ledger has failed; nothing more is decided until the restart")

    def _index(self, before: Order | None, order: Order) -> None:
        if before is None or before.filled != order.filled or before.is_terminal != order.is_terminal:
            was = ZERO if before is None else before.leaves
            key = order.terms.instrument_id, order.terms.side
            self._leaves[key] = add(subtract(self._leaves.get(key, ZERO), was), order.leaves)
        if before is None:
            self._by_client[order.terms.client_order_id] = order.order_id
            self._by_approval[order.approval_id] = order.order_id
        if order.is_terminal:
            self._finish(order)
        elif before is not None and before.is_terminal:
            self._finished.pop(order.order_id, None)

    def _finish(self, order: Order) -> None:
        """Keep the newest finished orders findable; older ones are read back from the ledger."""
        self._finished[order.order_id] = order
        self._finished.move_to_end(order.order_id)
        while len(self._finished) > self._terminal_kept:
            _, old = self._finished.popitem(last=False)
            self._by_client.pop(old.terms.client_order_id, None)
            self._by_approval.pop(old.approval_id, None)


def _ignore(_: InstrumentId) -> None:
    """Do nothing, until somebody wants to know."""


_ALARMS = {
    OrderAlarm.FILL_AFTER_END: "a fill came after the order was over; it counts, look at the position",
    OrderAlarm.OVERFILL: "the venue filled more than was ordered; it counts, look at the position",
    OrderAlarm.FOUND_AFTER_ABSENT: "the venue has an order that three queries had not found; it counts",
}


def _fill_of(trade: VenueTrade, order: Order) -> Fill:
    return Fill(
        trade_id=trade.trade_id,
        order_id=order.order_id,
        client_order_id=trade.client_order_id,
        account_id=order.terms.account_id,
        instrument_id=trade.instrument_id,
        side=trade.side,
        quantity=trade.quantity,
        price=trade.price,
        fee=trade.fee,
        fee_currency=trade.fee_currency,
        liquidity=trade.liquidity,
        venue_ts_ms=trade.venue_ts_ms,
    )
