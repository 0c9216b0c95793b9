"""Wires the risk room: keys, lease, bus, market, then the service and what keeps it current."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

from redis.asyncio import Redis

from mcp_servers.hosting import stop_process
from mcp_servers.risk.bus import RedisHeartbeatSink, hear_execution
from mcp_servers.risk.candle_closes import ArchiveCloses
from mcp_servers.risk.decisions import PinnedKeys
from mcp_servers.risk.heartbeat import PERIOD_S
from mcp_servers.risk.parts import RiskParts
from mcp_servers.risk.score.live import SCORE_EVERY_S
from mcp_servers.risk.service import RiskService
from mcp_servers.risk.settings import RiskSettings, check_allowed, limits_source
from trading.adapters.approval_signer import load_approval_signer
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.market_stream import MarketStreamView, load_feed_key
from trading.adapters.outbox import OutboxRelay, RedisCursor
from trading.adapters.redis_streams import RedisPublisher, RedisSubscriber
from trading.adapters.signing import Ed25519Verifier, load_public_key
from trading.adapters.signing_keys import load_signer
from trading.adapters.sql import (
    Checkpointing,
    LedgerLocation,
    newest_head,
    open_reader,
    open_writer,
    recent_witnesses,
)
from trading.adapters.sql.candles import open_candles
from trading.domain.errors import LedgerError, TradingError
from trading.domain.events import Category
from trading.domain.identifiers import AgentId
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger

log = logging.getLogger("grekko.risk")

_OTHERS: Final = ("execution", "coordinator")


@asynccontextmanager
async def open_risk(
    desk: DeskSettings,
    risk: RiskSettings,
    *,
    clock: Clock | None = None,
    ids: IdFactory | None = None,
    on_failure: Callable[[], None] = stop_process,
    reread: Callable[[], RiskSettings] | None = None,
) -> AsyncGenerator[RiskService]:
    """Run the room for the length of an ``async with`` block and yield its service.

    Args:
        clock, ids: the machine's unless a test says otherwise.
        on_failure: called, after the reason was logged, when the room cannot go on.
        reread: reads the section again while running; without it only a file of limits is watched.

    Raises:
        ConfigurationError: missing keys, an open home, limits that do not fit, or another risk process.
        LedgerError: the ledger does not answer.
    """
    check_allowed(desk, risk)
    found_clock, found_ids = clock or SystemClock(), ids or Uuid7Factory()
    home = desk.desk_home.ensure()
    signer = load_approval_signer(home)
    document = limits_source(desk, reread or (lambda: risk))
    limits = (await asyncio.to_thread(document.read)).limits
    location = LedgerLocation.of(desk)
    async with AsyncExitStack() as stack:
        readers = {room: await stack.enter_async_context(open_reader(room, location)) for room in _OTHERS}
        candles = await stack.enter_async_context(open_candles(location, write=False))
        ledger = await stack.enter_async_context(
            open_writer(
                "risk",
                location,
                clock=found_clock,
                ids=found_ids,
                checkpoint=_checkpointing(home),
                witnesses=await recent_witnesses(readers.values(), "risk"),
            )
        )
        redis = await stack.enter_async_context(open_redis(home, desk, "risk", required=False))
        market = await stack.enter_async_context(
            MarketStreamView(
                redis,
                desk.desk,
                load_feed_key(home.keys("market") / "feed.hmac"),
                found_clock,
                set(Feed) if desk.mode is Mode.PAPER else {Feed.LIVE},
            )
        )
        service = RiskService(
            RiskParts(
                ledger=ledger,
                execution=readers["execution"],
                coordinator=readers["coordinator"],
                market=market,
                last_trade=market.last_trade,
                signer=signer,
                clock=found_clock,
                ids=found_ids,
                heartbeats=RedisHeartbeatSink(redis, desk.key("risk", "heartbeat")),
                limits=limits,
                document=document,
                desk=desk.desk,
                mode=desk.mode,
                account_id=desk.account_id,
                venue=desk.venue,
                quote=desk.quote,
                symbols=desk.symbols,
                data_of=desk.market_instrument,
                keys=pinned_keys(home),
                operator=_operator(home),
                operator_directory=home.run / "operator",
                heads=[partial(newest_head, home, room) for room in _OTHERS],
                own_head=partial(newest_head, home, "risk"),
                closes=ArchiveCloses(candles),
                notify_url=risk.notify_url,
                bars=ArchiveCloses(candles),
                score_model=risk.score_model,
                wakeups=RedisSubscriber(redis, desk.desk).wakeups((Category.TRADING,)),
            )
        )
        await service.start()
        jobs = _jobs(service, ledger, redis, desk, risk)
        jobs.append(lambda: service.live.surveillance.run(market.subscribe(every_book=True)))
        async with _background(service, jobs, on_failure):
            yield service


def _jobs(
    service: RiskService, ledger: Ledger, redis: Redis, desk: DeskSettings, risk: RiskSettings
) -> list[Callable[[], Awaitable[None]]]:
    relay = OutboxRelay(ledger, RedisPublisher(redis, desk.desk), RedisCursor(redis, desk.desk, "risk"))

    async def witness() -> None:
        await service.witness()

    async def score() -> None:
        await service.scores.refresh(service.frame())

    return [
        service.live.follower.run,
        service.live.alerts.run,
        lambda: hear_execution(service, redis, desk.key("execution", "heartbeat")),
        lambda: _every(PERIOD_S, service.tick),
        lambda: _every(risk.witness_every_s, witness),
        lambda: _every(SCORE_EVERY_S, score),
        relay.run,
    ]


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again; what it can wait out is logged, anything else ends the room."""
    while True:
        try:
            await work()
        except LedgerError as error:
            if error.code == "LEASE_LOST":
                raise
            log.warning("not done now, tried again: %s", error.code)
        await asyncio.sleep(seconds)


@asynccontextmanager
async def _background(
    service: RiskService, jobs: list[Callable[[], Awaitable[None]]], on_failure: Callable[[], None]
) -> AsyncGenerator[None]:
    async def run(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except Exception as error:
            detail = error.code if isinstance(error, TradingError) else type(error).__name__
            log.critical("risk cannot go on (%s); it stops answering", detail, exc_info=True)
            service.failed = f"risk has stopped: {detail}"
            on_failure()

    tasks = [asyncio.create_task(run(job), name=f"risk-{number}") for number, job in enumerate(jobs)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await service.stop()  # last, so that the ledger ends with it: that is how the next start knows


def pinned_keys(home: DeskHome) -> PinnedKeys | None:
    """Return the operator's pinned public keys of voters and leader; None without a leader's key.

    Raises:
        ConfigurationError: a key file is not a key.
    """
    leader = home.public_keys / "leader.pub"
    if not leader.exists():
        return None
    agents = {
        AgentId(path.stem.removeprefix("agent-")): load_public_key(path)
        for path in sorted(home.public_keys.glob("agent-*.pub"))
    }
    return PinnedKeys(
        agents=agents,
        voters=Ed25519Verifier.of(*agents.values()),
        leader=Ed25519Verifier.of(load_public_key(leader)),
    )


def _operator(home: DeskHome) -> Ed25519Verifier | None:
    path = home.public_keys / "operator.pub"
    return Ed25519Verifier.of(load_public_key(path)) if path.exists() else None


def _checkpointing(home: DeskHome) -> Checkpointing:
    signer = load_signer(home.keys("risk") / "checkpoint.key", "checkpoint")
    return Checkpointing(path=home.checkpoints("risk"), signer=signer, public_key=signer.public_key)
