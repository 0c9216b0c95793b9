"""Rounds of voting: a proposal opens, votes come in, one decision goes out.

Rules kept here:

- A vote is verified before it can take a slot; what is refused is recorded with its reason, never counted.
- Ledger first: a proposal, every counted vote and the decision are durable before anybody acts on them.
- Redis decides order and deadline (its TIME, atomically, fenced); the ledger's unique proposal id makes the decision
  the only one. Both can be asked again at any point, so a round survives the loss of either or of this process.
- Only a leader closes a ballot; who loses the lock waits until it leads again, under a new token.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final, TypeVar

from redis.exceptions import RedisError

from coordinator.admission import Signed, objection_to, open_proposal, open_vote
from coordinator.ballots import Ballots, KnownVote
from coordinator.journal import DecisionRecord, Journal, int_of, text_of
from coordinator.leadership import Leadership
from coordinator.refusals import RefusalBudget
from coordinator.registry import Registry
from coordinator.round_state import Round, RoundSettings, Verdict
from trading.adapters import codec
from trading.adapters.signing import digest, seal
from trading.domain.approvals import DECISION_PAYLOAD_TYPE
from trading.domain.errors import AlreadyClaimed, InvalidValue, LeaseLost, SignatureRefused
from trading.domain.identifiers import AgentId, DecisionId, ProposalId
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Decision, Vote, tally
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Row
from trading.ports.signing import Signer

_log = logging.getLogger(__name__)
T = TypeVar("T")

_RETRY_S: Final = (0.02, 0.05, 0.2, 0.5)
_NO_ID: Final = ProposalId("")
#: Rounds and records under way at once before the inboxes wait.
_BACKGROUND_MAX: Final = 2_000


class Rounds:
    """Runs every open round.

    Args:
        journal: the coordinator's ledger.
        ballots: Redis.
        registry: who may vote.
        leadership: whether this process may decide.
        signer: the leader's key.
        settings: bounds.
        on_decided: gets each approved decision after it is durable.
        backlog: how many decisions are on their way; counts against ``open_max``.
    """

    def __init__(
        self,
        journal: Journal,
        ballots: Ballots,
        registry: Registry,
        leadership: Leadership,
        signer: Signer,
        settings: RoundSettings,
        *,
        clock: Clock,
        ids: IdFactory,
        on_decided: Callable[[DecisionRecord, Signed[TradeProposal]], None],
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        self._journal = journal
        self._ballots = ballots
        self._registry = registry
        self._leadership = leadership
        self._signer = signer
        self._settings = settings
        self._ids = ids
        self._on_decided = on_decided
        self._backlog = backlog
        self._open: dict[ProposalId, Round] = {}
        self._tasks: set[asyncio.Task[object]] = set()
        self._budget = RefusalBudget(clock)
        self._admitting = True
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.counts: Counter[str] = Counter()

    @property
    def open_rounds(self) -> tuple[Round, ...]:
        """The rounds that are not decided."""
        return tuple(self._open.values())

    # ---- what comes in

    async def submit(self, agent_id: AgentId, text: str) -> Verdict:
        """Verify a proposal from an agent's inbox and put it to the vote."""
        roster = self._registry.roster()
        member = roster.member(agent_id)
        if member is None:
            return await self._refuse_proposal(_NO_ID, agent_id, "UNREGISTERED")
        try:
            proposal = open_proposal(text, member)
        except SignatureRefused:
            return await self._refuse_proposal(_NO_ID, agent_id, "BAD_SIGNATURE")
        except InvalidValue as error:
            return await self._refuse_proposal(_NO_ID, agent_id, error.code)
        proposal_id = proposal.value.proposal_id
        if proposal_id in self._open:
            return await self._taken(proposal, self._open[proposal_id].proposal.digest)
        now_ms = await self._until_done(self._ballots.now_ms)
        if reason := objection_to(proposal.value, self._settings.rules, roster, now_ms):
            return await self._refuse_proposal(proposal_id, agent_id, reason)
        if not self._admitting:
            return await self._refuse_proposal(proposal_id, agent_id, "STOPPING")
        if len(self._open) + self._backlog() >= self._settings.open_max:
            return await self._refuse_proposal(proposal_id, agent_id, "BUSY")
        try:
            await self._journal.opened(proposal, fence=self._leadership.fence)
        except AlreadyClaimed as taken:
            return await self._taken(proposal, str(taken.existing.get("digest")))
        self.counts["proposals"] += 1
        self._start(Round(proposal, roster))
        return Verdict("OPENED", proposal_id)

    async def cast(self, ballots: Sequence[tuple[AgentId, str]]) -> list[Verdict]:
        """Verify votes, let Redis order them, and record them; one verdict for each, in order."""
        return list(await asyncio.gather(*await self._order(ballots)))

    async def take(self, batch: Sequence[tuple[AgentId, str, str]]) -> None:
        """Take (agent, kind, envelope) entries of inboxes: return when votes are ordered, record in the background.

        A vote counts once it is recorded; one that is ordered but not recorded when this process dies is found in
        Redis again.
        """
        for agent, kind, envelope in batch:
            if kind == "proposal":
                self._background(self.submit(agent, envelope))
        votes = [(agent, envelope) for agent, kind, envelope in batch if kind == "vote"]
        for record in await self._order(votes) if votes else ():
            self._background(record)
        while len(self._tasks) > _BACKGROUND_MAX:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    async def _order(self, ballots: Sequence[tuple[AgentId, str]]) -> list[Coroutine[None, None, Verdict]]:
        """Verify votes and cast the good ones in one round trip; return what is left to do for each, in order."""
        verified = [self._open_vote(agent_id, text) for agent_id, text in ballots]
        slips = [(v.value.proposal_id, v.value.proposal_digest, _slip(v)) for v in verified if isinstance(v, Signed)]
        answers = iter(
            await self._until_done(lambda: self._ballots.cast(self._leadership.fence, slips)) if slips else ()
        )
        left: list[Coroutine[None, None, Verdict]] = []
        for (agent_id, _), vote in zip(ballots, verified, strict=True):
            if isinstance(vote, Signed):
                answer = next(answers)
                left.append(self._record(vote, answer.code, answer.now_ms))
            else:
                now_ms = await self._until_done(self._ballots.now_ms)
                left.append(self._refuse_vote(_NO_ID, agent_id, vote, now_ms))
        return left

    def _open_vote(self, agent_id: AgentId, text: str) -> Signed[Vote] | str:
        member = self._registry.roster().member(agent_id)
        if member is None:
            return "UNREGISTERED"
        try:
            return open_vote(text, member)
        except SignatureRefused:
            return "BAD_SIGNATURE"
        except InvalidValue as error:
            return error.code

    async def _record(self, vote: Signed[Vote], code: str, now_ms: int) -> Verdict:
        value = vote.value
        current = self._open.get(value.proposal_id)
        if code == "DUPLICATE" and current is not None and value.agent_id not in current.votes:
            await self._absorb(current)  # Redis counted it, but its answer was lost on the way to us
            if value.agent_id in current.votes:
                return Verdict("COUNTED", value.proposal_id)
        if code != "COUNTED" or current is None:
            return await self._refuse_vote(value.proposal_id, value.agent_id, code, now_ms)
        if not await self._count(current, vote, now_ms):
            return await self._refuse_vote(value.proposal_id, value.agent_id, "EQUIVOCATION", now_ms)
        return Verdict(code, value.proposal_id)

    async def _count(self, current: Round, vote: Signed[Vote], received_ms: int) -> bool:
        """Write a vote to the ledger, then count it; False when the ledger has another one of this member."""
        try:
            await self._journal.vote_cast(vote, received_ms=received_ms)
        except AlreadyClaimed as taken:
            if taken.existing.get("envelope") != vote.envelope:
                return False
        else:
            self.counts["votes"] += 1
        current.count(vote, received_ms)
        return True

    async def _refuse_proposal(self, proposal_id: ProposalId, agent_id: AgentId, reason: str) -> Verdict:
        self.counts["proposals_refused"] += 1
        if self._budget.take(agent_id):
            await self._journal.proposal_refused(proposal_id, agent_id, reason)
        return Verdict(reason, proposal_id)

    async def _refuse_vote(self, proposal_id: ProposalId, agent_id: AgentId, reason: str, now_ms: int) -> Verdict:
        self.counts["votes_refused"] += 1
        if self._budget.take(agent_id):
            await self._journal.vote_refused(proposal_id, agent_id, reason, now_ms)
        return Verdict(reason, proposal_id)

    async def _taken(self, proposal: Signed[TradeProposal], known_digest: str) -> Verdict:
        value = proposal.value
        code = "DUPLICATE" if proposal.digest == known_digest else "PROPOSAL_ID_TAKEN"
        return await self._refuse_proposal(value.proposal_id, value.agent_id, code)

    # ---- deciding

    async def decide(self, current: Round) -> DecisionRecord | None:
        """Close a round's ballot and decide; None while it is too early. Any number of callers get one decision."""
        answer = await self._close(current)
        if not answer:
            return None
        at_ms, voted = answer
        if voted != len(current.votes):
            await self._absorb(current)
        record = await self._journal.decided(current.proposal, self._sign(current, at_ms))
        await self._ballots.settle(
            self._leadership.fence, current.proposal_id, record.decision_id, record.outcome.value
        )
        return record

    async def _close(self, current: Round) -> tuple[int, int] | None:
        """Return when the ballot was closed and how many votes it holds; None while it is too early."""
        answer = await self._ballots.close(self._leadership.fence, current.proposal_id)
        if answer.code == "UNKNOWN_PROPOSAL":
            await self._open_ballot(current)
            answer = await self._ballots.close(self._leadership.fence, current.proposal_id)
        return (answer.at_ms, answer.voted) if answer.at_ms else None

    def _sign(self, current: Round, at_ms: int) -> Signed[Decision]:
        proposal = current.proposal.value
        counted = [vote for agent, vote in current.votes.items() if not self._registry.is_revoked(agent)]
        decision = Decision(
            decision_id=DecisionId(self._ids.new_id()),
            proposal_id=proposal.proposal_id,
            proposal_digest=current.proposal.digest,
            tally=tally(self._settings.policy, current.roster, proposal.trade_class, [vote.value for vote in counted]),
            vote_digests=tuple(sorted(vote.digest for vote in counted)),
            roster_version=current.roster.version,
            fence=self._leadership.fence,
            decided_ms=at_ms,
            expires_ms=proposal.expires_ms,
        )
        payload = codec.canonical(decision)
        return Signed(decision, seal(payload, DECISION_PAYLOAD_TYPE, self._signer).to_json(), digest(payload))

    async def _open_ballot(self, current: Round) -> int:
        """Open the ballot unless it is open already, and return Redis time."""
        code, now_ms = await self._ballots.open(
            self._leadership.fence,
            current.proposal_id,
            digest=current.proposal.digest,
            deadline_ms=current.proposal.value.deadline_ms,
            envelope=current.proposal.envelope,
            members=[member.agent_id for member in current.roster.members],
            votes=current.known_votes(),
        )
        if code == "CONFLICT":  # somebody else's ballot under our ledger's id: Redis was tampered with
            _log.error(
                "ballot %s is of another proposal; it will be decided without further votes", current.proposal_id
            )
        return now_ms

    async def _absorb(self, current: Round) -> None:
        """Record the votes that Redis holds and we do not know of; they are verified again."""
        for known in await self._ballots.votes(current.proposal_id):
            member = current.roster.member(known.agent_id)
            if member is None or known.agent_id in current.votes:
                continue
            try:
                vote = open_vote(known.envelope, member)
            except (SignatureRefused, InvalidValue):
                await self._refuse_vote(current.proposal_id, known.agent_id, "BAD_SIGNATURE", known.received_ms)
                continue
            if vote.value.proposal_digest == current.proposal.digest:
                await self._count(current, vote, known.received_ms)

    # ---- the life of a round

    def _start(self, current: Round) -> None:
        self._open[current.proposal_id] = current
        self._background(self._run(current))

    def _background(self, job: Coroutine[None, None, object]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _run(self, current: Round) -> None:
        now_ms = await self._until_done(lambda: self._open_ballot(current))
        record: DecisionRecord | None = None
        while record is None:
            await self._wait_for_end(current, now_ms)
            record = await self._until_done(lambda: self.decide(current))
            if record is None:
                now_ms = await self._until_done(self._ballots.now_ms)
        self._open.pop(current.proposal_id, None)
        self.counts[record.outcome.value] += 1
        if record.state != "done":
            self._on_decided(record, current.proposal)

    async def _wait_for_end(self, current: Round, now_ms: int) -> None:
        left_ms = current.proposal.value.deadline_ms - now_ms + 1
        if left_ms > 0:
            try:
                async with asyncio.timeout(left_ms / 1_000):
                    await current.complete.wait()
            except TimeoutError:
                pass

    async def _until_done(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask Redis as leader until it answers; a token that was overtaken waits for the next one."""
        attempt = 0
        while True:
            await self._leadership.led()
            try:
                return await ask()
            except (RedisError, OSError, TimeoutError) as error:
                _log.info("a round waits for Redis: %s", type(error).__name__)
            except LeaseLost as error:
                if error.code != "FENCED":
                    raise
            await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
            attempt += 1

    # ---- start and stop

    async def recover(self) -> int:
        """Resume every proposal that the ledger calls open, with the votes of ledger and Redis; return how many."""
        rows = await self._journal.open_proposals()
        for row in rows:
            current = await self._restore(row)
            if current is not None:
                await self._until_done(lambda current=current: self._absorb(current))
                self._start(current)
        return len(rows)

    async def _restore(self, row: Row) -> Round | None:
        roster = self._registry.roster(int_of(row, "roster_version"))
        member = roster.member(AgentId(text_of(row, "agent_id")))
        if member is None:
            _log.error("proposal %s is of nobody in its roster", row["proposal_id"])
            return None
        current = Round(open_proposal(text_of(row, "envelope"), member), roster)
        for vote in await self._journal.votes_on(current.proposal_id):
            voter = roster.member(AgentId(text_of(vote, "agent_id")))
            if voter is not None:
                current.count(open_vote(text_of(vote, "envelope"), voter), int_of(vote, "received_ms"))
        return current

    async def stop(self, *, grace_s: float) -> None:
        """Admit nothing more, let running rounds finish within the grace, leave the rest to the next start."""
        self._admitting = False
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)


def _slip(vote: Signed[Vote]) -> KnownVote:
    return KnownVote(vote.value.agent_id, vote.digest, vote.envelope, 0)
