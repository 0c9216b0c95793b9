"""The risk room without its protocol: what the tools, the tests and the benchmarks call."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.events import ServiceStarted, ServiceStopped
from trading.domain.identifiers import ApprovalId, DecisionId, RequestId
from trading.domain.pending import PendingState
from trading.domain.proposals import Mode
from trading.domain.trading_states import DESK
from trading.ports.ledger import EventDraft, Ledger, Row, Unit, Upsert

from .adoption import START, opening_policy
from .assessment import Assessor
from .breaker import BreakerAnswer
from .chronicle import Chronicle
from .context import Frame
from .heartbeat import ExecutionPulse
from .journal import OPEN, RELEASE_ASKED, approved_of, policy_unit
from .limits import policy_of
from .memory import pace_of
from .numbers.desk import RiskNumbers
from .orders import OrderRequest, intent_of
from .parts import ApprovalReport, CheckReport, RiskParts
from .pending import HOW_TO_ANSWER, PendingBook, state_of
from .portfolio import Portfolio
from .rates import OrderRates, RecentOrders
from .reservations import ReservationBook
from .score.live import LiveScores
from .sign_off import Answer
from .wiring import Live, Room, wire

log = logging.getLogger("grekko.risk")

RELEASE: Final = "0.1.0"


class RiskService:
    """One account's risk room. ``start``, then answer; ``background`` keeps it current."""

    def __init__(self, parts: RiskParts) -> None:
        self.parts = parts
        self.reservations = ReservationBook()
        self.portfolio = Portfolio(parts.account_id, self.reservations, parts.quote)
        self.pulse = ExecutionPulse()
        self.numbers = RiskNumbers(parts.closes, parts.data_of)
        self.scores = LiveScores(parts.bars, parts.data_of, parts.score_model)
        self.chronicle = Chronicle(parts.ledger)
        self.ready = False
        self.failed = ""
        self._rows: dict[str, Row] = {}
        self._stopping = False
        self._opened: Live | None = None
        self.pending = PendingBook(parts.ids)
        policy = policy_of(parts.limits, version=1)  # until the start has found what is in force
        self.assessor = Assessor(
            parts.signer,
            parts.ids,
            OrderRates(pace_of(parts, policy), parts.clock.now_ms()),
            RecentOrders(parts.limits.duplicate_window_ms),
            parts.rules,
            None if parts.operator is None else self.pending,  # nobody is asked where nobody can answer
        )

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up the work of the last run: a new generation, the limits, the reservations, then the breaker.

        Raises:
            LedgerError: a ledger cannot be read or written; nothing was opened.
        """
        parts, now_ms = self.parts, self.parts.clock.now_ms()
        clean, alive_ms = await _last_run(parts.ledger)
        opening = await opening_policy(parts.ledger, parts.limits)
        policy = opening.policy
        states = {str(row["scope"]): row for row in await parts.ledger.rows("desk_state")}
        started = ServiceStarted(
            generation=parts.ledger.generation, mode=parts.mode.value, release=RELEASE, clean=clean
        )
        await parts.ledger.commit(Unit(events=(EventDraft(started),)))
        await parts.ledger.commit(policy_unit(policy, is_new=opening.is_new, now_ms=now_ms, by=START))
        self._opened = live = wire(self._room(), opening, states, clean=clean)
        self.numbers.restore(states)
        await live.heartbeats.beat()
        live.memory.prepare(self.portfolio, lambda: live.frames.policy, parts.account_id, parts.mode)
        await live.exits.restore()
        await live.people.load()
        await live.follower.rebuild(alive_ms)
        live.memory.refill(self.portfolio, map(approved_of, self._rows.values()), policy, now_ms)
        may_reactivate = parts.mode is Mode.PAPER and policy.limits.reactivate_after_unclean_stop
        await live.breaker.open(clean=clean, may_reactivate=may_reactivate)
        if self.portfolio.open_positions():
            await live.exits.step(live.frames.take())
        self.ready = True

    async def stop(self, reason: str = "stopped") -> None:
        """Finish what is under way and write that the stop was in good order."""
        self._stopping = True
        if self._opened is None or self.failed:
            return
        live = self.live
        await live.sign_off.close()
        await live.sign_off.settle()
        await live.follower.write()
        if live.sign_off.uncertain or not await live.breaker.save():
            return  # something is unknown: the next start must look at it as after a crash
        stopped = ServiceStopped(generation=self.parts.ledger.generation, reason=reason)
        await self.parts.ledger.commit(Unit(events=(EventDraft(stopped),)))

    @property
    def live(self) -> Live:
        """The running parts.

        Raises:
            Unavailable: not started, or the lease was lost.
        """
        if self._opened is None or self.failed:
            raise Unavailable(self.failed or "risk has not started yet", code="RISK_NOT_READY")
        return self._opened

    async def tick(self) -> None:
        """Do what is due about twice a second: heartbeat, silent markets, and whatever could not be written before."""
        live = self.live
        frame = live.frames.take()
        await live.surveillance.look(frame)
        await live.heartbeats.beat()
        await live.breaker.save()
        await live.exits.step(frame)
        live.follower.watch(frame.now_ms)
        await self.numbers.follow(frame, self.parts.ledger)
        await live.sign_off.settle()
        await live.follower.write()
        await live.memory.save(self.parts.ledger, self.parts.clock.now_ms())
        if live.commands is not None:
            await live.commands.poll()
        await live.people.expire()
        await live.adoption.look()

    async def witness(self) -> int:
        """Embed the newest signed heads of other rooms in our own chain; return how many were new."""
        live = self.live
        found = [head for head in (read() for read in self.parts.heads) if head is not None]
        known = {name: head.size for name, head in live.witnessed.items()}
        fresh = [head for head in found if head.size > known.get(head.service, 0)]
        if fresh:
            await self.parts.ledger.commit(Unit(events=tuple(EventDraft(head) for head in fresh)))
            live.witnessed.update({head.service: head for head in fresh})
        return len(fresh)

    def hear_execution(self, *, sent_ms: int, ledger_seq: int, unresolved: int, safe: bool) -> None:
        """Take execution's heartbeat."""
        now_ms = self.parts.clock.now_ms()
        if (
            self.pulse.hear(sent_ms=sent_ms, ledger_seq=ledger_seq, unresolved=unresolved, safe=safe, now_ms=now_ms)
            and ledger_seq > self.portfolio.applied_seq
        ):
            self.portfolio.expect(ledger_seq, now_ms)
            if self._opened is not None:
                self._opened.follower.notify()

    # -- the tools' questions ---------------------------------------------------------------------------------------

    async def request_approval(
        self,
        principal: str,
        request_id: RequestId,
        orders: tuple[OrderRequest, ...],
        decision_id: DecisionId | None = None,
    ) -> Answer:
        """Return approvals and denials; see :meth:`SignOff.request`."""
        if self._stopping:
            raise Unavailable("risk is stopping", code="RISK_NOT_READY")
        for order in orders:
            self._check_account(order)
        answer = await self.live.sign_off.request(principal, request_id, orders, decision_id)
        if not answer.replayed and (denied := answer.denied):
            self.live.surveillance.denied(denied)
        return answer

    def check_order(self, order: OrderRequest) -> CheckReport:
        """Judge one order as ``request_approval`` would, reserving and counting nothing."""
        self._check_account(order)
        frame = self.live.frames.take()
        intent = intent_of(frame, order, decided=False)
        context, verdict = self.assessor.check(frame, intent, order.agent_id)
        return CheckReport(
            intent=intent,
            passed=verdict.passed,
            results=verdict.results or verdict.failures,
            max_allowed_now=self.assessor.largest(context),
            nearest_legal=None if verdict.passed else self.assessor.nearest(context),
            effect=context.effect.value,
            frame=frame,
        )

    async def get_approval(self, approval_id: ApprovalId) -> ApprovalReport:
        """Return an approval, its state and its fate; or what became of an order that waited for the operator.

        Raises:
            InvalidValue: no approval and no waiting order has that id.
        """
        rows = await self.parts.ledger.rows("approvals", {"approval_id": approval_id}, limit=1)
        if not rows:
            return await self._waiting(approval_id)
        fates = await self.parts.execution.rows("approval_fates", {"approval_id": approval_id})
        fate, approved = fates[0] if fates else None, approved_of(rows[0])
        return ApprovalReport(
            named=approval_id,
            approved=approved,
            state=str(rows[0]["state"]),
            fate=str(fate["fate"]) if fate else "",
            order_id=str(fate["order_id"] or "") if fate else "",
            expires_ms=approved.approval.expires_ms,
        )

    async def _waiting(self, pending_id: str) -> ApprovalReport:
        try:
            row = await self.live.people.row(pending_id)
        except InvalidValue as error:
            raise InvalidValue("no approval has that id", code="UNKNOWN_APPROVAL") from error
        state = state_of(row, self.parts.clock.now_ms())
        if state is PendingState.APPROVED:
            given = await self.get_approval(ApprovalId(str(row["approval_id"])))
            return replace(given, named=pending_id, state=state.value)
        return ApprovalReport(
            named=pending_id,
            approved=None,
            state=state.value,
            expires_ms=int(str(row["expires_ms"])),
            detail=str(row["detail"]) or HOW_TO_ANSWER,
        )

    async def release_approval(self, approval_id: ApprovalId, by: str = "local") -> ApprovalReport:
        """Ask execution to void an approval nobody will use; it counts until execution has written its fate.

        An order that waits for the operator is withdrawn instead.

        Raises:
            InvalidValue: no approval has that id.
        """
        report = await self.get_approval(approval_id)
        if report.state == PendingState.PENDING:
            await self.live.people.withdraw(approval_id, by)
            return await self.get_approval(approval_id)
        if report.state != OPEN or report.fate:
            return report
        row = self._rows.get(approval_id)
        if row is None:
            return report
        self._rows[approval_id] = asked = {**row, "state": RELEASE_ASKED}
        await self.parts.ledger.commit(Unit(writes=(Upsert("approvals", asked),)))
        if approval_id not in self._rows:  # released while we wrote: the final word stands
            await self.parts.ledger.commit(Unit(writes=(Upsert("approvals", {**asked, "state": "released"}),)))
        return replace(report, state=RELEASE_ASKED)

    async def trip(self, reason: str, by: str, scope: str = DESK) -> BreakerAnswer:
        """Halt the desk, or one scope of it: nothing that adds risk is sent there from now on.

        Raises:
            InvalidValue: UNKNOWN_SCOPE.
        """
        return await self.live.breaker.trip(reason, by, scope=self.live.known_scopes.read(scope))

    def frame(self) -> Frame:
        """Return the desk as risk sees it now."""
        return self.live.frames.take()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _room(self) -> Room:
        return Room(
            parts=self.parts,
            portfolio=self.portfolio,
            reservations=self.reservations,
            pulse=self.pulse,
            assessor=self.assessor,
            pending=self.pending,
            rows=self._rows,
            scores=self.scores,
            is_ready=lambda: self.ready,
            on_lease_lost=self._lease_lost,
        )

    def _check_account(self, order: OrderRequest) -> None:
        if order.account_id != self.parts.account_id:
            raise InvalidValue(
                "this desk trades another account", code="WRONG_ACCOUNT", allowed=(self.parts.account_id,)
            )

    def _lease_lost(self) -> None:
        self.failed = "another process is the writer of risk's ledger now"
        log.critical("%s; this one stops answering", self.failed)


async def _last_run(ledger: Ledger) -> tuple[bool, int | None]:
    """Whether the last run ended with ServiceStopped, and when it last wrote; a new ledger counts as clean."""
    last = await ledger.last_seq()
    if not last:
        return True, None
    events = await ledger.events_after(last - 1, limit=1)
    clean = bool(events) and isinstance(events[0].payload, ServiceStopped)
    return clean, events[0].timestamp_ms if events else None
