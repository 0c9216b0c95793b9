"""Submit: from approval ids to orders at the venue, each at most once.

::

    ids ─▶ risk's ledger ─▶ gate ─▶ prepare ─▶ claim + OrderInitialized, one commit ─▶ send ─▶ answer ─▶ events

Rules kept here:

- The claim of the approval is durable before anything is sent; whoever loses the claim sends nothing.
- The same approval again gives the same order.
- A caller that goes away stops nothing: the walk is a task of its own.
- Approvals that arrive while others are on their way to the venue walk together next: one read, one claim.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

from mcp_servers.execution.fates import Fates
from mcp_servers.execution.gate import (
    GateCode,
    GateFacts,
    GateRules,
    Moment,
    check_approval,
    open_approval,
)
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.metrics import Metrics, Stage
from mcp_servers.execution.protection.exits import StandingExits
from mcp_servers.execution.rows import order_of
from mcp_servers.execution.sending import Sending
from mcp_servers.execution.walks import (
    Outcome,
    Receipt,
    Refusal,
    Walk,
    check_wire,
    claim_of,
    commit_claims,
    fate_written,
    known,
    no_room,
)
from trading.domain.approvals import Approval, ApprovedOrder, Effect, Fate
from trading.domain.errors import (
    AlreadyClaimed,
    GateRefused,
    LedgerError,
    LedgerUnavailable,
    OutcomeUnknown,
    Retryable,
    TradingError,
    VenueError,
)
from trading.domain.events import OrderNotSent
from trading.domain.identifiers import ApprovalId, OrderId
from trading.domain.orders import Order
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger, LedgerReader, Unit
from trading.ports.signing import Verifier
from trading.ports.venue import ExecutionVenue

log = logging.getLogger(__name__)

BATCH_MAX = 256

#: How long the next batch waits for the one before to be sent; a venue that is slow to prepare holds up nobody else.
_TURN_S = 0.1


class Submissions:
    """Takes approvals to the venue.

    Args:
        approvals: risk's ledger, where the signed envelopes are.
        facts: execution's own state for the gate.
        sending: does what follows a durable claim.
        exits: keeps the standing exits that come with entries.
        has_room: has a stop at the venue give way to an order that closes in its place.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        ledger: Ledger,
        approvals: LedgerReader,
        venue: ExecutionVenue,
        facts: GateFacts,
        fates: Fates,
        verifier: Verifier,
        rules: GateRules,
        clock: Clock,
        ids: IdFactory,
        metrics: Metrics,
        sending: Sending,
        exits: StandingExits,
        has_room: Callable[[ApprovedOrder], Awaitable[bool]],
    ) -> None:
        self._lifecycle = lifecycle
        self._ledger = ledger
        self._approvals = approvals
        self._venue = venue
        self._facts = facts
        self._fates = fates
        self._verifier = verifier
        self._rules = rules
        self._clock = clock
        self._ids = ids
        self._metrics = metrics
        self._sending = sending
        self._exits = exits
        self._has_room = has_room
        self._under_way: dict[ApprovalId, asyncio.Future[Outcome]] = {}
        self._queue: list[Walk] = []
        self._walks: set[asyncio.Task[None]] = set()
        self._pumping = False

    @property
    def under_way(self) -> frozenset[ApprovalId]:
        """Approvals that this process is handling right now; nobody else may draw conclusions about them."""
        return frozenset(self._under_way)

    async def submit(self, approval_ids: Sequence[ApprovalId]) -> list[Outcome]:
        """Return the receipt or the refusal of each approval, in the order given.

        Args:
            approval_ids: at most 256; repeated ids give the same outcome.

        Raises:
            LedgerUnavailable: the ledger failed; read the orders before asking again.
        """
        outcomes: dict[ApprovalId, asyncio.Future[Outcome]] = {}
        for approval_id in approval_ids:
            if approval_id not in outcomes:
                outcomes[approval_id] = self._under_way.get(approval_id) or self._start(approval_id)
        for future in outcomes.values():
            if not future.done():
                await asyncio.shield(future)  # which leaves the future alone when this caller is cancelled
        return [outcomes[approval_id].result() for approval_id in approval_ids]

    async def close(self) -> None:
        """Let what is under way end; what has not been sent by then is NOT_SENT."""
        self._sending.close()
        while self._walks:
            await asyncio.wait(self._walks)

    def _start(self, approval_id: ApprovalId) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        order = self._lifecycle.order_of_approval(approval_id)
        if order is not None:
            future.set_result(Receipt(approval_id, order))
            return future
        self._under_way[approval_id] = future
        self._queue.append(Walk(approval_id))
        if not self._pumping:
            self._pumping = True
            self._spawn(self._pump())
        return future

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._walks.add(task)
        task.add_done_callback(self._walks.discard)

    async def _pump(self) -> None:
        """Let what has arrived walk together, batch after batch; their answers come in while the next ones walk."""
        try:
            while self._queue:
                batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
                sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._spawn(self._walk(batch, sent))
                await asyncio.wait((sent,), timeout=_TURN_S)
        finally:
            self._pumping = False

    # --- the walk ------------------------------------------------------------------------------------------------

    async def _walk(self, walks: list[Walk], sent: asyncio.Future[None]) -> None:
        start_ns, everyone = self._clock.monotonic_ns(), walks
        try:
            walks = await self._read(walks)
            walks = self._admit(walks)
            walks = await self._give_way(walks)
            walks = await self._prepare(walks)
            walks = await self._claim(walks)
            answers = self._sending.dispatch(walks)  # no await between its last check and its send
            sent.set_result(None)
            await self._sending.collect(answers)
            start = self._clock.monotonic_ns()
            await self._lifecycle.flush()
            self._metrics.observe(Stage.RECORD, self._clock.monotonic_ns() - start, orders=len(walks))
            for walk in walks:
                self._give(walk)
            self._metrics.observe(Stage.TOTAL, self._clock.monotonic_ns() - start_ns, orders=len(walks))
        except LedgerError as error:
            log.error("submit stopped: %s", error.code)
            self._fail(everyone, error)
        except Exception as error:  # task boundary: callers are answered, the rest is for the log
            log.exception("submit failed")
            self._fail(everyone, OutcomeUnknown(f"the submit failed ({type(error).__name__}); read the orders"))
        finally:
            if not sent.done():
                sent.set_result(None)

    async def _read(self, walks: list[Walk]) -> list[Walk]:
        """Fetch what the ledgers know: risk's envelopes, and fates this process has not seen being written."""
        start = self._clock.monotonic_ns()
        ids = [walk.approval_id for walk in walks]
        rows = await self._approvals.rows("approvals", {"approval_id": ids})
        envelopes = {cast("str", row["approval_id"]): cast("str", row["envelope"]) for row in rows}
        doubtful = [approval_id for approval_id in ids if not self._fates.is_open(approval_id)]
        ended = await self._ended(doubtful) if doubtful else {}
        left: list[Walk] = []
        for walk in walks:
            if (outcome := ended.get(walk.approval_id)) is not None:
                self._settle(walk, outcome)
            elif (text := envelopes.get(walk.approval_id)) is None:
                missing = GateRefused(
                    "risk's ledger has no such approval",
                    code=GateCode.NOT_FOUND.value,
                    suggestion="pass the approval_id that risk_request_approval returned",
                )
                self._settle(walk, Refusal(walk.approval_id, missing))
            else:
                walk.envelope = text
                left.append(walk)
        self._metrics.observe(Stage.READ, self._clock.monotonic_ns() - start, orders=len(walks))
        return left

    async def _ended(self, ids: list[ApprovalId]) -> dict[ApprovalId, Outcome]:
        """Return the stored outcome of every id whose fate is written."""
        fates = await self._ledger.rows("approval_fates", {"approval_id": ids})
        if not fates:
            return {}
        consumed = [row["order_id"] for row in fates if row["fate"] == Fate.CONSUMED]
        orders = await self._ledger.rows("orders", {"order_id": consumed}) if consumed else []
        outcomes: dict[ApprovalId, Outcome] = {}
        for row in orders:
            order = order_of(row)
            outcomes[order.approval_id] = Receipt(
                order.approval_id, self._lifecycle.book.order(order.order_id) or order
            )
        for row in fates:
            approval_id = ApprovalId(cast("str", row["approval_id"]))
            outcomes.setdefault(approval_id, Refusal(approval_id, fate_written(cast("str", row["fate"]))))
        return outcomes

    def _admit(self, walks: list[Walk]) -> list[Walk]:
        """Put each envelope through the gate. Synchronous, so that two reduces cannot both see the same position."""
        start = self._clock.monotonic_ns()
        left: list[Walk] = []
        for walk in walks:
            moment = Moment(self._clock.now_ms(), self._clock.monotonic_ns())
            try:
                approval = open_approval(
                    walk.envelope, walk.approval_id, verifier=self._verifier, key_id=self._rules.key_id
                )
                self._fates.saw(approval)
                check_approval(approval, self._facts, self._rules, moment)
            except GateRefused as error:
                self._refuse(walk, error)
                continue
            except Exception as error:  # noqa: BLE001 - its neighbours in the batch are somebody else's
                self._fault(walk, error)
                continue
            walk.approval = approval
            self._hold(walk)
            left.append(walk)
        self._metrics.observe(Stage.GATE, self._clock.monotonic_ns() - start, orders=len(walks))
        return left

    async def _give_way(self, walks: list[Walk]) -> list[Walk]:
        """Have protective stops give way to what was admitted in their place."""
        left: list[Walk] = []
        for walk in walks:
            if walk.held and not await self._has_room(known(walk.approval).order):
                self._refuse(walk, no_room())
            else:
                left.append(walk)
        return left

    async def _prepare(self, walks: list[Walk]) -> list[Walk]:
        """Do everything that may wait, and compare what will be on the wire with what was approved."""
        start = self._clock.monotonic_ns()
        left: list[Walk] = []
        for walk in walks:
            approval = known(walk.approval)
            try:
                prepared = await self._venue.prepare(approval.order, deadline_ms=approval.expires_ms)
                check_wire(prepared, approval.order)
            except (GateRefused, VenueError) as error:
                self._refuse(walk, error)
                continue
            except Exception as error:  # noqa: BLE001 - as above
                self._fault(walk, error)
                continue
            walk.prepared = prepared
            left.append(walk)
        self._metrics.observe(Stage.PREPARE, self._clock.monotonic_ns() - start, orders=len(walks))
        return left

    async def _claim(self, walks: list[Walk]) -> list[Walk]:
        """Consume the approvals: fate, event and order become durable together, or the walk ends here."""
        start = self._clock.monotonic_ns()
        orders = [self._new_order(known(walk.approval)) for walk in walks]
        results = await commit_claims(self._ledger, [self._claim_of(*pair) for pair in zip(walks, orders, strict=True)])
        left: list[Walk] = []
        lost: list[tuple[Walk, BaseException]] = []
        for walk, order, result in zip(walks, orders, results, strict=True):
            if isinstance(result, BaseException):
                lost.append((walk, result))
                continue
            self._fates.wrote(walk.approval_id, Fate.CONSUMED)
            walk.order = self._lifecycle.restore(order)
            self._unhold(walk)  # the order itself counts from here
            if walk.offered is not None:
                self._exits.keep(walk.offered)
            left.append(walk)
        for walk, error in lost:  # after every winner was taken in: what fails here must not strand a durable order
            try:
                await (self._lost_claim if isinstance(error, AlreadyClaimed) else self._doubtful_claim)(walk, error)
            except LedgerUnavailable as failed:
                self._settle(walk, Refusal(walk.approval_id, failed))
        self._metrics.observe(Stage.CLAIM, self._clock.monotonic_ns() - start, orders=len(walks))
        return left

    # --- claims that did not go through --------------------------------------------------------------------------

    async def _lost_claim(self, walk: Walk, error: BaseException) -> None:
        outcome = (await self._ended([walk.approval_id])).get(walk.approval_id)
        if isinstance(outcome, Refusal):
            self._fates.wrote(walk.approval_id, Fate(cast("str", cast("AlreadyClaimed", error).existing["fate"])))
        self._settle(walk, outcome or Refusal(walk.approval_id, fate_written("used")))

    async def _doubtful_claim(self, walk: Walk, error: BaseException) -> None:
        """A failed commit may have been written: look. Nothing was sent, so an order found there is NOT_SENT."""
        if not isinstance(error, LedgerUnavailable):
            self._lifecycle.broken.set()
            raise error
        for row in await self._ledger.rows("orders", {"approval_id": walk.approval_id}):
            self._fates.wrote(walk.approval_id, Fate.CONSUMED)
            order = self._lifecycle.restore(order_of(row))
            event = OrderNotSent(order_id=order.order_id, code=error.code)
            walk.order = self._lifecycle.record(event, about=order)
            await self._lifecycle.flush()
            self._give(walk)
            return
        self._refuse(walk, error)

    def _claim_of(self, walk: Walk, order: Order) -> Unit:
        walk.offered = offered = self._exits.offer(known(walk.approval), walk.envelope)
        return claim_of(order) if offered is None else claim_of(order, writes=(offered.write(order.created_ms),))

    # --- small parts ---------------------------------------------------------------------------------------------

    def _new_order(self, approval: Approval) -> Order:
        now_ms = self._clock.now_ms()
        return Order(
            order_id=OrderId(self._ids.new_id()),
            approval_id=approval.approval_id,
            agent_id=approval.agent_id,
            effect=approval.effect,
            terms=approval.order,
            created_ms=now_ms,
            updated_ms=now_ms,
        )

    def _hold(self, walk: Walk) -> None:
        approval = known(walk.approval)
        if approval.effect is Effect.REDUCE or approval.order.reduce_only:
            walk.held = True
            order = approval.order
            self._lifecycle.hold(order.instrument_id, order.side, order.quantity)

    def _unhold(self, walk: Walk) -> None:
        if walk.held:
            walk.held = False
            order = known(walk.approval).order
            self._lifecycle.hold(order.instrument_id, order.side, -order.quantity)

    def _give(self, walk: Walk) -> None:
        order = known(walk.order)
        order = self._lifecycle.book.order(order.order_id) or order
        self._metrics.count(f"order_{order.status.value}")
        self._settle(walk, Receipt(walk.approval_id, order))

    def _refuse(self, walk: Walk, error: TradingError) -> None:
        self._metrics.count(error.code)
        self._settle(walk, Refusal(walk.approval_id, error))

    def _fault(self, walk: Walk, error: Exception) -> None:
        log.error("an approval could not be taken to the claim", exc_info=error)
        self._refuse(walk, Retryable(f"a fault before the send ({type(error).__name__}); nothing was sent"))

    def _settle(self, walk: Walk, outcome: Outcome) -> None:
        if walk.settled:
            return
        walk.settled = True
        self._unhold(walk)
        future = self._under_way.pop(walk.approval_id, None)
        if future is not None and not future.done():
            future.set_result(outcome)

    def _fail(self, walks: list[Walk], error: TradingError) -> None:
        for walk in walks:
            self._settle(walk, Refusal(walk.approval_id, error))
