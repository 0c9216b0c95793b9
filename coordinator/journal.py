"""What the coordinator writes to and reads from its ledger: proposals, votes, decisions and how far they have come.

Every fact is one unit with a claim on its key, so that writing it again after a crash or a lost answer is refused by
the ledger instead of doubled. When the database does not answer, the journal asks again until it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, cast

from coordinator.admission import Signed
from trading.domain.errors import AlreadyClaimed, LedgerUnavailable
from trading.domain.events import (
    DecisionCompleted,
    DomainEvent,
    EventMetadata,
    ProposalDecided,
    ProposalOpened,
    ProposalRefused,
    VoteCast,
    VoteRefused,
)
from trading.domain.identifiers import AgentId, ApprovalId, DecisionId, OrderId, ProposalId
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Decision, Outcome, Vote
from trading.ports.clock import Clock
from trading.ports.ledger import EventDraft, Insert, Ledger, Row, Unit, Upsert

_log = logging.getLogger(__name__)

_RETRY_S: Final = (0.02, 0.1, 0.5, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """A decision and how far it has come.

    Attributes:
        state: decided, approving (orders planned), executing (approvals known) or done.
        detail: JSON of what the state needs to go on; with done, the result.
    """

    decision_id: DecisionId
    proposal_id: ProposalId
    outcome: Outcome
    envelope: str
    state: str
    detail: str

    @classmethod
    def of(cls, row: Row) -> DecisionRecord:
        """Return a row of the ``decisions`` table."""
        return cls(
            decision_id=DecisionId(str(row["decision_id"])),
            proposal_id=ProposalId(str(row["proposal_id"])),
            outcome=Outcome(str(row["outcome"])),
            envelope=str(row["envelope"]),
            state=str(row["state"]),
            detail=str(row["detail"]),
        )


class Journal:
    """Writes the coordinator's facts.

    Args:
        ledger: the coordinator's.
        clock: stamps ``updated_ms``.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.ledger = ledger
        self._clock = clock

    async def opened(self, proposal: Signed[TradeProposal], *, fence: int) -> None:
        """Record that a verified proposal goes to the vote.

        Raises:
            AlreadyClaimed: the id was used before; ``existing`` has the digest.
            LeaseLost: another process writes this ledger now.
        """
        value = proposal.value
        event = ProposalOpened(
            proposal_id=value.proposal_id,
            agent_id=value.agent_id,
            envelope=proposal.envelope,
            digest=proposal.digest,
            roster_version=value.roster_version,
            deadline_ms=value.deadline_ms,
            fence=fence,
        )
        row = self._proposal_row(proposal, "open", None)
        await self._commit(value.proposal_id, event, claims=(Insert("proposals", row),))

    async def proposal_refused(self, proposal_id: ProposalId, agent_id: AgentId, reason: str) -> None:
        """Record that a proposal was not put to the vote."""
        await self._commit(proposal_id, ProposalRefused(proposal_id=proposal_id, agent_id=agent_id, reason=reason))

    async def vote_cast(self, vote: Signed[Vote], *, received_ms: int) -> None:
        """Record a counted vote.

        Raises:
            AlreadyClaimed: this member's vote is recorded already.
        """
        value = vote.value
        event = VoteCast(
            proposal_id=value.proposal_id,
            agent_id=value.agent_id,
            choice=value.choice,
            reason=value.reason,
            envelope=vote.envelope,
            received_ms=received_ms,
        )
        row: Row = {
            "proposal_id": value.proposal_id,
            "agent_id": value.agent_id,
            "choice": value.choice.value,
            "envelope": vote.envelope,
            "received_ms": received_ms,
        }
        await self._commit(value.proposal_id, event, claims=(Insert("votes", row),))

    async def vote_refused(self, proposal_id: ProposalId, agent_id: AgentId, reason: str, received_ms: int) -> None:
        """Record a vote that was not counted."""
        await self._commit(
            proposal_id,
            VoteRefused(proposal_id=proposal_id, agent_id=agent_id, reason=reason, received_ms=received_ms),
        )

    async def decided(self, proposal: Signed[TradeProposal], decision: Signed[Decision]) -> DecisionRecord:
        """Record the one decision on a proposal and return the record that counts: this one, or an earlier one."""
        value = decision.value
        record = DecisionRecord(
            decision_id=value.decision_id,
            proposal_id=value.proposal_id,
            outcome=value.tally.outcome,
            envelope=decision.envelope,
            state="decided" if value.tally.approved else "done",
            detail="" if value.tally.approved else "rejected",
        )
        event = ProposalDecided(
            decision_id=value.decision_id,
            proposal_id=value.proposal_id,
            outcome=value.tally.outcome,
            tally=value.tally,
            envelope=decision.envelope,
        )
        state = self._proposal_row(proposal, value.tally.outcome.value, value.decision_id)
        try:
            await self._commit(
                value.proposal_id,
                event,
                claims=(Insert("decisions", self._decision_row(record)),),
                writes=(Upsert("proposals", state),),
            )
        except AlreadyClaimed:
            found = await self.decision_on(value.proposal_id)
            if found is None:
                raise
            return found
        return record

    async def progressed(self, record: DecisionRecord, state: str, detail: str) -> DecisionRecord:
        """Record how far a decision has come, before the next step is taken."""
        further = replace(record, state=state, detail=detail)
        await self._certainly(Unit(writes=(Upsert("decisions", self._decision_row(further)),)))
        return further

    async def completed(
        self,
        record: DecisionRecord,
        proposal: Signed[TradeProposal],
        *,
        result: str,
        detail: str,
        approval_ids: Sequence[ApprovalId] = (),
        order_ids: Sequence[OrderId] = (),
    ) -> DecisionRecord:
        """Record that a decision went as far as it goes, once, and return its last state.

        Args:
            record: as it was last.
            proposal: the proposal it decided.
            result: executed, denied, expired or failed.
            detail: a stable code that says more, or empty.
            approval_ids: what risk signed.
            order_ids: what execution made of it.
        """
        event = DecisionCompleted(
            decision_id=record.decision_id,
            proposal_id=record.proposal_id,
            result=result,
            detail=detail,
            approval_ids=tuple(approval_ids),
            order_ids=tuple(order_ids),
        )
        done = replace(record, state="done", detail=result if not detail else f"{result}: {detail}")
        unit = Unit(
            events=(self._draft(record.proposal_id, event),),
            writes=(
                Upsert("decisions", self._decision_row(done)),
                Upsert("proposals", self._proposal_row(proposal, result, record.decision_id)),
            ),
        )
        attempt = 0
        while True:
            try:
                await self.ledger.commit(unit)
            except LedgerUnavailable as error:
                await _pause(attempt, error)
                attempt += 1
                # The answer may be all that was lost; this unit has no claim, so look before writing again.
                now = await self.decision_on(record.proposal_id)
                if now is None or now.state != "done":
                    continue
            return done

    async def open_proposals(self) -> list[Row]:
        """Return the rows of proposals that are not decided."""
        return await self.ledger.rows("proposals", {"state": "open"})

    async def proposal(self, proposal_id: ProposalId) -> Row | None:
        """Return a proposal's row, None when there is none."""
        found = await self.ledger.rows("proposals", {"proposal_id": proposal_id})
        return found[0] if found else None

    async def votes_on(self, proposal_id: ProposalId) -> list[Row]:
        """Return the counted votes on a proposal."""
        return await self.ledger.rows("votes", {"proposal_id": proposal_id})

    async def decision_on(self, proposal_id: ProposalId) -> DecisionRecord | None:
        """Return the decision on a proposal, None while there is none."""
        found = await self.ledger.rows("decisions", {"proposal_id": proposal_id})
        return DecisionRecord.of(found[0]) if found else None

    async def unfinished(self) -> list[DecisionRecord]:
        """Return approved decisions that have not gone as far as they go."""
        rows = await self.ledger.rows("decisions", {"state": ["decided", "approving", "executing"]})
        return [DecisionRecord.of(row) for row in rows]

    async def _commit(
        self,
        proposal_id: ProposalId,
        event: DomainEvent,
        *,
        claims: tuple[Insert, ...] = (),
        writes: tuple[Insert | Upsert, ...] = (),
    ) -> None:
        await self._certainly(Unit(events=(self._draft(proposal_id, event),), claims=claims, writes=writes))

    async def _certainly(self, unit: Unit) -> None:
        """Commit, asking again while the database does not answer; a unit that got through is then a taken claim."""
        attempt = 0
        while True:
            try:
                await self.ledger.commit(unit)
                return
            except LedgerUnavailable as error:
                await _pause(attempt, error)
                attempt += 1
            except AlreadyClaimed as taken:
                if attempt and any(_is_same(claim.row, taken.existing) for claim in unit.claims):
                    return
                raise

    def _draft(self, proposal_id: ProposalId, event: DomainEvent) -> EventDraft:
        return EventDraft(event, EventMetadata(correlation_id=proposal_id))

    def _proposal_row(self, proposal: Signed[TradeProposal], state: str, decision_id: DecisionId | None) -> Row:
        value = proposal.value
        return {
            "proposal_id": value.proposal_id,
            "agent_id": value.agent_id,
            "state": state,
            "envelope": proposal.envelope,
            "digest": proposal.digest,
            "roster_version": value.roster_version,
            "deadline_ms": value.deadline_ms,
            "expires_ms": value.expires_ms,
            "decision_id": decision_id,
            "updated_ms": self._clock.now_ms(),
        }

    def _decision_row(self, record: DecisionRecord) -> Row:
        return {
            "decision_id": record.decision_id,
            "proposal_id": record.proposal_id,
            "outcome": record.outcome.value,
            "envelope": record.envelope,
            "state": record.state,
            "detail": record.detail,
            "updated_ms": self._clock.now_ms(),
        }


def _is_same(row: Row, existing: dict[str, object]) -> bool:
    return all(existing.get(name) == value for name, value in row.items())


async def _pause(attempt: int, error: LedgerUnavailable) -> None:
    if attempt == 0:
        _log.warning("the ledger does not answer, asking again: %s", error)
    await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])


def text_of(row: Row, name: str) -> str:
    """Return a text column of a row."""
    return str(row[name])


def int_of(row: Row, name: str) -> int:
    """Return an integer column of a row."""
    return cast("int", row[name])
