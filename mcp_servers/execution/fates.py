"""What becomes of approvals that never turn into an order: they lapse by this room's clock, or they are voided.

Rules kept here:

- Execution alone writes a fate, once: the primary key of ``approval_fates`` decides which.
- An approval lapses when *our* clock has passed its expiry, also when no courier ever brought it: risk holds its
  reservation until it reads that here.
- The ledger of risk is only a list of candidates. A wrong entry can end an approval early; it can never send one.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from mcp_servers.execution.rows import fate_row
from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.approvals import Approval, Epoch, Fate
from trading.domain.errors import AlreadyClaimed, InvalidValue, SignatureRefused
from trading.domain.events import ApprovalEnded, EventEnvelope, EventMetadata, RiskApproved
from trading.domain.identifiers import AccountId, ApprovalId
from trading.domain.proposals import Mode
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Insert, Ledger, LedgerReader, Row, Unit

#: States of risk's ``approvals`` rows that matter here.
OPEN = "open"
RELEASE_REQUESTED = "release_requested"

_BATCH = 256


@dataclass(frozen=True, slots=True)
class OpenApproval:
    """An approval without a fate, as risk's ledger tells of it.

    Attributes:
        first_seen_ns: monotonic time at which this process first heard of it.
    """

    epoch: Epoch
    expires_ms: int
    first_seen_ns: int


class Fates:
    """Follows risk's ledger and ends what nobody used.

    Args:
        under_way: approvals that a submit is handling right now; it ends them itself, one way or the other.
        kept: how many written fates stay in memory; the ledger's primary key decides beyond that.
    """

    def __init__(
        self,
        account_id: AccountId,
        mode: Mode,
        *,
        ledger: Ledger,
        approvals: LedgerReader,
        clock: Clock,
        under_way: Callable[[], frozenset[ApprovalId]] = frozenset,
        kept: int = 10_000,
    ) -> None:
        self._account_id = account_id
        self._mode = mode
        self._ledger = ledger
        self._approvals = approvals
        self._clock = clock
        self._under_way = under_way
        self._kept = kept
        self._open: dict[ApprovalId, OpenApproval] = {}
        self._due: list[tuple[int, ApprovalId]] = []
        self._written: OrderedDict[ApprovalId, Fate] = OrderedDict()
        self.counts = dict.fromkeys(Fate, 0)

    def fate(self, approval_id: ApprovalId) -> Fate | None:
        """Return the written fate as far as memory knows."""
        return self._written.get(approval_id)

    def is_open(self, approval_id: ApprovalId) -> bool:
        """Return whether the approval is known to have no fate: this room writes them all and has read them all."""
        return approval_id in self._open

    def first_seen_ns(self, approval_id: ApprovalId) -> int | None:
        """Return the monotonic time at which this process first heard of an open approval."""
        known = self._open.get(approval_id)
        return None if known is None else known.first_seen_ns

    @property
    def open_ids(self) -> list[ApprovalId]:
        """Approvals without a fate."""
        return list(self._open)

    @property
    def open_count(self) -> int:
        """How many approvals have no fate yet."""
        return len(self._open)

    def saw(self, approval: Approval) -> None:
        """Remember an approval, from risk's ledger or from a courier."""
        approval_id = approval.approval_id
        if approval_id in self._open or approval_id in self._written:
            return
        if approval.order.account_id != self._account_id or approval.mode is not self._mode:
            return
        self._open[approval_id] = OpenApproval(approval.epoch, approval.expires_ms, self._clock.monotonic_ns())
        heapq.heappush(self._due, (approval.expires_ms, approval_id))

    def wrote(self, approval_id: ApprovalId, fate: Fate) -> None:
        """Note that the fate is durable."""
        self._open.pop(approval_id, None)
        if approval_id not in self._written:
            self.counts[fate] += 1
        self._written[approval_id] = fate
        while len(self._written) > self._kept:
            self._written.popitem(last=False)

    def follow(self, envelope: EventEnvelope) -> None:
        """Take one event of risk's ledger."""
        if isinstance(envelope.payload, RiskApproved):
            self.saw(envelope.payload.approval)

    async def load(self) -> int:
        """Read the approvals that are still open and return the sequence of risk's ledger to follow on from."""
        seq = await self._approvals.last_seq()
        for row in await self._approvals.rows("approvals", {"state": [OPEN, RELEASE_REQUESTED]}):
            approval = _peek(row)
            if approval is not None:
                self.saw(approval)
        await self._forget_ended(list(self._open))
        return seq

    async def _forget_ended(self, ids: Sequence[ApprovalId]) -> None:
        for start in range(0, len(ids), _BATCH):
            batch = list(ids[start : start + _BATCH])
            for row in await self._ledger.rows("approval_fates", {"approval_id": batch}):
                self.wrote(ApprovalId(cast("str", row["approval_id"])), Fate(cast("str", row["fate"])))

    async def lapse_due(self) -> int:
        """Write ``lapsed`` for every open approval whose expiry our clock has passed; return how many."""
        now_ms, busy = self._clock.now_ms(), self._under_way()
        due: list[ApprovalId] = []
        try:
            while self._due and self._due[0][0] <= now_ms:
                due.append(heapq.heappop(self._due)[1])
            late = [each for each in due if each in self._open and each not in busy]
            return await self._end(late, Fate.LAPSED, "EXPIRED")
        finally:
            for approval_id in due:  # still open, because it is under way or the ledger failed: the next round ends it
                if (known := self._open.get(approval_id)) is not None:
                    heapq.heappush(self._due, (known.expires_ms, approval_id))

    def has_before(self, epoch: Epoch) -> bool:
        """Return whether an approval of an earlier epoch is still open."""
        return any(known.epoch < epoch for known in self._open.values())

    async def void_before(self, epoch: Epoch) -> int:
        """Write ``voided`` for every open approval of an earlier epoch: the gate would never let it pass again."""
        busy = self._under_way()
        dead = [each for each, known in self._open.items() if known.epoch < epoch and each not in busy]
        return await self._end(dead, Fate.VOIDED, "EPOCH")

    async def void_requested(self) -> int:
        """Write ``voided`` for the approvals that risk was asked to release; return how many."""
        rows = await self._approvals.rows("approvals", {"state": RELEASE_REQUESTED}, limit=_BATCH)
        return await self.void([ApprovalId(cast("str", row["approval_id"])) for row in rows], "RELEASED")

    async def void(self, approval_ids: Iterable[ApprovalId], reason: str) -> int:
        """Write ``voided`` for these approvals where no fate is written yet; return how many."""
        busy = self._under_way()
        free = [each for each in approval_ids if each not in self._written and each not in busy]
        return await self._end(free, Fate.VOIDED, reason)

    async def _end(self, ids: Sequence[ApprovalId], fate: Fate, reason: str) -> int:
        ended = 0
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            ended += sum(await asyncio.gather(*(self._claim(each, fate, reason) for each in batch)))
        return ended

    async def _claim(self, approval_id: ApprovalId, fate: Fate, reason: str) -> bool:
        event = ApprovalEnded(approval_id=approval_id, fate=fate, reason=reason)
        unit = Unit(
            events=(EventDraft(event, EventMetadata(correlation_id=approval_id)),),
            claims=(Insert("approval_fates", fate_row(approval_id, fate.value, None, self._clock.now_ms())),),
        )
        try:
            await self._ledger.commit(unit)
        except AlreadyClaimed as error:  # somebody was first, usually the order itself
            self.wrote(approval_id, Fate(cast("str", error.existing["fate"])))
            return False
        self.wrote(approval_id, fate)
        return True


def _peek(row: Row) -> Approval | None:
    """Return the approval in risk's row, unverified: good enough to know when to end it, never to send it."""
    try:
        envelope = Envelope.from_json(cast("str", row["envelope"]))
        return codec.decode(Approval, envelope.payload)
    except (SignatureRefused, InvalidValue):
        return None
