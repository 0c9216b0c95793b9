"""Cancelling: always allowed where it lowers risk, and never believed before the venue confirms it.

Rules kept here:

- A cancel needs no approval, except of a reduce-only order while a position is open: taking away an exit adds risk.
- The wish is in the ledger before the venue hears it; an unanswered cancel is looked up, not assumed.
- ``cancel_all`` repeats until nothing cancellable is open, a bounded number of times, and says what remains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.reconciliation import Reconciler
from trading.domain.approvals import Effect
from trading.domain.errors import GateRefused, NonRetryable, OutcomeUnknown, VenueError
from trading.domain.events import OrderCancelRefused, OrderCancelRequested
from trading.domain.identifiers import OrderId, Symbol
from trading.domain.orders import WORKING, Order, OrderStatus
from trading.ports.venue import ExecutionVenue

_ROUNDS = 5
_CONCURRENCY = 8


@dataclass(frozen=True, slots=True)
class Remaining:
    """An order that is not cancelled, and why."""

    order: Order
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAll:
    """What a cancel of everything achieved.

    Attributes:
        canceled: confirmed by the venue.
        kept: exits that were left on purpose.
        remaining: still open or in doubt; ask again.
        foreign: client order ids open at the venue that are not this desk's.
    """

    canceled: tuple[Order, ...]
    kept: tuple[Remaining, ...]
    remaining: tuple[Remaining, ...]
    foreign: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing cancellable is left."""
        return not self.remaining


