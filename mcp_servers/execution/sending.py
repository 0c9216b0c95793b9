"""The send: the last check, the hand-over to the venue's transport, and the answers.

Rules kept here:

- Between the last check (clock, epoch, state; for a protective order its exit) and the hand-over nothing else can run:
  ``dispatch`` is not a coroutine. A failed last check ends the order as NOT_SENT.
- A request whose answer is lost, late or strange is UNKNOWN. It is queried later, never sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from mcp_servers.execution.gate import GateCode, GateFacts, GateRules, Moment, check_state, check_time, refuse
from mcp_servers.execution.lifecycle import Lifecycle
from mcp_servers.execution.metrics import Metrics, Stage
from mcp_servers.execution.protection.permits import check_exit
from mcp_servers.execution.walks import Walk, known
from trading.domain.approvals import Approval
from trading.domain.errors import GateRefused, LedgerUnavailable, NonRetryable, Retryable
from trading.domain.events import OrderNotSent, OrderSubmitted
from trading.domain.orders import Order
from trading.ports.clock import Clock
from trading.ports.venue import ExecutionVenue, VenueReport

log = logging.getLogger(__name__)


class Sending:
    """Sends claimed orders and applies what the venue answers.

    Args:
        facts: where the last check finds risk's pulse.
        answer_timeout_s: how long an answer is waited for before the order counts as UNKNOWN.
    """

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        venue: ExecutionVenue,
        facts: GateFacts,
        rules: GateRules,
        clock: Clock,
        metrics: Metrics,
        answer_timeout_s: float,
    ) -> None:
        self._lifecycle = lifecycle
        self._venue = venue
        self._facts = facts
        self._rules = rules
        self._clock = clock
        self._metrics = metrics
        self._answer_timeout_s = answer_timeout_s
        self._late: set[asyncio.Future[VenueReport]] = set()
        self._flushes: set[asyncio.Task[None]] = set()
        self._closed = False

    def close(self) -> None:
        """Send nothing more, and leave answers that are still out to the next reconciliation."""
        self._closed = True
        for answer in list(self._late):
            answer.cancel()

    def dispatch(self, walks: list[Walk]) -> list[tuple[Walk, Awaitable[VenueReport]]]:
        """Check for the last time and hand over to the transport, order by order.

        Not a coroutine: no heartbeat, trip or clock tick can be learned between a check and its send.
        """
        start = self._clock.monotonic_ns()
        if self._lifecycle.broken.is_set():
            raise LedgerUnavailable("the execution ledger failed; nothing was sent")
        answers: list[tuple[Walk, Awaitable[VenueReport]]] = []
        for walk in walks:
            order = known(walk.order)
            try:
                self._last_check(walk)
            except GateRefused as error:
                event = OrderNotSent(order_id=order.order_id, code=error.code)
                walk.order = self._lifecycle.record(event, about=order)
                self._metrics.count("not_sent")
                continue
            try:
                answer = self._venue.send(known(walk.prepared))
            except Exception as error:  # an adapter must not raise here; if it does, it may have sent
                log.exception("the venue adapter raised while sending")
                walk.order = self._lifecycle.lose(order, f"the adapter failed while sending: {type(error).__name__}")
                continue
            submitted = OrderSubmitted(order_id=order.order_id)
            walk.order = self._lifecycle.record(submitted, about=known(self._lifecycle.book.order(order.order_id)))
            answers.append((walk, answer))
        self._metrics.observe(Stage.SEND, self._clock.monotonic_ns() - start, orders=len(walks))
        return answers

    def _last_check(self, walk: Walk) -> None:
        moment = Moment(self._clock.now_ms(), self._clock.monotonic_ns())
        if walk.permit is not None:
            check_exit(walk.permit, known(walk.order).terms, self._facts, self._rules, moment, claimed=True)
        else:
            self._check_approval(known(walk.approval), moment)
        if self._closed:
            refuse(GateCode.STATE, "the server is stopping")

    def _check_approval(self, approval: Approval, moment: Moment) -> None:
        check_time(approval, self._facts.first_seen_ns(approval.approval_id), self._rules, moment)
        check_state(approval, self._facts.pulse, self._rules, moment)

    async def collect(self, answers: list[tuple[Walk, Awaitable[VenueReport]]]) -> None:
        """Apply the answers as they come; what has not answered in time is UNKNOWN."""
        start = self._clock.monotonic_ns()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._answer_timeout_s
        waiting = {asyncio.ensure_future(answer): known(walk.order) for walk, answer in answers}
        await asyncio.sleep(0)  # a venue in this process answers within one turn; then nothing has to be waited for
        done = {future for future in waiting if future.done()}
        while True:
            for future in done:
                self._answered(waiting.pop(future), future)
            if not waiting or (left := deadline - loop.time()) <= 0:
                break
            if done:  # what is known becomes durable while the others are waited for
                await self._lifecycle.flush()
            done, _ = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for future, order in waiting.items():
            self._lose(order, "the venue did not answer in time")
            self._await_late(order, future)
        self._metrics.observe(Stage.ANSWER, self._clock.monotonic_ns() - start, orders=len(answers))

    def _answered(self, order: Order, answer: asyncio.Future[VenueReport]) -> None:
        try:
            report = answer.result()
        except (NonRetryable, Retryable) as error:
            self._lifecycle.reject(self._now(order), f"{error.code}: {error}")
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - anything else may have been executed
            self._lose(order, f"{getattr(error, 'code', type(error).__name__)}: no definite answer")
        else:
            if report.client_order_id == order.terms.client_order_id:
                self._lifecycle.apply_report(report)
            else:
                self._lose(order, "the venue answered about another order")

    def _lose(self, order: Order, reason: str) -> None:
        self._metrics.count("outcome_unknown")
        self._lifecycle.lose(self._now(order), reason)

    def _now(self, order: Order) -> Order:
        return self._lifecycle.book.order(order.order_id) or order

    def _await_late(self, order: Order, answer: asyncio.Future[VenueReport]) -> None:
        """Keep an answer that may still come: it is evidence, and better than a query."""

        def arrived(late: asyncio.Future[VenueReport]) -> None:
            self._late.discard(late)
            if late.cancelled() or self._lifecycle.broken.is_set():
                return
            self._answered(order, late)
            flush = asyncio.create_task(self._lifecycle.flush())
            self._flushes.add(flush)
            flush.add_done_callback(self._flushes.discard)

        self._late.add(answer)
        answer.add_done_callback(arrived)
