"""Ballots in Redis: who may vote until when, which verified votes are in, and the moment of closing.

This is the arbiter of order and deadline, not the truth: the ledger is. A ballot that Redis has lost is opened again
from the ledger with the votes that are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from coordinator import scripts
from trading.domain.errors import LeaseLost
from trading.domain.identifiers import AgentId, DecisionId, ProposalId

#: How long a ballot outlives its deadline, for late votes and questions.
KEEP_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class KnownVote:
    """A verified vote: its payload digest, its envelope text and when it arrived (Redis time)."""

    agent_id: AgentId
    digest: str
    envelope: str
    received_ms: int


@dataclass(frozen=True, slots=True)
class CastAnswer:
    """What became of a vote.

    Attributes:
        code: COUNTED, DUPLICATE, EQUIVOCATION, LATE, UNREGISTERED, DIGEST_MISMATCH or UNKNOWN_PROPOSAL.
        now_ms: Redis time of the answer.
    """

    code: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class CloseAnswer:
    """What became of closing a ballot.

    Attributes:
        code: CLOSED, ALREADY, EARLY or UNKNOWN_PROPOSAL.
        at_ms: Redis time when it was closed; 0 if it is not.
        voted: how many votes the ballot holds.
    """

    code: str
    at_ms: int
    voted: int


class Ballots:
    """The Python face of the scripts.

    Args:
        redis: the coordinator's client.
        prefix: what all keys of the desk start with, colon included.
    """

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis: Any = redis
        self._prefix = prefix
        self._fence = f"{prefix}vote:fence"
        self._pending = f"{prefix}vote:pending"
        self._out = f"{prefix}vote:out"

    async def open(
        self,
        fence: int,
        proposal_id: ProposalId,
        *,
        digest: str,
        deadline_ms: int,
        envelope: str,
        members: Iterable[AgentId],
        votes: Sequence[KnownVote] = (),
    ) -> tuple[str, int]:
        """Open a ballot and announce it; repeating it changes nothing.

        Returns:
            OPENED, EXISTS, or CONFLICT when the id is taken by another proposal; and Redis time.

        Raises:
            LeaseLost: a newer leader exists.
        """
        known = [field for vote in votes for field in (vote.agent_id, vote.digest, vote.envelope, vote.received_ms)]
        args = [fence, proposal_id, digest, deadline_ms, KEEP_MS, envelope, ",".join(members), *known]
        keys = [self._fence, self._ballot(proposal_id), self._pending, self._out]
        reply = await run_script(self._redis, scripts.OPEN, keys, args)
        return _checked(reply), int(reply[1])

    async def cast(self, fence: int, votes: Sequence[tuple[ProposalId, str, KnownVote]]) -> list[CastAnswer]:
        """Record verified votes in one round trip, in order.

        Args:
            fence: the leader's token.
            votes: for each the proposal, the digest of the proposal that was signed, and the vote.

        Raises:
            LeaseLost: a newer leader exists.
        """
        try:
            replies = await self._cast(fence, votes)
        except NoScriptError:  # a server that was started anew has no scripts; then none of the votes was cast
            await self._redis.script_load(scripts.CAST)
            replies = await self._cast(fence, votes)
        return [CastAnswer(_checked(reply), int(reply[1])) for reply in replies]

    async def close(self, fence: int, proposal_id: ProposalId) -> CloseAnswer:
        """Close a ballot if its deadline has passed or everybody has voted. Afterwards no vote is counted.

        Raises:
            LeaseLost: a newer leader exists.
        """
        reply = await run_script(self._redis, scripts.CLOSE, [self._fence, self._ballot(proposal_id)], [fence])
        return CloseAnswer(_checked(reply), int(reply[2]), int(reply[3]))

    async def settle(self, fence: int, proposal_id: ProposalId, decision_id: DecisionId, outcome: str) -> None:
        """Tell the agents what was decided, once the ledger has it; repeating it changes nothing.

        Raises:
            LeaseLost: a newer leader exists.
        """
        keys = [self._fence, self._ballot(proposal_id), self._pending, self._out]
        args = [fence, proposal_id, decision_id, outcome, KEEP_MS]
        _checked(await run_script(self._redis, scripts.SETTLE, keys, args))

    async def votes(self, proposal_id: ProposalId) -> list[KnownVote]:
        """Return the votes a ballot holds, by agent id; empty when Redis does not know it."""
        raw = cast("dict[bytes | str, bytes | str]", await self._redis.hgetall(self._ballot(proposal_id)))
        fields = {as_text(key): as_text(value) for key, value in raw.items()}
        agents = sorted(key[2:] for key in fields if key.startswith("v:"))
        return [KnownVote(AgentId(a), fields[f"v:{a}"], fields[f"e:{a}"], int(fields[f"t:{a}"])) for a in agents]

    async def now_ms(self) -> int:
        """Return the server's clock, the only one deadlines are measured by."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1_000 + int(micros) // 1_000

    def _ballot(self, proposal_id: ProposalId) -> str:
        return f"{self._prefix}vote:ballot:{proposal_id}"

    async def _cast(self, fence: int, votes: Sequence[tuple[ProposalId, str, KnownVote]]) -> list[list[Any]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for proposal_id, digest, vote in votes:
                keys = [self._fence, self._ballot(proposal_id)]
                pipe.evalsha(sha_of(scripts.CAST), 2, *keys, fence, vote.agent_id, digest, vote.digest, vote.envelope)
            return cast("list[list[Any]]", await pipe.execute())


async def run_script(redis: Any, script: str, keys: Sequence[str], args: Sequence[str | int]) -> Any:
    """Run a script by its digest, loading it when the server does not know it."""
    try:
        return await redis.evalsha(sha_of(script), len(keys), *keys, *args)
    except NoScriptError:
        await redis.script_load(script)
        return await redis.evalsha(sha_of(script), len(keys), *keys, *args)


@cache
def sha_of(script: str) -> str:
    """Return the name under which Redis keeps a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def as_text(value: object) -> str:
    """Return a reply of Redis as text, whatever the client's decoding is.

    Bytes that are no UTF-8 become replacement characters: agents write them, and what they break must be their own
    signature, not the reader.
    """
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _checked(reply: Sequence[Any]) -> str:
    code = as_text(reply[0])
    if code == "FENCED":
        raise LeaseLost("another leader holds a newer fencing token", code="FENCED")
    return code
