"""How the parts of the running room are put together; ``service.py`` uses them and never builds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from trading.domain.approvals import TradingState
from trading.domain.errors import InvalidValue, Unavailable
from trading.domain.events import HeadWitnessed
from trading.domain.identifiers import AgentId
from trading.domain.instruments import InstrumentId
from trading.domain.pending import PendingState
from trading.domain.trading_states import AGENT, DESK
from trading.ports.ledger import Row

from .adoption import Adoption, Opening
from .alerts import Alerts
from .assessment import Assessor
from .breaker import Breaker, BreakerAnswer
from .breaker_scopes import KnownScopes, restricted
from .decisions import DecisionVerifier
from .follow import ExecutionFollower
from .frames import FrameSource
from .heartbeat import ExecutionPulse, Heartbeats
from .limits import Policy, RiskLimits
from .markets import Markets
from .memory import Memory, pace_of
from .operator_commands import OperatorAnswer, OperatorCommand, OperatorCommands
from .parts import RiskParts
from .pending import PendingBook
from .people import People
from .portfolio import Portfolio
from .reservations import ReservationBook
from .score.live import LiveScores
from .sign_off import SignOff
from .standing_exits import StandingExits
from .surveillance import Surveillance, approvals_parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What exists before the room has started.

    Attributes:
        pending: orders that wait for the operator.
        rows: approvals that may still trade, by id; shared, and kept by those who hold it.
        scores: risk scores, refreshed in the background.
        is_ready: whether the reservations are rebuilt.
        on_lease_lost: called when another process became the writer of the ledger.
    """

    parts: RiskParts
    portfolio: Portfolio
    reservations: ReservationBook
    pulse: ExecutionPulse
    assessor: Assessor
    pending: PendingBook
    rows: dict[str, Row]
    scores: LiveScores
    is_ready: Callable[[], bool]
    on_lease_lost: Callable[[], None]


@dataclass(slots=True)
class Live:
    """What exists only once the room has started."""

    breaker: Breaker
    frames: FrameSource
    sign_off: SignOff
    follower: ExecutionFollower
    heartbeats: Heartbeats
    commands: OperatorCommands | None
    known_scopes: KnownScopes
    surveillance: Surveillance
    alerts: Alerts
    memory: Memory
    adoption: Adoption
    exits: StandingExits
    people: People
    clean: bool
    witnessed: dict[str, HeadWitnessed] = field(default_factory=dict[str, HeadWitnessed])


def wire(room: Room, opening: Opening, states: dict[str, Row], *, clean: bool) -> Live:
    """Return the running parts under a policy.

    Args:
        opening: its policy is in force until ``Live.adoption`` puts another one in force; nothing else keeps limits.
        states: rows of ``desk_state`` by scope, as the last run left them.
        clean: whether the last run ended in good order.
    """
    parts, memory, policy = room.parts, Memory(states), opening.policy

    async def announce() -> None:
        await heartbeats.beat()

    known = KnownScopes(parts, lambda: frames.policy.limits, room.portfolio, room.assessor.agents)
    alerts = Alerts(parts.notify_url, parts.clock, desk=parts.desk, account_id=parts.account_id)
    breaker = Breaker(parts.ledger, parts.clock, announce, restored=states, told=alerts.tell)
    surveillance = Surveillance(
        breaker=breaker,
        portfolio=room.portfolio,
        memory=memory,
        clock=parts.clock,
        limits=lambda: frames.policy.limits,
        instruments=[InstrumentId(parts.venue, symbol) for symbol in parts.symbols],
        data_of=parts.data_of,
        parent_of=approvals_parent(room.rows),
    )
    follower = ExecutionFollower(
        ledger=parts.ledger,
        execution=parts.execution,
        portfolio=room.portfolio,
        rows=room.rows,
        clock=parts.clock,
        wakeups=parts.wakeups,
        watch=surveillance.executed,
    )
    frames = _frames(room, policy, breaker, memory, lambda: follower.checked_ns)
    heartbeats = Heartbeats(
        parts.account_id,
        parts.signer,
        parts.clock,
        parts.heartbeats,
        lambda: (breaker.epoch, breaker.state, frames.policy.min_version, breaker.scopes),
    )
    sign_off = SignOff(
        ledger=parts.ledger,
        assessor=room.assessor,
        frames=frames,
        reservations=room.reservations,
        verifier=verifier_of(parts, policy.limits),
        rows=room.rows,
        on_lease_lost=room.on_lease_lost,
    )
    people = People(parts.ledger, frames, sign_off, room.pending)

    def follow(policy: Policy) -> None:  # no order is judged in between: nothing here waits
        frames.policy = policy
        room.assessor.follow(pace_of(parts, policy), policy.limits.duplicate_window_ms, parts.clock.now_ms())
        sign_off.count_votes_with(verifier_of(parts, policy.limits))

    follow(policy)
    adoption = Adoption(
        ledger=parts.ledger,
        clock=parts.clock,
        source=parts.document,
        in_force=lambda: frames.policy,
        follow=follow,
        announce=announce,
        waiting=opening.waiting,
    )
    return Live(
        breaker=breaker,
        frames=frames,
        sign_off=sign_off,
        follower=follower,
        heartbeats=heartbeats,
        commands=_commands(room, breaker, memory, known, people, adoption, surveillance),
        known_scopes=known,
        surveillance=surveillance,
        alerts=alerts,
        memory=memory,
        adoption=adoption,
        exits=StandingExits(parts.ledger, parts.signer, parts.ids),
        people=people,
        clean=clean,
    )


