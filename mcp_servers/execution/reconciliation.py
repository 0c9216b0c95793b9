"""Ledger against venue: what we believe, what the venue says, and what cannot be explained.

Rules kept here:

- An order whose fate at the venue is open is queried by its client order id, never sent again.
- A query that fails is no answer. ABSENT needs three successful "not found" answers, spaced, all after the send window
  (the approval's expiry plus clock skew) is over, with no open order and no trade in the same round.
- Fills are taken from the venue's trades or not at all. A difference that nothing explains is reported, and until it is
  gone the symbol or the desk only reduces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from mcp_servers.execution.gate import NS_PER_MS, GateRules, open_approval
from mcp_servers.execution.lifecycle import Lifecycle
from trading.domain.errors import GateRefused, VenueError
from trading.domain.events import OrderCancelRefused, OrderFoundAbsent, ReconciliationCompleted
from trading.domain.identifiers import ApprovalId, ClientOrderId, Currency
from trading.domain.instruments import InstrumentId
from trading.domain.money import ZERO, plain
from trading.domain.orders import Order, OrderStatus
from trading.domain.portfolio import Balance
from trading.domain.standing_exits import PROTECTION
from trading.ports.clock import Clock
from trading.ports.ledger import LedgerReader
from trading.ports.signing import Verifier
from trading.ports.venue import ExecutionVenue, VenueOrderState, VenueReport

log = logging.getLogger(__name__)

ABSENT_ANSWERS = 3
_DIFFERENCES_MAX = 50
_IN_DOUBT = (OrderStatus.INITIALIZED, OrderStatus.SUBMITTED, OrderStatus.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """The outcome of one comparison.

    Attributes:
        complete: whether the venue answered everything; if not, nothing was concluded from silence.
        resolved: orders whose fate became known in this round.
        unresolved: orders that may or may not be at the venue.
        differences: what ledger and venue disagree on, each a sentence that starts with a stable code.
    """

    at_ms: int
    complete: bool
    orders_checked: int
    resolved: int
    unresolved: tuple[Order, ...]
    differences: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether everything was compared and agrees."""
        return self.complete and not self.differences and not self.unresolved


@dataclass(slots=True)
class _Round:
    """What one round has found so far."""

    open_orders: dict[ClientOrderId, VenueReport]
    complete: bool = True
    checked: int = 0
    resolved: int = 0
    differences: list[str] | None = None

    def differ(self, text: str) -> None:
        """Note a difference, bounded."""
        if self.differences is None:
            self.differences = []
        if len(self.differences) < _DIFFERENCES_MAX and text not in self.differences:
            self.differences.append(text)


