"""The walk of an approved decision: route, then risk, then execution, then the record of what came of it.

Rules kept here:

- Two calls after a decision and no call-backs; the courier carries ids, never signed bytes.
- The request id is the decision id, and approvals are submitted by their ids: asking again changes nothing, so every
  timeout and every restart is answered by asking again with the same ids.
- The planned orders are written down before risk is first asked, because the same request must have the same content.
- A decision that was never brought to risk before it expired ends as expired; one that may have been is asked after.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from coordinator.admission import Signed
from coordinator.journal import DecisionRecord, Journal
from coordinator.rooms import Room
from mcp_servers.hosting import ToolFailure
from trading.domain.errors import OutcomeUnknown, TradingError, Unavailable
from trading.domain.identifiers import ApprovalId, OrderId
from trading.domain.money import parse_decimal, plain
from trading.domain.proposals import TradeProposal

_log = logging.getLogger(__name__)

_BACKOFF_S: Final = (0.02, 0.05, 0.1, 0.25, 0.5)
#: What a planned order may say to risk; anything else in the answer is for people.
_ORDER_FIELDS: Final = (
    "symbol",
    "side",
    "type",
    "amount",
    "unit",
    "limit_price",
    "stop_price",
    "time_in_force",
    "post_only",
    "reduce_only",
    "venue",
    "account",
    "agent_id",
    "reason",
)
#: States of an order that is at the venue or may be.
_ALIVE: Final = frozenset(
    {"initialized", "submitted", "unknown", "accepted", "triggered", "pending_update", "pending_cancel"}
    | {"partially_filled", "filled"}
)
#: Refusals before anything was claimed that a moment can change, as after a restart of risk, market or execution.
_PASSING: Final = frozenset(
    {
        "GATE_NO_HEARTBEAT",
        "GATE_HEARTBEAT_STALE",
        "GATE_UNRECONCILED",
        "GATE_PRICE_STALE",
        "GATE_NOT_FOUND",
        "LEDGER_UNAVAILABLE",
        "UNAVAILABLE",
    }
)
_PASSING_PAUSE_S: Final = 0.1
_DETAIL_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSettings:
    """Bounds of the walk.

    Attributes:
        workers: decisions under way at once.
        call_timeout_s: how long one call may take before it is asked again.
        give_up_ms: how long after a decision's expiry an answer is still asked for.
    """

    workers: int = 8
    call_timeout_s: float = 2.0
    give_up_ms: int = 30_000


class _GaveUp(TradingError):
    """No definite answer came within the time; what was asked may have been done and will lapse by itself."""

    code = "GAVE_UP"


class Pipeline:
    """Takes approved decisions as far as they go.

    Args:
        journal: the coordinator's ledger.
        risk: where approvals come from.
        execution: where routes and orders come from.
        now_ms: wall time, comparable with the decisions' expiry.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        risk: Room,
        execution: Room,
        settings: PipelineSettings,
        now_ms: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._risk = risk
        self._execution = execution
        self._settings = settings
        self._now_ms = now_ms
        self._queue: asyncio.Queue[tuple[DecisionRecord, Signed[TradeProposal]]] = asyncio.Queue()
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts: Counter[str] = Counter()

    @property
    def backlog(self) -> int:
        """Decisions that are waiting or under way."""
        return self._queue.qsize() + self._under_way

    def take(self, record: DecisionRecord, proposal: Signed[TradeProposal]) -> None:
        """Take over an approved decision that is durable; the number is bounded by whoever admits proposals."""
        self._idle.clear()
        self._queue.put_nowait((record, proposal))

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._settings.workers):
                group.create_task(self._work(), name=f"pipeline-{number}")

    async def drained(self) -> None:
        """Return when nothing is waiting or under way."""
        await self._idle.wait()

    async def _work(self) -> None:
        while True:
            record, proposal = await self._queue.get()
            self._under_way += 1
            try:
                await self._walk(record, proposal)
            finally:
                self._under_way -= 1
                if not self.backlog:
                    self._idle.set()

    async def _walk(self, record: DecisionRecord, proposal: Signed[TradeProposal]) -> None:
        try:
            if record.state == "decided":
                record = await self._plan(record, proposal)
            if record.state == "approving":
                record = await self._approve(record, proposal)
            if record.state == "executing":
                await self._execute(record, proposal)
        except ToolFailure as failure:
            expired = "EXPIRED" in failure.code
            await self._complete(record, proposal, "expired" if expired else "failed", failure.code)
        except _GaveUp as error:
            _log.warning("decision %s: %s", record.decision_id, error)
            await self._complete(record, proposal, "failed", error.code)

    async def _plan(self, record: DecisionRecord, proposal: Signed[TradeProposal]) -> DecisionRecord:
        """Ask execution where the order goes, and write the answer down."""
        expires_ms = proposal.value.expires_ms
        if self._now_ms() >= expires_ms:
            return await self._complete(record, proposal, "expired", "NOT_BROUGHT_TO_RISK")
        try:
            answer = await self._ask(
                self._execution, "execution_plan_route", expires_ms, **order_arguments(proposal.value)
            )
        except _GaveUp:
            return await self._complete(record, proposal, "expired", "EXECUTION_UNREACHABLE")
        children = cast("list[dict[str, Any]]", answer.get("orders", []))
        if not children:
            return await self._complete(record, proposal, "failed", "NO_ROUTE")
        orders = [_child(child, proposal.value) for child in children]
        return await self._journal.progressed(record, "approving", orjson.dumps({"orders": orders}).decode())

    async def _approve(self, record: DecisionRecord, proposal: Signed[TradeProposal]) -> DecisionRecord:
        """Ask risk; the same decision is one request for ever."""
        orders = cast("list[dict[str, Any]]", orjson.loads(record.detail)["orders"])
        answer = await self._ask(
            self._risk,
            "risk_request_approval",
            proposal.value.expires_ms + self._settings.give_up_ms,
            request_id=record.decision_id,
            decision_id=record.decision_id,
            orders=orders,
        )
        approvals = [str(each) for each in cast("list[object]", answer.get("approval_ids") or [])]
        if not approvals:
            return await self._complete(record, proposal, *_why_not(answer))
        return await self._journal.progressed(record, "executing", orjson.dumps({"approvals": approvals}).decode())

    async def _execute(self, record: DecisionRecord, proposal: Signed[TradeProposal]) -> None:
        """Bring the approvals to execution, which uses each of them once."""
        approvals = cast("list[str]", orjson.loads(record.detail)["approvals"])
        answer = await self._submit(approvals, proposal.value.expires_ms)
        result, detail = _outcome(answer)
        order_ids = [OrderId(str(row["order_id"])) for row in _rows(answer, "orders")]
        await self._complete(record, proposal, result, detail, approvals=approvals, order_ids=order_ids)

    async def _submit(self, approvals: list[str], expires_ms: int) -> dict[str, Any]:
        """Submit until execution has decided: a refusal that a moment can change is asked again while there is time."""
        while True:
            answer = await self._ask(
                self._execution,
                "execution_submit_orders",
                expires_ms + self._settings.give_up_ms,
                approval_ids=approvals,
            )
            codes = {str(row.get("code")) for row in _rows(answer, "failures")}
            if not codes & _PASSING or self._now_ms() >= expires_ms:
                return answer
            self.counts["submitted_again"] += 1
            await asyncio.sleep(_PASSING_PAUSE_S)

    async def _complete(
        self,
        record: DecisionRecord,
        proposal: Signed[TradeProposal],
        result: str,
        detail: str,
        *,
        approvals: list[str] | None = None,
        order_ids: list[OrderId] | None = None,
    ) -> DecisionRecord:
        if approvals is None and record.state == "executing":
            approvals = cast("list[str]", orjson.loads(record.detail)["approvals"])
        self.counts[result] += 1
        return await self._journal.completed(
            record,
            proposal,
            result=result,
            detail=detail,
            approval_ids=[ApprovalId(approval) for approval in approvals or []],
            order_ids=order_ids or [],
        )

    async def _ask(self, room: Room, tool: str, until_ms: int, **arguments: Any) -> dict[str, Any]:
        """Ask until there is a definite answer or the time is over.

        Raises:
            ToolFailure: a refusal that asking again cannot change.
            _GaveUp: no definite answer in time.
        """
        attempt = 0
        while True:
            pause_s = _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]
            try:
                return await room.call(tool, timeout_s=self._settings.call_timeout_s, **arguments)
            except ToolFailure as failure:
                if failure.retryable == "no":
                    raise
                last: TradingError = failure
                pause_s = max(pause_s, (failure.after_ms or 0) / 1_000)
            except (OutcomeUnknown, Unavailable) as error:
                last = error
            attempt += 1
            self.counts["asked_again"] += 1
            if self._now_ms() + int(pause_s * 1_000) >= until_ms:
                raise _GaveUp(f"{tool} gave no answer: {last.code}", code=f"GAVE_UP_{last.code}"[:64]) from last
            await asyncio.sleep(pause_s)


