"""The execution room's one object: it starts in order, answers the tools and runs the background work.

Order of start: the ledger's lease is held already; then memory is rebuilt from the ledger, the account is funded if it
is new, ledger and venue are reconciled, and only then does anything get served. No approved order is sent before a
fresh heartbeat of risk all the same; a stop needs none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import cast

from mcp_servers.execution.cancels import CancelAll, Cancels
from mcp_servers.execution.epochs import EpochTracker, Ignored, Learned, remembered_pulse, trips_in
from mcp_servers.execution.fates import Fates
from mcp_servers.execution.gate import GateRules, Moment, RiskPulse
from mcp_servers.execution.inquiries import Inquiries
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.mandates import Mandates
from mcp_servers.execution.metrics import Metrics
from mcp_servers.execution.protection.exits import StandingExits
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.protection.wiring import build_slices, build_stop_loss
from mcp_servers.execution.reconciliation import Reconciler, Reconciliation
from mcp_servers.execution.rows import order_of, position_of
from mcp_servers.execution.sending import Sending
from mcp_servers.execution.submission import Submissions
from mcp_servers.execution.walks import Outcome
from trading.domain.approvals import ApprovedOrder, Effect, Fate
from trading.domain.errors import LedgerError
from trading.domain.events import BreakerTripped, EventEnvelope, ServiceStarted, ServiceStopped
from trading.domain.identifiers import ApprovalId, Currency, Symbol
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import OrderBook, Side
from trading.domain.money import ZERO, parse_decimal
from trading.domain.orders import TERMINAL, Order, OrderStatus
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger, LedgerReader
from trading.ports.market_data import MarketView
from trading.ports.signing import Verifier
from trading.ports.venue import ExecutionVenue, VenueReport

log = logging.getLogger(__name__)

RELEASE = "0.1.0"
_OPEN_STATUSES = [status.value for status in OrderStatus if status not in TERMINAL]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionParts:
    """What an execution service is made of.

    Attributes:
        approvals: risk's ledger, read only.
        market: live prices; ``price_source`` says under which instrument they are found.
        price_source: instrument at our venue -> instrument in the market view, where they differ.
        quote: currency that equity is counted in.
        opening_balances: what a new paper account starts with, in ledger and venue alike.
        answer_timeout_s: how long a venue's answer is waited for before the order counts as UNKNOWN.
        spacing_ms: least time between two "not found" answers that count towards ABSENT.
        terminal_kept: finished orders kept in memory.
        protection: how the stop-loss manager goes about it.
    """

    ledger: Ledger
    approvals: LedgerReader
    venue: ExecutionVenue
    market: MarketView
    verifier: Verifier
    rules: GateRules
    clock: Clock
    ids: IdFactory
    price_source: Mapping[InstrumentId, InstrumentId]
    opening_balances: Mapping[Currency, Decimal]
    quote: Currency
    answer_timeout_s: float = 3.0
    spacing_ms: int = 500
    terminal_kept: int = 2_000
    protection: ProtectionRules = field(default_factory=ProtectionRules)


class ExecutionService:
    """One account at one venue. Create, ``await start()``, and run ``mcp_servers.execution.background`` beside it."""

    def __init__(self, parts: ExecutionParts) -> None:
        self.parts = parts
        self.rules = parts.rules
        self.clock = parts.clock
        self.metrics = Metrics()
        self.instruments: dict[InstrumentId, Instrument] = {}
        self.lifecycle = Lifecycle(parts.rules.account_id, parts.ledger, parts.clock, terminal_kept=parts.terminal_kept)
        self.fates = Fates(
            parts.rules.account_id,
            parts.rules.mode,
            ledger=parts.ledger,
            approvals=parts.approvals,
            clock=parts.clock,
            under_way=lambda: self.submissions.under_way,
        )
        self.epochs = EpochTracker(parts.rules.account_id, verifier=parts.verifier, rules=parts.rules)
        self.exits = StandingExits(ledger=parts.ledger, verifier=parts.verifier, rules=parts.rules, clock=parts.clock)
        self.sending = Sending(
            lifecycle=self.lifecycle,
            venue=parts.venue,
            facts=self,
            rules=parts.rules,
            clock=parts.clock,
            metrics=self.metrics,
            answer_timeout_s=parts.answer_timeout_s,
        )
        self.submissions = Submissions(
            lifecycle=self.lifecycle,
            ledger=parts.ledger,
            approvals=parts.approvals,
            venue=parts.venue,
            facts=self,
            fates=self.fates,
            verifier=parts.verifier,
            rules=parts.rules,
            clock=parts.clock,
            ids=parts.ids,
            metrics=self.metrics,
            sending=self.sending,
            exits=self.exits,
            has_room=self._has_room,
        )
        slices = build_slices(self)
        self.mandates = Mandates(
            approvals=parts.approvals,
            fates=self.fates,
            submit=self.submissions.submit,
            alarm=self._alarm,
        )
        self.reconciler = Reconciler(
            lifecycle=self.lifecycle,
            venue=parts.venue,
            approvals=parts.approvals,
            verifier=parts.verifier,
            rules=parts.rules,
            clock=parts.clock,
            under_way=lambda: self.submissions.under_way | slices.under_way,
            spacing_ms=parts.spacing_ms,
            slice_window_ms=parts.protection.window_ms,
        )
        self.inquiries = Inquiries(self)
        self.cancels = Cancels(self.lifecycle, parts.venue, self.reconciler)
        self.stop_loss = build_stop_loss(self, self.exits, slices)
        self.risk_seq = 0
        #: Size of the newest head of risk's ledger that is embedded in ours.
        self.witnessed_size = 0
        #: Set when a heartbeat changed something that must be acted on.
        self.news = asyncio.Event()
        self._to_persist = False
        self._generation = 0

    # --- what the gate asks (GateFacts) --------------------------------------------------------------------------

    @property
    def pulse(self) -> RiskPulse:
        """What is known of risk now."""
        return self.epochs.pulse

    def first_seen_ns(self, approval_id: ApprovalId) -> int | None:
        """Return when this process first heard of the approval."""
        return self.fates.first_seen_ns(approval_id)

    def fate(self, approval_id: ApprovalId) -> Fate | None:
        """Return the approval's fate, as far as memory knows."""
        return self.fates.fate(approval_id)

    def instrument(self, instrument_id: InstrumentId) -> Instrument | None:
        """Return the venue's rules for the instrument."""
        return self.instruments.get(instrument_id)

    def book(self, instrument_id: InstrumentId) -> OrderBook | None:
        """Return the newest book that prices the instrument."""
        return self.parts.market.book(self.parts.price_source.get(instrument_id, instrument_id))

    def reducible(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return how much base an order on ``side`` may still close; a stop that rests at the venue gives way to it."""
        slack = self.lifecycle.slack(instrument_id, side)
        return max(ZERO, slack + self.stop_loss.withdrawable(instrument_id, side))

    def slack(self, instrument_id: InstrumentId, side: Side) -> Decimal:
        """Return the open quantity less all that may be closing it on ``side``."""
        return self.lifecycle.slack(instrument_id, side)

    def _has_room(self, order: ApprovedOrder) -> Awaitable[bool]:
        return self.stop_loss.has_room(order)

    def is_restricted(self, instrument_id: InstrumentId) -> bool:
        """Return whether ledger and venue disagree about this instrument or the account."""
        return self.reconciler.is_restricted(instrument_id)

    def moment(self) -> Moment:
        """Return both clocks."""
        return Moment(self.clock.now_ms(), self.clock.monotonic_ns())

    # --- start and stop ------------------------------------------------------------------------------------------

    async def start(self) -> Reconciliation:
        """Rebuild memory from the ledger, reconcile with the venue, and be ready to serve.

        Raises:
            LedgerUnavailable: the ledger failed.
            VenueError: the venue's rules cannot be read.
        """
        ledger = self.parts.ledger
        self.instruments = {each.id: each for each in await self.parts.venue.instruments()}
        self._generation = ledger.generation
        clean = await self._replay()
        await self.stop_loss.load(self.instruments)
        remembered = await remembered_pulse(ledger, self.rules.account_id)
        self.epochs = EpochTracker(
            self.rules.account_id, verifier=self.parts.verifier, rules=self.rules, remembered=remembered
        )
        self.lifecycle.record(
            ServiceStarted(generation=ledger.generation, mode=self.rules.mode.value, release=RELEASE, clean=clean)
        )
        if not self.lifecycle.book.totals:
            for currency, amount in sorted(self.parts.opening_balances.items()):
                self.lifecycle.fund(currency, amount)
        await self.lifecycle.flush()
        self.risk_seq = await self.fates.load()
        await self._heed_risks_rows()
        await self.stop_loss.catch_up(self.parts.approvals)
        await self.fates.lapse_due()
        await self.mandates.load()
        return await self.reconciler.run(record=True)

    async def _heed_risks_rows(self) -> None:
        """Take the trips that risk wrote while we were away; what it loosened comes with its heartbeats."""
        for trip in trips_in(await self.parts.approvals.rows("desk_state")):
            if (outcome := self.epochs.tighten(*trip)) is not None:
                self._heed(outcome)

    async def _replay(self) -> bool:
        """Rebuild memory from the rows that were committed with the events; return whether the last stop was clean."""
        ledger, account_id = self.parts.ledger, self.rules.account_id
        balances = await ledger.rows("balances", {"account_id": account_id})
        positions = [position_of(row) for row in await ledger.rows("positions", {"account_id": account_id})]
        self.lifecycle.restore_balances(
            {Currency(cast("str", row["currency"])): parse_decimal(cast("str", row["total"])) for row in balances},
            {position.instrument_id: position for position in positions},
        )
        for row in await ledger.rows("orders", {"account_id": account_id, "status": _OPEN_STATUSES}):
            self.lifecycle.restore(order_of(row))
        last = await ledger.last_seq()
        newest = await ledger.events_after(max(0, last - 1), limit=1)
        if newest:
            # Fills of the venue's last minute are asked for again; before that the ledger was following.
            self.lifecycle.fill_watermark_ms = newest[-1].timestamp_ms
        return not newest or isinstance(newest[-1].payload, ServiceStopped)

    async def stop(self, reason: str) -> None:
        """Finish what is under way and say so in the ledger. Orders stay at the venue."""
        await self.submissions.close()
        if not self.lifecycle.broken.is_set():
            self.lifecycle.record(ServiceStopped(generation=self._generation, reason=reason))
            await self.lifecycle.flush()

    # --- what comes in -------------------------------------------------------------------------------------------

    def learn(self, text: str) -> Learned | Ignored:
        """Take one heartbeat from the bus; it binds every send from here on. ``news`` is set if there is more to do."""
        outcome = self.epochs.observe(text, self.moment())
        if isinstance(outcome, Learned):
            self._heed(outcome)
        return outcome

    def follow_risk(self, event: EventEnvelope) -> None:
        """Take one event of risk's ledger: approvals to end or bring, and trips, which bind without any heartbeat."""
        self.fates.follow(event)
        self.mandates.follow(event)
        if isinstance(trip := event.payload, BreakerTripped):
            outcome = self.epochs.tighten(trip.scope, trip.state, trip.epoch)
            if outcome is not None:
                self._heed(outcome)
        self.risk_seq = event.seq

    def _heed(self, learned: Learned) -> None:
        if learned.changed:
            self._to_persist = True
        if self._to_persist or self.has_halted_work() or self.fates.has_before(self.pulse.epoch):
            self.news.set()

    async def act_on_news(self) -> None:
        """Carry out what was learned: write the epoch down, void what died with it, cancel what a halt forbids."""
        if self._to_persist:
            self._to_persist = False
            try:
                await self.epochs.persist(self.parts.ledger, now_ms=self.clock.now_ms())
            except LedgerError:
                self._to_persist = True
                raise
        await self.fates.void_before(self.pulse.epoch)
        if self.has_halted_work():
            await self.sweep()

    async def hear_venue(self, report: VenueReport) -> None:
        """Take one unsolicited report; the caller flushes."""
        order = await self.lifecycle.load(report.client_order_id)
        if order is None:
            text = f"the venue reports an order {report.client_order_id} that is not this desk's"
            self.lifecycle.alarm("FOREIGN_ORDER", text, subject=report.client_order_id)
            return
        self.lifecycle.apply_report(report)

    async def _alarm(self, code: str, message: str, subject: str) -> None:
        self.lifecycle.alarm(code, message, subject=subject)
        await self.lifecycle.flush()

    async def sweep(self) -> CancelAll | None:
        """Cancel working orders that add risk where trading is halted; return what remains, None if it is nowhere."""
        if not self.pulse.halts_anything:
            return None
        return await self.cancels.cancel_all(by="halt", increases_only=True, only=self._is_halted)

    def has_halted_work(self) -> bool:
        """Return whether an order that adds risk may still be working where trading is halted."""
        if not self.pulse.halts_anything:
            return False
        orders = self.lifecycle.book.open_orders.values()
        return any(order.effect is Effect.INCREASE and self._is_halted(order) for order in orders)

    def _is_halted(self, order: Order) -> bool:
        return self.pulse.state_for(order.terms, order.agent_id).state.cancels_increases

    # --- what the tools ask --------------------------------------------------------------------------------------

    async def submit(self, approval_ids: Sequence[str]) -> list[Outcome]:
        """Return the receipt or refusal of each approval; see ``Submissions.submit``."""
        return await self.submissions.submit([ApprovalId(each) for each in approval_ids])

    async def cancel(self, name: str, *, by: str) -> Order:
        """Cancel one order; see ``Cancels.cancel``."""
        return await self.cancels.cancel(await self.inquiries.find_order(name), by=by)

    async def cancel_all(self, *, by: str, symbol: Symbol | None = None) -> CancelAll:
        """Cancel everything that may be cancelled; a caller that goes away does not stop it."""
        return await asyncio.shield(asyncio.ensure_future(self.cancels.cancel_all(by=by, symbol=symbol)))

    async def reconcile(self) -> Reconciliation:
        """Compare ledger and venue now."""
        return await asyncio.shield(asyncio.ensure_future(self.reconciler.run(record=True)))