class Reconciler:
    """Compares ledger and venue, one round at a time.

    Args:
        under_way: approvals that a submit of this process is handling; their orders are left alone.
        spacing_ms: least time between two "not found" answers that both count.
        slice_window_ms: how long after its claim a protective order may be sent.
        overlap_ms: how far before the last known fill trades are asked for again.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        venue: ExecutionVenue,
        approvals: LedgerReader,
        verifier: Verifier,
        rules: GateRules,
        clock: Clock,
        under_way: Callable[[], frozenset[ApprovalId]],
        spacing_ms: int = 500,
        overlap_ms: int = 60_000,
        slice_window_ms: int = 5_000,
    ) -> None:
        self._lifecycle = lifecycle
        self._venue = venue
        self._approvals = approvals
        self._verifier = verifier
        self._rules = rules
        self._clock = clock
        self._under_way = under_way
        self._spacing_ns = spacing_ms * NS_PER_MS
        self._overlap_ms = overlap_ms
        self._slice_window_ms = slice_window_ms
        self._not_found: dict[ClientOrderId, list[int]] = {}
        self._expires: dict[ApprovalId, int] = {}
        self._lock = asyncio.Lock()
        self._restricted: set[InstrumentId] = set()
        self._desk_restricted = True  # until the first clean round
        self.last: Reconciliation | None = None

    def is_restricted(self, instrument_id: InstrumentId) -> bool:
        """Return whether new risk is forbidden here until differences are explained."""
        return self._desk_restricted or instrument_id in self._restricted

    def in_doubt(self) -> list[Order]:
        """Return the orders that may or may not be at the venue and that nobody is handling."""
        busy = self._under_way()
        return [
            order
            for order in self._lifecycle.book.open_orders.values()
            if order.status in _IN_DOUBT and order.approval_id not in busy
        ]

    async def run(self, *, record: bool = False) -> Reconciliation:
        """Compare everything once.

        Args:
            record: write the outcome to the ledger even if it says nothing new.

        Raises:
            LedgerUnavailable: the ledger failed.
        """
        async with self._lock:
            this = _Round(open_orders={})
            restricted: set[InstrumentId] = set()
            await self._take_trades(this, restricted)
            await self._take_open_orders(this, restricted)
            for order in list(self._lifecycle.book.open_orders.values()):
                if order.approval_id not in self._under_way():
                    await self._take_order(order, this, restricted)
            desk = await self._take_balances(this)
            return await self._conclude(this, restricted, desk=desk, record=record)

    async def resolve(self, order: Order) -> Order:
        """Query one order now and apply what the venue says.

        Raises:
            VenueError: the venue did not answer.
        """
        report = await self._venue.query(order.terms.client_order_id)
        if report is not None:
            self._lifecycle.apply_report(report)
        await self._lifecycle.flush()
        return self._lifecycle.book.order(order.order_id) or order

    # --- the parts of a round ------------------------------------------------------------------------------------

    async def _take_trades(self, this: _Round, restricted: set[InstrumentId]) -> None:
        since_ms = max(0, self._lifecycle.fill_watermark_ms - self._overlap_ms)
        try:
            trades = await self._venue.trades_since(since_ms)
        except VenueError as error:
            self._unanswered(this, "trades", error)
            return
        for trade in trades:
            order = await self._lifecycle.load(trade.client_order_id)
            if order is None:
                this.differ(f"FOREIGN_TRADE {trade.trade_id} {trade.instrument_id}: no order of this desk")
                restricted.add(trade.instrument_id)
            else:
                before = order.filled
                applied = self._lifecycle.apply_trade(trade)
                if applied is not None and applied.filled != before:
                    this.resolved += 1

    async def _take_open_orders(self, this: _Round, restricted: set[InstrumentId]) -> None:
        try:
            reports = await self._venue.open_orders()
        except VenueError as error:
            self._unanswered(this, "open orders", error)
            return
        for report in reports:
            this.open_orders[report.client_order_id] = report
            order = await self._lifecycle.load(report.client_order_id)
            if order is None:
                this.differ(f"FOREIGN_ORDER {report.client_order_id} {report.instrument_id}: not an order of this desk")
                restricted.add(report.instrument_id)
                continue
            was = order.status
            order = self._lifecycle.apply_report(report) or order
            this.resolved += was in _IN_DOUBT and order.status not in _IN_DOUBT
            if order.is_terminal and await self._is_alive(report.client_order_id):
                this.differ(f"ORDER_ALIVE {order.order_id}: {order.status} here, open at the venue")
                restricted.add(report.instrument_id)

    async def _is_alive(self, client_order_id: ClientOrderId) -> bool:
        """Ask again: the order may have ended while the list of open orders was on its way."""
        try:
            report = await self._venue.query(client_order_id)
        except VenueError:
            return True
        return report is not None and report.state is VenueOrderState.OPEN

    async def _take_order(self, order: Order, this: _Round, restricted: set[InstrumentId]) -> None:
        """Find out about an order that is open here."""
        client_order_id = order.terms.client_order_id
        order = self._lifecycle.book.order(order.order_id) or order
        if order.is_terminal:  # it ended since the round began
            return
        this.checked += 1
        report = this.open_orders.get(client_order_id)
        if report is None:
            try:
                report = await self._venue.query(client_order_id)
            except VenueError as error:
                self._unanswered(this, f"order {order.order_id}", error)
                self._lifecycle.lose(order, "the venue did not answer a query after the send")
                return
        if report is None:
            now = self._lifecycle.book.order(order.order_id)
            if now is None or now.status is order.status:  # else the venue has told of it while we asked
                await self._not_found_once(order, this, restricted)
            return
        self._not_found.pop(client_order_id, None)
        now = self._lifecycle.apply_report(report) or order
        this.resolved += order.status in _IN_DOUBT and now.status not in _IN_DOUBT
        if client_order_id in self._lifecycle.gaps:
            this.differ(
                f"FILLS_MISSING {now.order_id}: the venue says {plain(report.filled)} filled, {now.filled} known"
            )
            restricted.add(now.terms.instrument_id)
        still_open = report.state is VenueOrderState.OPEN
        if still_open and order.status is OrderStatus.PENDING_CANCEL and now.status is OrderStatus.PENDING_CANCEL:
            # The cancel's answer was lost; the order works on and may be cancelled again.
            event = OrderCancelRefused(order_id=now.order_id, reason="still open at the venue when reconciled")
            self._lifecycle.record(event, about=now)

    async def _not_found_once(self, order: Order, this: _Round, restricted: set[InstrumentId]) -> None:
        if order.status not in _IN_DOUBT:
            this.differ(f"ORDER_LOST {order.order_id}: {order.status} here, unknown to the venue")
            restricted.add(order.terms.instrument_id)
            return
        order = self._lifecycle.lose(order, "not found at the venue; it may still be on its way")
        if not this.complete:  # silence about trades or open orders is not evidence
            return
        window_over_ms = await self._expiry(order) + self._rules.max_clock_skew_ms
        if self._lifecycle.book.order(order.order_id) is not order:
            return
        now_ns = self._clock.monotonic_ns()
        if self._clock.now_ms() <= window_over_ms:
            return
        answers = self._not_found.setdefault(order.terms.client_order_id, [])
        if answers and now_ns - answers[-1] < self._spacing_ns:
            return
        answers.append(now_ns)
        if len(answers) >= ABSENT_ANSWERS:
            evidence = f"{len(answers)} spaced not-founds after the send window, no open order, no trade"
            self._lifecycle.record(OrderFoundAbsent(order_id=order.order_id, evidence=evidence), about=order)
            del self._not_found[order.terms.client_order_id]
            this.resolved += 1

    async def _expiry(self, order: Order) -> int:
        """Return when the order could last have been sent: its approval's or its slice's end, from signed bytes."""
        known = self._expires.get(order.approval_id)
        if known is not None:
            return known
        if order.agent_id == PROTECTION:  # its slice was sent within a short time of its claim, or never
            return order.created_ms + self._slice_window_ms
        latest = order.created_ms + self._rules.ttl_max_ms
        rows = await self._approvals.rows("approvals", {"approval_id": order.approval_id})
        if rows:
            try:
                text = cast("str", rows[0]["envelope"])
                approval = open_approval(text, order.approval_id, verifier=self._verifier, key_id=self._rules.key_id)
                latest = min(latest, approval.expires_ms)
            except GateRefused:  # not believable: wait for the longest life that any approval may have
                log.warning("the stored approval of order %s does not verify", order.order_id)
        if len(self._expires) > 10_000:
            self._expires.clear()
        self._expires[order.approval_id] = latest
        return latest

    async def _take_balances(self, this: _Round) -> bool:
        """Compare balances when nothing is moving; return whether they disagree."""
        if not this.complete or self._under_way() or self._lifecycle.gaps:
            return self._desk_restricted
        before = self._lifecycle.recorded
        try:
            balances: Mapping[Currency, Balance] = await self._venue.balances()
        except VenueError as error:
            self._unanswered(this, "balances", error)
            return self._desk_restricted
        if self._lifecycle.recorded != before or self._under_way():
            return self._desk_restricted  # something moved meanwhile; the next round compares
        ours = self._lifecycle.book.totals
        differ = False
        for currency in sorted({*ours, *balances}):
            here, there = ours.get(currency, ZERO), balances[currency].total if currency in balances else ZERO
            if here != there:
                this.differ(f"BALANCE {currency}: {plain(here)} in the ledger, {plain(there)} at the venue")
                differ = True
        return differ

    async def _conclude(
        self, this: _Round, restricted: set[InstrumentId], *, desk: bool, record: bool
    ) -> Reconciliation:
        before = self.last
        differences = tuple(this.differences or ())
        self._restricted = restricted if this.complete else self._restricted | restricted
        self._desk_restricted = desk
        outcome = Reconciliation(
            at_ms=self._clock.now_ms(),
            complete=this.complete,
            orders_checked=this.checked,
            resolved=this.resolved,
            unresolved=tuple(self.in_doubt()),
            differences=differences,
        )
        for text in differences:
            if before is None or text not in before.differences:
                self._lifecycle.alarm("RECONCILIATION_DIFFERENCE", text, subject=self._lifecycle.book.account_id)
        if record or before is None or before.differences != differences or this.resolved:
            self._lifecycle.record(
                ReconciliationCompleted(
                    account_id=self._lifecycle.book.account_id,
                    orders_checked=outcome.orders_checked,
                    resolved=outcome.resolved,
                    unresolved=len(outcome.unresolved),
                    differences=differences,
                )
            )
        await self._lifecycle.flush()
        self.last = outcome
        return outcome

    @staticmethod
    def _unanswered(this: _Round, what: str, error: VenueError) -> None:
        this.complete = False
        log.warning("reconciliation: the venue did not answer about %s (%s)", what, error.code)
