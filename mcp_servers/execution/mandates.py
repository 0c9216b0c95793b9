"""Approvals that the operator gave: no model is waiting to bring them, so this room takes them to the venue itself.

Rules kept here:

- They go the way of every approval: the same gate, the same claim. A fate that is written decides, over restarts too.
- A refusal that a moment can change (no heartbeat yet, an old price) is asked again until the approval has expired.
- What could not be sent is an alarm: somebody believes that it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

from mcp_servers.execution.fates import Fates
from mcp_servers.execution.gate import GateCode
from mcp_servers.execution.walks import Outcome, Refusal
from trading.domain.events import EventEnvelope, HumanAnswered
from trading.domain.identifiers import ApprovalId
from trading.ports.ledger import LedgerReader

log = logging.getLogger(__name__)

RETRY_S: Final = 0.1
_BATCH: Final = 256
#: Refusals that say nothing about the order.
_PASSING: Final = frozenset(
    {
        GateCode.NO_HEARTBEAT,
        GateCode.HEARTBEAT_STALE,
        GateCode.EPOCH,  # risk has just started or was resumed, and its heartbeat is on its way
        GateCode.FROM_FUTURE,
        GateCode.UNRECONCILED,
        GateCode.PRICE_STALE,
        GateCode.PRICE_BAND,
    }
)


class Mandates:
    """Submits what the operator approved.

    Args:
        approvals: risk's ledger.
        fates: says which approvals are still open.
        submit: the walk of every approval.
        alarm: writes down the code, the message and the approval when one could not be sent.
    """

    def __init__(
        self,
        *,
        approvals: LedgerReader,
        fates: Fates,
        submit: Callable[[Sequence[ApprovalId]], Awaitable[list[Outcome]]],
        alarm: Callable[[str, str, str], Awaitable[None]],
    ) -> None:
        self._approvals = approvals
        self._fates = fates
        self._submit = submit
        self._alarm = alarm
        self._waiting: dict[ApprovalId, str] = {}
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> frozenset[ApprovalId]:
        """Approvals that are to be submitted."""
        return frozenset(self._waiting)

    def follow(self, envelope: EventEnvelope) -> None:
        """Take one event of risk's ledger; the approval's own event comes before it."""
        event = envelope.payload
        if isinstance(event, HumanAnswered) and event.approval_id is not None:
            self._take(event.approval_id)

    async def load(self) -> None:
        """Find the approvals of the operator among those that are open; after ``Fates.load``."""
        ids = self._fates.open_ids
        for start in range(0, len(ids), _BATCH):
            for row in await self._approvals.rows("pending", {"approval_id": ids[start : start + _BATCH]}):
                self._take(ApprovalId(cast("str", row["approval_id"])))

    async def step(self) -> None:
        """Submit what waits; keep what a moment may still let through."""
        open_now = [each for each in self._waiting if self._fates.is_open(each)]
        self._waiting = {each: self._waiting[each] for each in open_now}
        for outcome in await self._submit(open_now[:_BATCH]) if open_now else []:
            if isinstance(outcome, Refusal) and outcome.code in _PASSING:
                self._waiting[outcome.approval_id] = outcome.code
                continue
            self._waiting.pop(outcome.approval_id, None)
            if isinstance(outcome, Refusal):
                await self._not_sent(outcome.approval_id, outcome.code)

    async def run(self) -> None:
        """Submit until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self.step()
            if self._waiting:
                await asyncio.sleep(RETRY_S)
                self._arrived.set()

    def _take(self, approval_id: ApprovalId) -> None:
        if self._fates.is_open(approval_id):
            self._waiting.setdefault(approval_id, "")
            self._arrived.set()

    async def _not_sent(self, approval_id: ApprovalId, code: str) -> None:
        log.error("what the operator approved was not sent: %s", code)
        await self._alarm("MANDATE_NOT_SENT", f"the operator's approval was not sent: {code}", approval_id)
