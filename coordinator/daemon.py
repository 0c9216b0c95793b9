"""The meeting itself: wait for leadership, take the ledger, resume what was left, and run until told to stop.

Order of start: the leader's lock, then the ledger's lease (so that two coordinators never fight over it), then a
fencing token bound to the lease's generation, then recovery, and only then new proposals. A stop goes the other way:
no new proposals, running rounds and decisions finish or are left resumable, the lock is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis

from coordinator.admission import ProposalRules, Signed, open_proposal
from coordinator.agents.agent import Agent
from coordinator.agents.seat import Seat, SeatSettings
from coordinator.ballots import Ballots
from coordinator.inboxes import InboxReader
from coordinator.journal import DecisionRecord, Journal, int_of, text_of
from coordinator.leadership import Leadership
from coordinator.pipeline import Pipeline, PipelineSettings
from coordinator.registry import Registry
from coordinator.rooms import RoomLink
from coordinator.round_state import RoundSettings
from coordinator.rounds import Rounds
from coordinator.settings import CoordinatorSettings
from coordinator.snapshots import SnapshotBook
from trading.domain.errors import ConfigurationError
from trading.domain.events import HeadWitnessed, ServiceStarted, ServiceStopped
from trading.domain.identifiers import AgentId
from trading.domain.proposals import TradeProposal
from trading.domain.voting import Role
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import EventDraft, Ledger, Unit
from trading.ports.signing import Signer

_log = logging.getLogger(__name__)

RELEASE: Final = "0.1.0"
#: Account figures older than this mean that execution is not reachable.
_ACCOUNT_AGE_MAX_MS: Final = 5_000
_LEDGER_RETRY_S: Final = 0.2
_LEDGER_TRIES: Final = 150
_WITNESS_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Hosted:
    """An agent that sits here: its judgement, its key and its connection."""

    agent: Agent
    signer: Signer
    public_key: str
    redis: Redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the daemon is given, opened and closed by whoever made it.

    Attributes:
        open_ledger: takes the lease for the length of its block.
        outside: public keys of agents that run elsewhere.
        relay: publishes what the ledger has committed, for ever.
        heads: newest signed heads of the other rooms' ledgers, to be witnessed here.
    """

    redis: Redis
    hosted: Sequence[Hosted]
    outside: Mapping[AgentId, str]
    leader: Signer
    snapshots: SnapshotBook
    risk: RoomLink
    execution: RoomLink
    links: tuple[RoomLink, ...]
    open_ledger: Callable[[], AbstractAsyncContextManager[Ledger]]
    relay: Callable[[Ledger], Coroutine[None, None, None]]
    heads: Sequence[Callable[[], HeadWitnessed | None]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonParts:
    """What exists while the ledger is held."""

    journal: Journal
    registry: Registry
    leadership: Leadership
    rounds: Rounds
    pipeline: Pipeline
    seats: tuple[Seat, ...]


class Daemon:
    """Runs the meeting.

    Args:
        settings: the desk's and the room's.
        resources: connections, keys and other rooms.
        owner: names this process in the leader's lock.
    """

    def __init__(
        self, settings: CoordinatorSettings, resources: Resources, *, owner: str, clock: Clock, ids: IdFactory
    ) -> None:
        self._settings = settings
        self._resources = resources
        self._clock = clock
        self._ids = ids
        self._prefix = settings.desk.key("")
        self._leadership = Leadership(
            resources.redis,
            self._prefix,
            owner=owner,
            ttl_ms=settings.coordinator.leader_ttl_ms,
            clock=clock,
        )
        self._stop = asyncio.Event()
        self.state = "starting"
        self.parts: DaemonParts | None = None

    @property
    def hosted(self) -> frozenset[AgentId]:
        """The agents that sit here."""
        return frozenset(each.agent.agent_id for each in self._resources.hosted)

    @property
    def links(self) -> tuple[RoomLink, ...]:
        """The other rooms."""
        return self._resources.links

    @property
    def account_age_ms(self) -> int | None:
        """How old the account's figures are; None if they were never read."""
        return self._resources.snapshots.account_age_ms

    def stop(self) -> None:
        """Ask ``run`` to end in good order."""
        self._stop.set()

    def unsafe_reasons(self) -> list[str]:
        """Return why an approved decision could not be carried out now, each starting with a stable code."""
        reasons: list[str] = []
        if self.state != "running":
            reasons.append(f"NOT_RUNNING the meeting is {self.state}")
        if self.parts is not None and not self.parts.leadership.is_leader:
            reasons.append("NOT_LEADER the leader's lock is not held")
        reasons += [f"ROOM_UNREACHABLE {link.name}" for link in self.links if not link.is_connected]
        age_ms = self.account_age_ms
        if age_ms is None or age_ms > _ACCOUNT_AGE_MAX_MS:
            reasons.append("ACCOUNT_STALE execution has not told the account's figures lately")
        symbols = self._settings.desk.symbols
        reasons += [f"NO_MARKET {symbol}" for symbol in symbols if self._resources.snapshots.snapshot(symbol) is None]
        return reasons

    async def run(self) -> None:
        """Run until stopped.

        Raises:
            LeaseLost: another coordinator writes the ledger now.
            ConfigurationError: the ledger or the registry refuses to start.
        """
        self.state = "waiting"
        waiting = asyncio.create_task(self._leadership.acquire(), name="leadership")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not self._stop.is_set():
                await self._lead()
        finally:
            for task in (waiting, stopping):
                task.cancel()
            self.parts = None
            await self._leadership.release()

    async def _lead(self) -> None:
        for attempt in range(_LEDGER_TRIES):
            try:
                async with self._resources.open_ledger() as ledger:
                    await self._meet(ledger)
                    return
            except ConfigurationError as error:
                # A predecessor that is still stopping holds the lock for a moment.
                if error.code != "LEDGER_IN_USE" or attempt + 1 == _LEDGER_TRIES or self._stop.is_set():
                    raise
            await asyncio.sleep(_LEDGER_RETRY_S)

    async def _meet(self, ledger: Ledger) -> None:
        await self._leadership.bind(ledger.generation)
        parts = await self._assemble(ledger)
        clean = await _was_clean(ledger)
        started = ServiceStarted(
            generation=ledger.generation, mode=self._settings.desk.mode.value, release=RELEASE, clean=clean
        )
        await ledger.commit(Unit(events=(EventDraft(started),)))
        self.parts = parts
        try:
            await self._work(ledger, parts)
        finally:
            self.state = "stopping"
            await parts.rounds.stop(grace_s=0)
        stopped = ServiceStopped(generation=ledger.generation, reason="asked to stop")
        await ledger.commit(Unit(events=(EventDraft(stopped),)))

    async def _work(self, ledger: Ledger, parts: DaemonParts) -> None:
        """Run everything until a stop is asked for; a part that fails fails the daemon."""
        section = self._settings.coordinator
        async with asyncio.TaskGroup() as group:
            seats = [group.create_task(seat.run(), name=f"seat-{seat.agent.agent_id}") for seat in parts.seats]
            inboxes = InboxReader(self._resources.redis, self._prefix, lambda: _ids_of(parts.registry))
            others = [
                group.create_task(self._leadership.keep(), name="leadership-keeper"),
                group.create_task(parts.pipeline.run(), name="pipeline"),
                group.create_task(_failure_of(parts.rounds), name="rounds"),
                group.create_task(self._resources.relay(ledger), name="relay"),
                group.create_task(self._witness(ledger), name="witness"),
            ]
            await self._recover(parts)
            # Not before: a proposal of now would be taken for one that was left over, and be walked twice.
            others.append(group.create_task(inboxes.run(parts.rounds.take), name="inboxes"))
            self.state = "running"
            await self._stop.wait()
            self.state = "stopping"
            for seat in parts.seats:
                seat.proposing = False
            await parts.rounds.stop(grace_s=section.stop_grace_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(section.stop_grace_s):
                    await parts.pipeline.drained()
            for task in (*seats, *others):
                task.cancel()

    async def _assemble(self, ledger: Ledger) -> DaemonParts:
        desk, section, resources = self._settings.desk, self._settings.coordinator, self._resources
        registry = await Registry.load(ledger)
        for each in resources.hosted:
            agent = each.agent
            await registry.register(
                ledger, agent_id=agent.agent_id, role=agent.role, family=agent.family, public_key=each.public_key
            )
        for agent_id, public_key in resources.outside.items():
            await registry.register(
                ledger, agent_id=agent_id, role=Role.TRADER, family="outside", public_key=public_key
            )
        journal = Journal(ledger, self._clock)
        pipeline = Pipeline(
            journal,
            risk=resources.risk,
            execution=resources.execution,
            settings=PipelineSettings(
                workers=section.workers, call_timeout_s=section.call_timeout_s, give_up_ms=section.give_up_ms
            ),
            now_ms=self._clock.now_ms,
        )
        rules = ProposalRules(
            mode=desk.mode,
            account_id=desk.account_id,
            venue=desk.venue,
            symbols=desk.symbols,
            window_ms=section.windows_ms,
            life_ms=section.proposal_life_ms,
        )
        rounds = Rounds(
            journal,
            Ballots(resources.redis, self._prefix),
            registry,
            self._leadership,
            resources.leader,
            RoundSettings(rules=rules, policy=section.quorum.policy(), open_max=section.open_max),
            clock=self._clock,
            ids=self._ids,
            on_decided=pipeline.take,
            backlog=lambda: pipeline.backlog,
        )
        return DaemonParts(
            journal=journal,
            registry=registry,
            leadership=self._leadership,
            rounds=rounds,
            pipeline=pipeline,
            seats=self._seats(registry),
        )

    def _seats(self, registry: Registry) -> tuple[Seat, ...]:
        desk, section = self._settings.desk, self._settings.coordinator
        settings = SeatSettings(
            prefix=self._prefix,
            mode=desk.mode,
            symbols=desk.symbols,
            window_ms=section.vote_ms,
            life_ms=section.proposal_life_ms,
        )
        return tuple(
            Seat(
                each.agent,
                each.signer,
                each.redis,
                roster=registry.roster,
                snapshots=self._resources.snapshots,
                settings=settings,
                clock=self._clock,
                ids=self._ids,
            )
            for each in self._resources.hosted
        )

    async def _recover(self, parts: DaemonParts) -> None:
        """Resume open rounds and unfinished decisions."""
        records = await parts.journal.unfinished()  # first: a resumed round hands over its decision itself
        rounds = await parts.rounds.recover()
        for record in records:
            parts.pipeline.take(record, await _proposal_of(parts, record))
        if rounds or records:
            _log.warning("resumed %d open proposals and %d unfinished decisions", rounds, len(records))

    async def _witness(self, ledger: Ledger) -> None:
        """Write the other rooms' heads into our own chain, so that they cannot be rewritten unnoticed."""
        seen: dict[str, HeadWitnessed] = {}
        while True:
            for read in self._resources.heads:
                head = await asyncio.to_thread(read)
                if head is not None and seen.get(head.service) != head:
                    await ledger.commit(Unit(events=(EventDraft(head),)))
                    seen[head.service] = head
            await asyncio.sleep(_WITNESS_EVERY_S)


async def _failure_of(rounds: Rounds) -> None:
    await rounds.failed


async def _was_clean(ledger: Ledger) -> bool:
    last = await ledger.last_seq()
    newest = await ledger.events_after(max(0, last - 20))
    return not newest or any(isinstance(event.payload, ServiceStopped) for event in newest)


async def _proposal_of(parts: DaemonParts, record: DecisionRecord) -> Signed[TradeProposal]:
    row = await parts.journal.proposal(record.proposal_id)
    assert row is not None, "a decision is written with its proposal's row"
    roster = parts.registry.roster(int_of(row, "roster_version"))
    member = roster.member(AgentId(text_of(row, "agent_id")))
    assert member is not None, "a proposal is opened for a member only"
    return open_proposal(text_of(row, "envelope"), member)


def _ids_of(registry: Registry) -> list[AgentId]:
    return [member.agent_id for member in registry.roster().members]
