"""What the coordinator's tools ask: the state of the meeting, its members and proposals; and how outsiders speak."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final, TypeVar, cast

from coordinator.daemon import Daemon, DaemonParts
from coordinator.journal import Journal
from coordinator.round_state import Verdict
from coordinator.schemas import (
    AgentList,
    AgentRow,
    CoordinatorStatus,
    OrderRow,
    ProposalDetail,
    ProposalRow,
    RoomRow,
    TallyRow,
    VoteRow,
)
from mcp_servers.envelope import timestamp
from trading.adapters import codec
from trading.adapters.signing import Envelope
from trading.domain.errors import InvalidValue, SignatureRefused, Unavailable
from trading.domain.events import ProposalOpened
from trading.domain.identifiers import AccountId, ProposalId
from trading.domain.money import ZERO, divide, multiply, quantize_nearest
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Decision, RosterMember, Tally, Vote
from trading.ports.ledger import Row

#: How far back in the ledger a list of proposals looks, in events.
LIST_WINDOW: Final = 4_000
T = TypeVar("T")

_ACCEPTED: Final = frozenset({"OPENED", "COUNTED", "DUPLICATE"})


@dataclass(frozen=True, slots=True)
class CoordinatorService:
    """The room's one object; the daemon beside it does the work."""

    daemon: Daemon
    account_id: AccountId

    def status(self) -> CoordinatorStatus:
        """Return the state of the meeting, and why it cannot trade if it cannot."""
        daemon, parts = self.daemon, self.daemon.parts
        reasons = daemon.unsafe_reasons()
        return CoordinatorStatus(
            state=daemon.state,
            safe_to_trade=not reasons,
            reasons=reasons,
            account=self.account_id,
            leader=parts is not None and parts.leadership.is_leader,
            fence=parts.leadership.fence if parts else 0,
            roster_version=parts.registry.version if parts else 0,
            open_rounds=len(parts.rounds.open_rounds) if parts else 0,
            decisions_under_way=parts.pipeline.backlog if parts else 0,
            account_age_ms=daemon.account_age_ms,
            rooms=[RoomRow(room=link.name, connected=link.is_connected) for link in daemon.links],
            counts=dict(sorted((parts.rounds.counts + parts.pipeline.counts).items())) if parts else {},
        )

    def agents(self) -> AgentList:
        """Return the present roster.

        Raises:
            Unavailable: the meeting has not started yet.
        """
        registry = self._running().registry
        roster = registry.roster()
        hosted = self.daemon.hosted
        return AgentList(
            roster_version=roster.version,
            agents=[
                AgentRow(
                    agent_id=member.agent_id,
                    role=member.role.value,
                    family=member.family,
                    key_id=member.key_id,
                    hosted=member.agent_id in hosted,
                )
                for member in roster.members
            ],
        )

    async def proposal(self, proposal_id: str) -> ProposalDetail:
        """Return everything about one proposal.

        Raises:
            InvalidValue: UNKNOWN_PROPOSAL.
            Unavailable: the meeting has not started yet.
        """
        journal = self._running().journal
        row = await journal.proposal(ProposalId(proposal_id))
        if row is None:
            raise InvalidValue(
                "there is no proposal with this id",
                code="UNKNOWN_PROPOSAL",
                suggestion="list them with coordinator_list_proposals",
            )
        return await _detail(journal, row)

    async def proposals(self, *, limit: int, before: str | None = None, state: str | None = None) -> list[ProposalRow]:
        """Return the newest proposals first, at most ``limit + 1`` so that a reader sees whether there are more.

        Args:
            limit: >= 1.
            before: a proposal id; only older ones are given.
            state: only proposals in this state.
        """
        ledger = self._running().journal.ledger
        last = await ledger.last_seq()
        events = await ledger.events_after(max(0, last - LIST_WINDOW), limit=LIST_WINDOW)
        opened = [e.payload.proposal_id for e in reversed(events) if isinstance(e.payload, ProposalOpened)]
        if before is not None:
            opened = opened[opened.index(ProposalId(before)) + 1 :] if ProposalId(before) in opened else []
        where: dict[str, object] = {"proposal_id": list(opened)}
        if state is not None:
            where["state"] = state
        rows = {str(row["proposal_id"]): row for row in await ledger.rows("proposals", where)} if opened else {}
        return [_brief(rows[each]) for each in opened if each in rows][: limit + 1]

    async def submit(self, envelope: str) -> Verdict:
        """Put an outside agent's signed proposal to the vote.

        Raises:
            InvalidValue: refused; ``code`` says why.
            Unavailable: the meeting has not started yet.
        """
        parts = self._running()
        return _accepted(await parts.rounds.submit(self._speaker(envelope).agent_id, envelope))

    async def cast(self, envelope: str) -> Verdict:
        """Cast an outside agent's signed vote; raises as ``submit`` does."""
        parts = self._running()
        return _accepted((await parts.rounds.cast([(self._speaker(envelope).agent_id, envelope)]))[0])

    def _running(self) -> DaemonParts:
        parts = self.daemon.parts
        if parts is None:
            raise Unavailable(f"the meeting is {self.daemon.state}", suggestion="ask coordinator_get_status")
        return parts

    def _speaker(self, envelope: str) -> RosterMember:
        """Return the member whose key the envelope names; whether it really signed is checked by the round."""
        try:
            key_id = Envelope.from_json(envelope).key_id
        except SignatureRefused as error:
            raise InvalidValue("this is not a DSSE envelope in its one spelling", code="ENVELOPE_MALFORMED") from error
        for member in self._running().registry.roster().members:
            if member.key_id == key_id:
                if member.agent_id in self.daemon.hosted:
                    break  # hosted agents speak through their inbox alone
                return member
        raise InvalidValue("no outside agent is registered with this key", code="UNREGISTERED")


