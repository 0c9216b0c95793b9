"""An agent's seat at the desk: its key, its connection, its inbox, and the two things it does there.

Rules kept here:

- It writes its own inbox and nothing else; its Redis user can do no more.
- A proposal of another is verified before the agent hears of it: signature by a member of the roster, and the digest.
- One proposal of its own at a time: the next comes after the last was decided or has expired.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from coordinator.admission import REASON_MAX, Signed, open_proposal, sign_proposal, sign_vote
from coordinator.agents.agent import Agent
from coordinator.ballots import as_text
from coordinator.inboxes import INBOX_MAX
from trading.adapters.signing import Envelope
from trading.domain.errors import InvalidValue, SignatureRefused
from trading.domain.identifiers import ProposalId, Symbol
from trading.domain.proposals import Mode, TradeClass, TradeProposal
from trading.domain.voting import Choice, Roster, Vote
from trading.ports.clock import Clock, IdFactory
from trading.ports.signing import Signer
from trading.strategy.rules import Propose
from trading.strategy.snapshot import MarketSnapshot

_log = logging.getLogger(__name__)

_BLOCK_MS: Final = 250
_RETRY_S: Final = 0.2
#: Share of an agent's interval in which the seat looks again when the agent held.
_LOOK_AGAIN_MS: Final = 200


class Snapshots(Protocol):
    """Where a seat gets its agent's view from."""

    def snapshot(self, symbol: Symbol) -> MarketSnapshot | None:
        """Return the present state of an instrument, None while something of it is not known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SeatSettings:
    """What every seat of a desk shares.

    Attributes:
        window_ms: time from a proposal to its deadline.
        life_ms: time from the deadline to the proposal's expiry.
    """

    prefix: str
    mode: Mode
    symbols: tuple[Symbol, ...]
    trade_class: TradeClass = TradeClass.FAST
    window_ms: int = 500
    life_ms: int = 4_500


class Seat:
    """Runs one agent.

    Args:
        agent: who judges.
        signer: the agent's own key.
        redis: a connection of the agent's own Redis user.
        roster: the present members, for verifying others' proposals.
        snapshots: the market.
        settings: the desk's.
    """

    def __init__(
        self,
        agent: Agent,
        signer: Signer,
        redis: Redis,
        *,
        roster: Callable[[], Roster],
        snapshots: Snapshots,
        settings: SeatSettings,
        clock: Clock,
        ids: IdFactory,
    ) -> None:
        self.agent = agent
        self.proposing = True
        self._signer = signer
        self._redis: Any = redis
        self._roster = roster
        self._snapshots = snapshots
        self._settings = settings
        self._clock = clock
        self._ids = ids
        self._inbox = f"{settings.prefix}vote:in:{agent.agent_id}"
        self._out = f"{settings.prefix}vote:out"
        self._cursor: str | None = None
        self._waiting_for: ProposalId | None = None
        self._waiting_until_ns = 0
        self.refused = 0

    async def run(self) -> None:
        """Listen and propose for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever(self._listen), name=f"{self.agent.agent_id}-listens")
            if self.agent.proposal_interval_ms:
                group.create_task(self._forever(self._wish), name=f"{self.agent.agent_id}-proposes")

    async def _forever(self, step: Callable[[], Any]) -> None:
        while True:
            try:
                await step()
            except (RedisError, OSError, TimeoutError) as error:
                _log.info("agent %s waits for Redis: %s", self.agent.agent_id, type(error).__name__)
                self._cursor = None
                await asyncio.sleep(_RETRY_S)

    # ---- voting

    async def _listen(self) -> None:
        if self._cursor is None:
            # From now on: what was opened before this seat started is past its deadline, or announced again.
            newest = await self._redis.xrevrange(self._out, count=1)
            self._cursor = as_text(newest[0][0]) if newest else "0-0"
        async with asyncio.timeout(_BLOCK_MS / 1_000 + 5):
            reply = await self._redis.xread({self._out: self._cursor}, count=64, block=_BLOCK_MS)
        for _, entries in cast("list[tuple[object, list[tuple[object, dict[object, object]]]]]", reply or []):
            for entry_id, raw in entries:
                self._cursor = as_text(entry_id)
                await self._hear({as_text(key): as_text(value) for key, value in raw.items()})

    async def _hear(self, fields: dict[str, str]) -> None:
        proposal_id = ProposalId(fields.get("p", ""))
        if fields.get("t") == "decided":
            if proposal_id == self._waiting_for:
                self._waiting_for = None
            return
        if fields.get("t") != "opened" or self.agent.agent_id in fields.get("v", "").split(","):
            return
        proposal = self.verify(fields.get("e", ""), fields.get("d", ""))
        if proposal is None:
            self.refused += 1
            _log.warning("agent %s does not vote on %s: it does not verify", self.agent.agent_id, proposal_id[:64])
            return
        await self._send("vote", sign_vote(self.ballot(proposal), self._signer))

    def verify(self, envelope: str, digest: str) -> Signed[TradeProposal] | None:
        """Return the proposal in an announcement if a member signed exactly this, else None."""
        try:
            key_id = Envelope.from_json(envelope).key_id
            member = next((m for m in self._roster().members if m.key_id == key_id), None)
            if member is None:
                return None
            proposal = open_proposal(envelope, member)
        except (SignatureRefused, InvalidValue):
            return None
        return proposal if proposal.digest == digest else None

    def ballot(self, proposal: Signed[TradeProposal]) -> Vote:
        """Return the agent's vote on a verified proposal, on the newest snapshot."""
        snapshot = self._snapshots.snapshot(proposal.value.order.symbol)
        if snapshot is not None:
            self.agent.observe(snapshot)
        stance = self.agent.vote(proposal.value)
        choice = stance.choice
        if snapshot is None and choice is Choice.YES:  # what was seen before may no longer be so
            choice = Choice.ABSTAIN
        return Vote(
            proposal_id=proposal.value.proposal_id,
            proposal_digest=proposal.digest,
            agent_id=self.agent.agent_id,
            choice=choice,
            reason=stance.reason[:REASON_MAX],
            stance_age_ms=snapshot.book_age_ms if snapshot is not None else 0,
        )

    # ---- proposing

    async def _wish(self) -> None:
        sent = self.proposing and not self._is_waiting() and await self._propose()
        await asyncio.sleep((self.agent.proposal_interval_ms if sent else _LOOK_AGAIN_MS) / 1_000)

    def _is_waiting(self) -> bool:
        return self._waiting_for is not None and self._clock.monotonic_ns() < self._waiting_until_ns

    async def _propose(self) -> bool:
        for symbol in self._settings.symbols:
            snapshot = self._snapshots.snapshot(symbol)
            if snapshot is None:
                return False
            self.agent.observe(snapshot)
        wish = self.agent.propose()
        if not isinstance(wish, Propose):
            return False
        seconds, micros = await self._redis.time()
        proposal = self.proposal(wish, now_ms=int(seconds) * 1_000 + int(micros) // 1_000)
        self._waiting_for = proposal.proposal_id
        life_ms = self._settings.window_ms + self._settings.life_ms
        self._waiting_until_ns = self._clock.monotonic_ns() + life_ms * 1_000_000
        await self._send("proposal", sign_proposal(proposal, self._signer))
        return True

    def proposal(self, wish: Propose, *, now_ms: int) -> TradeProposal:
        """Return the wish as a proposal made at Redis time ``now_ms``."""
        deadline_ms = now_ms + self._settings.window_ms
        return TradeProposal(
            proposal_id=ProposalId(self._ids.new_id()),
            agent_id=self.agent.agent_id,
            mode=self._settings.mode,
            trade_class=self._settings.trade_class,
            order=wish.order,
            reason=wish.reason[:REASON_MAX],
            roster_version=self._roster().version,
            created_ms=now_ms,
            deadline_ms=deadline_ms,
            expires_ms=deadline_ms + self._settings.life_ms,
        )

    async def _send(self, kind: str, envelope: str) -> None:
        await self._redis.xadd(self._inbox, {"t": kind, "e": envelope}, maxlen=INBOX_MAX, approximate=True)