class Cancels:
    """Cancels orders, one request to the venue per order at a time."""

    def __init__(self, lifecycle: Lifecycle, venue: ExecutionVenue, reconciler: Reconciler) -> None:
        self._lifecycle = lifecycle
        self._venue = venue
        self._reconciler = reconciler
        self._running: dict[OrderId, asyncio.Task[Order]] = {}

    def is_protective(self, order: Order) -> bool:
        """Return whether the order is an exit of a position that is open."""
        position = self._lifecycle.book.positions.get(order.terms.instrument_id)
        return order.terms.reduce_only and position is not None and position.quantity != 0

    async def withdraw(self, order: Order, *, by: str) -> Order:
        """Cancel an order, also an exit of an open position: for the stop-loss manager, which protects it otherwise.

        Raises: as ``cancel``, but for the refusal.
        """
        return order if order.is_terminal else await self._once(order, by)

    async def cancel(self, order: Order, *, by: str) -> Order:
        """Cancel one order and return it as it is afterwards; it may have filled first.

        Args:
            order: as it was looked up.
            by: who asked, for the ledger.

        Raises:
            GateRefused: CANCEL_NEEDS_APPROVAL, the order is an exit of an open position.
            OutcomeUnknown: the venue did not answer; the order is looked up by the next reconciliation.
            NonRetryable: the venue refused to cancel it.
            LedgerUnavailable: the ledger failed.
        """
        if order.is_terminal:
            return order
        if self.is_protective(order):
            raise GateRefused(
                "a reduce-only order of an open position protects it; taking it away adds risk",
                code="CANCEL_NEEDS_APPROVAL",
                suggestion="close the position first, or ask risk to approve a replacement",
            )
        return await self._once(order, by)

    async def _once(self, order: Order, by: str) -> Order:
        task = self._running.get(order.order_id)
        if task is None:
            task = asyncio.create_task(self._cancel(order, by))
            self._running[order.order_id] = task
            task.add_done_callback(lambda _: self._running.pop(order.order_id, None))
        # A caller that goes away does not take back a request that is on its way.
        return await asyncio.shield(task)

    async def _cancel(self, order: Order, by: str) -> Order:
        order = self._lifecycle.book.order(order.order_id) or order
        if order.status not in WORKING:
            order = await self._reconciler.resolve(order)
        if order.is_terminal:
            return order
        if order.status not in WORKING:
            raise OutcomeUnknown(
                f"the order is {order.status}: whether the venue has it is not known yet",
                code="ORDER_UNRESOLVED",
                suggestion="call execution_reconcile, then cancel again",
            )
        if order.status is not OrderStatus.PENDING_CANCEL:
            order = self._lifecycle.record(OrderCancelRequested(order_id=order.order_id, by=by), about=order) or order
            await self._lifecycle.flush()
        try:
            report = await self._venue.cancel(order.terms.client_order_id)
        except NonRetryable as error:
            order = self._refused(order, f"{error.code}: {error}")
            await self._lifecycle.flush()
            raise
        order = self._lifecycle.apply_report(report) or order
        if order.status is OrderStatus.PENDING_CANCEL and order.terms.client_order_id not in self._lifecycle.gaps:
            order = self._refused(order, "still open after the cancel")
        await self._lifecycle.flush()
        return order

    def _refused(self, order: Order, reason: str) -> Order:
        order = self._lifecycle.book.order(order.order_id) or order
        if order.status is not OrderStatus.PENDING_CANCEL:
            return order
        return self._lifecycle.record(OrderCancelRefused(order_id=order.order_id, reason=reason), about=order) or order

    async def cancel_all(
        self,
        *,
        by: str,
        symbol: Symbol | None = None,
        increases_only: bool = False,
        only: Callable[[Order], bool] | None = None,
    ) -> CancelAll:
        """Cancel everything that may be cancelled and return what is confirmed and what is not.

        Args:
            by: who asked.
            symbol: only this one.
            increases_only: leave every order that reduces a position, as a halt does.
            only: leave all others, as the halt of a scope does.
        """

        def is_kept(order: Order) -> bool:
            return self._is_kept(order, increases_only) or (only is not None and not only(order))

        first = {order.order_id for order in self._open(symbol)}
        problems: dict[OrderId, str] = {}
        for _ in range(_ROUNDS):
            targets = [order for order in self._open(symbol) if not is_kept(order)]
            if not targets:
                break
            problems = await self._round(targets, by)
        kept, remaining = list[Remaining](), list[Remaining]()
        for order in self._open(symbol):
            if only is not None and not only(order):
                continue
            if is_kept(order):
                kept.append(Remaining(order, "reduces an open position; cancelling it needs an approval"))
            else:
                remaining.append(Remaining(order, problems.get(order.order_id, "opened meanwhile")))
        ended = [self._lifecycle.book.order(order_id) for order_id in sorted(first)]
        canceled = tuple(each for each in ended if each is not None and each.status is OrderStatus.CANCELED)
        return CancelAll(canceled, tuple(kept), tuple(remaining), await self._foreign(symbol))

    async def _round(self, targets: Sequence[Order], by: str) -> dict[OrderId, str]:
        gate = asyncio.Semaphore(_CONCURRENCY)

        async def one(order: Order) -> tuple[OrderId, str]:
            async with gate:
                try:
                    await self._once(order, by)
                except VenueError as error:
                    return order.order_id, f"{error.code}: {error}"
            return order.order_id, "not confirmed yet"

        return dict(await asyncio.gather(*(one(order) for order in targets)))

    def _open(self, symbol: Symbol | None) -> list[Order]:
        orders = self._lifecycle.book.open_orders.values()
        return [order for order in orders if symbol is None or order.terms.symbol == symbol]

    def _is_kept(self, order: Order, increases_only: bool) -> bool:
        return self.is_protective(order) or (increases_only and order.effect is Effect.REDUCE)

    async def _foreign(self, symbol: Symbol | None) -> tuple[str, ...]:
        try:
            reports = await self._venue.open_orders()
        except VenueError:
            return ()
        found = [
            report.client_order_id
            for report in reports
            if (symbol is None or report.instrument_id.symbol == symbol)
            and await self._lifecycle.load(report.client_order_id) is None
        ]
        return tuple(found)