def _accepted(verdict: Verdict) -> Verdict:
    if verdict.code not in _ACCEPTED:
        raise InvalidValue("it was refused and the refusal was recorded", code=verdict.code)
    return verdict


async def _detail(journal: Journal, row: Row) -> ProposalDetail:
    proposal = _payload(row, TradeProposal)
    decision = await journal.decision_on(proposal.proposal_id)
    votes = [(vote, _payload(vote, Vote)) for vote in await journal.votes_on(proposal.proposal_id)]
    order = proposal.order
    return ProposalDetail(
        proposal_id=proposal.proposal_id,
        agent_id=proposal.agent_id,
        state=str(row["state"]),
        trade_class=proposal.trade_class.value,
        order=OrderRow(
            venue=order.venue,
            symbol=order.symbol,
            side=order.side.value,
            type=order.order_type.value,
            quantity=order.quantity,
            limit_price=order.limit_price,
            stop_price=order.stop_price,
            time_in_force=order.time_in_force.value,
            reduce_only=order.reduce_only,
        ),
        reason=proposal.reason,
        created=timestamp(proposal.created_ms),
        deadline=timestamp(proposal.deadline_ms),
        expires=timestamp(proposal.expires_ms),
        digest=str(row["digest"]),
        roster_version=proposal.roster_version,
        votes=[
            VoteRow(
                agent_id=vote.agent_id,
                choice=vote.choice.value,
                reason=vote.reason,
                stance_age_ms=vote.stance_age_ms,
                received=timestamp(cast("int", stored["received_ms"])),
            )
            for stored, vote in votes
        ],
        tally=None if decision is None else _tally(codec.decode(Decision, _bytes(decision.envelope)).tally),
        decision_id=None if decision is None else decision.decision_id,
        progress=None if decision is None else (decision.detail if decision.state == "done" else decision.state),
    )


def _brief(row: Row) -> ProposalRow:
    proposal = _payload(row, TradeProposal)
    return ProposalRow(
        proposal_id=proposal.proposal_id,
        agent_id=proposal.agent_id,
        state=str(row["state"]),
        symbol=proposal.order.symbol,
        side=proposal.order.side.value,
        quantity=proposal.order.quantity,
        created=timestamp(proposal.created_ms),
        decision_id=cast("str | None", row["decision_id"]),
    )


def _tally(count: Tally) -> TallyRow:
    return TallyRow(
        outcome=count.outcome.value,
        yes=count.yes,
        no=count.no,
        abstain=count.abstain,
        missing=count.missing,
        eligible=count.eligible,
        share_of_cast=_percent(count.yes, count.yes + count.no),
        share_of_eligible=_percent(count.yes, count.eligible - count.abstain),
        unmet=list(count.reasons),
    )


def _percent(part: int, whole: int) -> Decimal:
    return quantize_nearest(divide(multiply(Decimal(part), Decimal(100)), Decimal(whole)), 1) if whole else ZERO


def _payload(row: Row, kind: type[T]) -> T:
    """Return the signed value of a row of our own ledger; it was verified before it was written."""
    return codec.decode(kind, _bytes(str(row["envelope"])))


def _bytes(envelope: str) -> bytes:
    return Envelope.from_json(envelope).payload