def order_arguments(proposal: TradeProposal) -> dict[str, Any]:
    """Return the proposal's order in the words of the tools; amounts are decimal strings in base."""
    order = proposal.order
    return {
        "symbol": order.symbol,
        "side": order.side.value,
        "type": order.order_type.value,
        "amount": plain(order.quantity),
        "unit": "base",
        "limit_price": plain(order.limit_price) if order.limit_price is not None else None,
        "stop_price": plain(order.stop_price) if order.stop_price is not None else None,
        "time_in_force": order.time_in_force.value,
        "post_only": order.post_only,
        "reduce_only": order.reduce_only,
        "venue": order.venue,
        "account": order.account_id,
        "agent_id": proposal.agent_id,
        "reason": proposal.reason,
    }


def _child(child: dict[str, Any], proposal: TradeProposal) -> dict[str, Any]:
    """Return a planned order as risk is asked for it: the proposal's words, with what the route decided."""
    merged = {**order_arguments(proposal), **{k: v for k, v in child.items() if k in _ORDER_FIELDS and v is not None}}
    return {name: value for name, value in merged.items() if value is not None}


def _why_not(answer: dict[str, Any]) -> tuple[str, str]:
    """Return result and detail of an answer without approvals: every failed rule by name."""
    if answer.get("pending_human"):
        return "failed", "PENDING_HUMAN"
    failures = [failure for denial in _rows(answer, "denials") for failure in _rows(denial, "failures")]
    if any("DECISION_EXPIRED" in str(failure.get("message", "")) for failure in failures):
        return "expired", "DECISION_EXPIRED"
    rules = dict.fromkeys(str(failure.get("rule", "")) for failure in failures)
    return "denied", ",".join(rules)[:_DETAIL_MAX] or "DENIED"


def _outcome(answer: dict[str, Any]) -> tuple[str, str]:
    """Return result and detail of a submission: executed if anything was traded, may still be, or may have been."""
    orders = _rows(answer, "orders")
    if any(row.get("state") in _ALIVE or parse_decimal(str(row.get("filled", "0"))) > 0 for row in orders):
        return "executed", ""
    codes = [str(row.get("code", "")) for row in _rows(answer, "failures")] + [str(row["state"]) for row in orders]
    detail = ",".join(dict.fromkeys(code for code in codes if code))[:_DETAIL_MAX] or "NOTHING_SENT"
    return ("expired" if any(word in detail for word in ("EXPIRED", "FATE_WRITTEN", "TTL")) else "failed"), detail


def _rows(answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", answer.get(name) or [])