def _frames(
    room: Room, policy: Policy, breaker: Breaker, memory: Memory, checked_ns: Callable[[], int | None]
) -> FrameSource:
    parts = room.parts
    instruments = tuple(InstrumentId(parts.venue, symbol) for symbol in parts.symbols)
    return FrameSource(
        clock=parts.clock,
        mode=parts.mode,
        policy=policy,
        markets=Markets(parts.market, instruments, parts.data_of, parts.mode, parts.last_trade),
        portfolio=room.portfolio,
        breaker=breaker,
        pulse=room.pulse,
        daily=memory.daily,
        drawdown=memory.drawdown,
        scores=room.scores,
        checked_ns=checked_ns,
    )


def verifier_of(parts: RiskParts, limits: RiskLimits) -> DecisionVerifier | None:
    """Return who checks decisions under these limits; None when no decision is accepted."""
    if parts.coordinator is None or parts.keys is None:
        return None
    return DecisionVerifier(
        parts.coordinator,
        parts.keys,
        limits.quorum.policy(),
        parts.mode,
        consent_agents=limits.quorum.consent_agents,
        clock_skew_ms=limits.clock_skew_ms,
    )


def _commands(
    room: Room,
    breaker: Breaker,
    memory: Memory,
    known: KnownScopes,
    people: People,
    adoption: Adoption,
    surveillance: Surveillance,
) -> OperatorCommands | None:
    parts = room.parts
    if parts.operator_directory is None:
        return None
    started_ms = parts.clock.now_ms()

    async def act(command: OperatorCommand) -> BreakerAnswer:
        by, scope = f"operator:{command.by}", known.read(command.scope)
        if command.state.cancels_increases:
            answer = await breaker.trip(command.reason, by, command.state, scope=scope)
            if answer.changed or command.state is answer.state:
                return answer
        elif not room.is_ready():
            raise Unavailable("reservations are still being rebuilt", code="RISK_NOT_READY")
        if command.issued_ms < started_ms:  # a halt that would lift a freeze: the run before may have used it
            raise InvalidValue("the command is older than this run of risk and would loosen", code="COMMAND_STALE")
        if command.state is TradingState.ACTIVE:
            kind, _, name = scope.partition(":")
            if scope == DESK:
                memory.rearm(room.portfolio.activity, parts.clock.now_ms())
            elif kind == AGENT:
                memory.rearm_agent(room.portfolio.activity, AgentId(name), parts.clock.now_ms())
            await memory.save(parts.ledger, parts.clock.now_ms())
        surveillance.rearm(scope)
        return await breaker.reset(command.reason, by, command.state, scope=scope)

    async def hear(answer: OperatorAnswer) -> tuple[PendingState, str]:
        if not room.is_ready():
            raise Unavailable("reservations are still being rebuilt", code="RISK_NOT_READY")
        return await people.hear(answer)

    return OperatorCommands(
        parts.operator_directory,
        parts.operator,
        parts.clock,
        desk=parts.desk,
        account_id=parts.account_id,
        act=act,
        restricted=lambda: restricted(breaker),
        hear=hear,
        kinds=(adoption.kind,),
    )
