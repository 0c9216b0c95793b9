"""Puts the coordinator together: keys, Redis users, ledger, market view, other rooms, and the daemon."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from mcp import Client

from coordinator.agents.agent import Agent
from coordinator.agents.risk_officer import RiskOfficer
from coordinator.agents.rule_agent import RuleAgent
from coordinator.daemon import Daemon, Hosted, Resources
from coordinator.rooms import RoomLink
from coordinator.service import CoordinatorService
from coordinator.settings import CoordinatorSettings
from coordinator.snapshots import SnapshotBook
from mcp_servers.hosting import open_client, stop_process
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome
from trading.adapters.embedded_redis import open_redis, provision_agent
from trading.adapters.market_stream import MarketStreamView
from trading.adapters.market_wire import create_feed_key
from trading.adapters.outbox import OutboxRelay, RedisCursor
from trading.adapters.redis_streams import RedisPublisher
from trading.adapters.signing import load_public_key
from trading.adapters.signing_keys import Ed25519Signer, create_key, load_signer
from trading.adapters.sql import (
    Checkpointing,
    LedgerLocation,
    newest_head,
    open_reader,
    open_writer,
    recent_witnesses,
)
from trading.domain.errors import ConfigurationError
from trading.domain.identifiers import AgentId
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.ports.ledger import Ledger
from trading.strategy.modes import MODES

_log = logging.getLogger(__name__)

RISK_OFFICER: Final = AgentId("risk-officer")
#: Rooms this one calls; started here in this order when they do not run already.
ROOMS: Final = ("market", "risk", "execution")
#: Calls without an answer before a connection is made anew; reconnecting restarts a room that was started here.
_STDIO_PATIENCE: Final = 5
_PASSED_ON: Final = ("REDIS_URL", "DATABASE_URL", "PYTHONPATH", "XDG_STATE_HOME", "VIRTUAL_ENV")


def hosted_agent(agent_id: AgentId) -> Agent:
    """Return the agent that goes by that name.

    Raises:
        ConfigurationError: there is none.
    """
    if agent_id == RISK_OFFICER:
        return RiskOfficer(agent_id)
    for mode in MODES:
        if agent_id == mode.name:
            return RuleAgent(agent_id, mode)
    names = (*(mode.name for mode in MODES), RISK_OFFICER)
    raise ConfigurationError(f"there is no hosted agent {agent_id[:64]!r}", allowed=names)


@asynccontextmanager
async def open_coordinator(
    settings: CoordinatorSettings, *, on_failure: Callable[[], None] = stop_process
) -> AsyncGenerator[CoordinatorService]:
    """Run the meeting for the length of an ``async with`` block and yield the service of its tools.

    Args:
        settings: the desk's and the room's.
        on_failure: called, after the reason was logged, when the daemon ended by itself.

    Raises:
        ConfigurationError: a key is missing or open to others, or an agent is unknown.
        Unavailable: the bus cannot be started.
    """
    async with AsyncExitStack() as stack:
        daemon = await _build(settings, stack)
        task = asyncio.create_task(_guard(daemon, on_failure), name="coordinator-daemon")
        try:
            yield CoordinatorService(daemon, settings.desk.account_id)
        finally:
            daemon.stop()
            grace_s = 2 * settings.coordinator.stop_grace_s + 5
            if not (await asyncio.wait({task}, timeout=grace_s))[0]:
                _log.error("the meeting did not end in %.0f s; what was left is resumed at the next start", grace_s)
                task.cancel()
                await asyncio.wait({task}, timeout=2)


async def _guard(daemon: Daemon, on_failure: Callable[[], None]) -> None:
    try:
        await daemon.run()
    except Exception:  # noqa: BLE001  the boundary of the daemon's task: it logs and stops the process
        _log.critical("the meeting has failed; the server stops", exc_info=True)
        daemon.state = "failed"
        on_failure()


async def _build(settings: CoordinatorSettings, stack: AsyncExitStack) -> Daemon:
    desk, section = settings.desk, settings.coordinator
    home = desk.desk_home.ensure()
    clock, ids = SystemClock(), Uuid7Factory()
    redis = await stack.enter_async_context(open_redis(home, desk, "coordinator", required=False))
    hosted = [await _seat(settings, stack, agent_id) for agent_id in section.agents]
    outside = {agent: load_public_key(home.public_keys / f"agent-{agent}.pub") for agent in section.outside_agents}
    for agent in outside:
        await provision_agent(home, desk, agent)

    links = {room: _link(settings, room) for room in ROOMS}
    for link in links.values():
        await stack.enter_async_context(_running(link.run(), f"link-{link.name}"))
    accept = set(Feed) if desk.mode is Mode.PAPER else {Feed.LIVE}
    key = create_feed_key(home.keys("market") / "feed.hmac")
    view = await stack.enter_async_context(MarketStreamView(redis, desk.desk, key, clock, accept))
    snapshots = SnapshotBook(
        view,
        links["execution"],
        account_id=desk.account_id,
        venue=desk.venue,
        market_venue=desk.market_venue if desk.mode is Mode.PAPER else desk.venue,
        symbols=desk.symbols,
        quote=desk.quote,
        candle_ms=section.candle_ms,
        clock=clock,
    )
    await stack.enter_async_context(_running(snapshots.follow_trades(view.subscribe_trades()), "candles"))
    await stack.enter_async_context(_running(snapshots.follow_account(section.account_every_ms), "account"))

    location = LedgerLocation.of(desk)
    checkpoint = _checkpointing(home)
    publisher, cursor = RedisPublisher(redis, desk.desk), RedisCursor(redis, desk.desk, "coordinator")
    readers = [await stack.enter_async_context(open_reader(room, location)) for room in ("risk", "execution")]

    @asynccontextmanager
    async def open_ledger() -> AsyncGenerator[Ledger]:
        witnesses = await recent_witnesses(readers, "coordinator")
        async with open_writer(
            "coordinator", location, clock=clock, ids=ids, checkpoint=checkpoint, witnesses=witnesses
        ) as ledger:
            yield ledger

    resources = Resources(
        redis=redis,
        hosted=hosted,
        outside=outside,
        leader=_signer(home, "coordinator", "leader", "leader"),
        snapshots=snapshots,
        risk=links["risk"],
        execution=links["execution"],
        links=tuple(links.values()),
        open_ledger=open_ledger,
        relay=lambda ledger: OutboxRelay(ledger, publisher, cursor, poll_ms=50).run(),
        heads=[partial(newest_head, home, room) for room in ("risk", "execution")],
    )
    return Daemon(settings, resources, owner=f"{os.getpid()}-{ids.new_id()}", clock=clock, ids=ids)


async def _seat(settings: CoordinatorSettings, stack: AsyncExitStack, agent_id: AgentId) -> Hosted:
    """Give an agent its key and a connection of its own Redis user."""
    home = settings.desk.desk_home
    agent = hosted_agent(agent_id)
    signer = _signer(home, "agents", agent_id, "agent", public_name=f"agent-{agent_id}")
    user = await provision_agent(home, settings.desk, agent_id)
    redis = await stack.enter_async_context(open_redis(home, settings.desk, user, required=False))
    return Hosted(agent, signer, signer.public_key, redis)


def _signer(home: DeskHome, room: str, name: str, purpose: str, *, public_name: str | None = None) -> Ed25519Signer:
    """Load a key, making it first on a new desk that was not initialised."""
    path = home.keys(room) / f"{name}.key"
    if not path.exists():
        return create_key(path, purpose, public_path=home.public_keys / f"{public_name or name}.pub")
    return load_signer(path, purpose)


def _checkpointing(home: DeskHome) -> Checkpointing:
    signer = _signer(home, "coordinator", "checkpoint", "checkpoint", public_name="checkpoint-coordinator")
    path = home.checkpoints("coordinator")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Checkpointing(path=path, signer=signer, public_key=signer.public_key)


@asynccontextmanager
async def _running(job: object, name: str) -> AsyncGenerator[None]:
    assert asyncio.iscoroutine(job)
    task = asyncio.create_task(job, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=5)


def _link(settings: CoordinatorSettings, room: str) -> RoomLink:
    """Return the connection to a room: its unix socket, or a server of our own on standard input and output."""
    socket = settings.desk.desk_home.socket(room)
    rooms = settings.coordinator.rooms
    timeout_s = settings.coordinator.call_timeout_s
    if rooms == "socket" or (rooms == "auto" and socket.exists()):
        return RoomLink(room, partial(open_client, f"unix:{socket}", read_timeout_s=timeout_s))
    command = [sys.executable, "-m", f"mcp_servers.{room}"]
    return RoomLink(room, partial(_started, settings, command, timeout_s), patience=_STDIO_PATIENCE)


def _started(
    settings: CoordinatorSettings, command: Sequence[str], timeout_s: float
) -> AbstractAsyncContextManager[Client]:
    variables = {k: v for k, v in os.environ.items() if k.startswith("GREKKO_") or k in _PASSED_ON}
    variables["GREKKO_HOME"] = str(settings.desk.home)
    return open_client(command, env=variables, read_timeout_s=timeout_s)
