"""Wires the execution room.

Order: settings and keys, then the ledger's lock and lease (one process per account), then bus and market, then the
service's own start (replay, reconcile), and only then do tools act. Until the market's rules have arrived they answer
STARTING, so that a host which starts all servers at once need not wait for one of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final, cast

from redis.asyncio import Redis

from mcp_servers.execution import background
from mcp_servers.execution.gate import GateRules
from mcp_servers.execution.protection.rules import ProtectionRules
from mcp_servers.execution.service import ExecutionParts, ExecutionService
from mcp_servers.execution.settings import ExecutionSettings, check_allowed
from trading.adapters.clock import SystemClock, Uuid7Factory
from trading.adapters.config import DeskHome, DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.adapters.ledger_follower import LedgerFollower
from trading.adapters.market_stream import MarketFeed, MarketStreamView, load_feed_key
from trading.adapters.outbox import OutboxRelay, RedisCursor
from trading.adapters.redis_streams import RedisPublisher, RedisSubscriber
from trading.adapters.signing import Ed25519Verifier, key_id_of, load_public_key
from trading.adapters.signing_keys import load_signer
from trading.adapters.sql.checkpoints import Checkpointing
from trading.adapters.sql.location import LedgerLocation
from trading.adapters.sql.opening import open_reader, open_writer
from trading.adapters.sql.witnesses import recent_witnesses
from trading.adapters.venues.paper.latency import Latency, LatencySettings, SeededLatency
from trading.adapters.venues.paper.venue import PaperVenue, PaperVenueSettings
from trading.domain.errors import TradingError, Unavailable
from trading.domain.events import Category
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Feed
from trading.ports.clock import Clock, IdFactory
from trading.ports.ledger import Ledger, LedgerReader
from trading.ports.venue import VenueReport

log = logging.getLogger(__name__)

JOURNAL: Final = "paper.journal"
_INSTRUMENT_POLL_S: Final = 0.05
_PROMPT_START_S: Final = 1.5
_EX_TEMPFAIL: Final = 75  # sysexits.h: try again later; whoever supervises us starts us again


class ExecutionRoom:
    """What the tools hold: the service as soon as there is one."""

    def __init__(self, desk: DeskSettings) -> None:
        self.desk = desk
        self.started = asyncio.Event()
        self._service: ExecutionService | None = None

    @property
    def service(self) -> ExecutionService:
        """The running service.

        Raises:
            Unavailable: STARTING, the market's rules have not arrived yet.
        """
        if self._service is None:
            raise Unavailable(
                "execution is starting: it waits for the market server's instrument rules",
                code="STARTING",
                suggestion="start the market server, then ask again",
            )
        return self._service

    def open(self, service: ExecutionService) -> None:
        """Let the tools in."""
        self._service = service
        self.started.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What the room is connected to.

    Attributes:
        redis: None without a bus.
        latency: how long the paper venue's messages travel, None for not at all.
    """

    desk: DeskSettings
    settings: ExecutionSettings
    ledger: Ledger
    approvals: LedgerReader
    market: MarketFeed
    verifier: Ed25519Verifier
    rules: GateRules
    clock: Clock
    ids: IdFactory
    redis: Redis | None
    latency: Latency | None = None


def stop_at_once() -> None:
    """End the process without another step: its memory is not to be trusted, the ledger and the venue are."""
    logging.shutdown()
    os._exit(_EX_TEMPFAIL)


@asynccontextmanager
async def open_execution(
    desk: DeskSettings,
    settings: ExecutionSettings,
    *,
    clock: Clock | None = None,
    ids: IdFactory | None = None,
    on_failure: Callable[[], None] = stop_at_once,
) -> AsyncGenerator[ExecutionRoom]:
    """Run the room for the length of an ``async with`` block.

    Args:
        clock, ids: the machine's unless a test says otherwise.
        on_failure: called when the ledger failed or a background task died; the default ends the process.

    Raises:
        ConfigurationError: mode without a venue, missing keys, a home open to others, or another execution process.
    """
    check_allowed(desk)
    clock, ids = clock or SystemClock(), ids or Uuid7Factory()
    home = desk.desk_home.ensure()
    risk_key = load_public_key(home.public_keys / "risk-approval.pub")
    rules = gate_rules(desk, settings, risk_key)
    location = LedgerLocation.of(desk)
    async with AsyncExitStack() as stack:
        readers = {
            room: await stack.enter_async_context(open_reader(room, location)) for room in ("risk", "coordinator")
        }
        checkpoint = _checkpointing(home)
        witnesses = await recent_witnesses(readers.values(), "execution")
        ledger = await stack.enter_async_context(
            open_writer("execution", location, clock=clock, ids=ids, checkpoint=checkpoint, witnesses=witnesses)
        )
        redis = await stack.enter_async_context(open_redis(home, desk, "execution", required=False))
        feed_key = load_feed_key(home.keys("market") / "feed.hmac")
        market = await stack.enter_async_context(MarketStreamView(redis, desk.desk, feed_key, clock, _ACCEPTED))
        wiring = Wiring(
            desk=desk,
            settings=settings,
            ledger=ledger,
            approvals=readers["risk"],
            market=market,
            verifier=Ed25519Verifier.of(risk_key),
            rules=rules,
            clock=clock,
            ids=ids,
            redis=redis,
            latency=_latency(settings),
        )
        async with running(wiring, on_failure=on_failure) as room:
            yield room


#: The paper venue may trade on any feed that the market room has signed.
_ACCEPTED: Final = frozenset(Feed)


@asynccontextmanager
async def running(wiring: Wiring, *, on_failure: Callable[[], None]) -> AsyncGenerator[ExecutionRoom]:
    """Run service and background work on what they are connected to."""
    room = ExecutionRoom(wiring.desk)
    stop = asyncio.Event()
    task = asyncio.create_task(_run(room, wiring, stop), name="execution")
    task.add_done_callback(lambda done: _report_end(done, on_failure))
    waiter = asyncio.create_task(room.started.wait())
    await asyncio.wait({task, waiter}, timeout=_PROMPT_START_S, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    try:
        if task.done():
            task.result()  # raises why it could not start
        yield room
    finally:
        stop.set()
        await asyncio.wait({task})


def _report_end(task: asyncio.Task[None], on_failure: Callable[[], None]) -> None:
    if task.cancelled() or (error := task.exception()) is None:
        return
    leaf: BaseException = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = cast("BaseExceptionGroup[BaseException]", leaf).exceptions[0]
    if isinstance(leaf, TradingError):
        log.critical("execution stops: %s %s", leaf.code, leaf)
    else:
        log.critical("execution stops: a background task failed", exc_info=error)
    on_failure()


async def _run(room: ExecutionRoom, wiring: Wiring, stop: asyncio.Event) -> None:
    instruments = await _first_of(_instruments(wiring), stop)
    if instruments is None:
        return
    venue = open_venue(wiring, instruments)
    try:
        for each in instruments:
            book = wiring.market.book(wiring.desk.market_instrument(each.id))
            if book is not None:
                venue.on_book(replace(book, instrument_id=each.id))
        reports = venue.reports()  # before the start, so that nothing falls between reconciling and listening
        names = {wiring.desk.market_instrument(each.id): each.id for each in instruments}
        service = ExecutionService(_parts(wiring, venue, {ours: theirs for theirs, ours in names.items()}))
        await service.start()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in _loops(service, wiring, venue, reports, names)]
            room.open(service)
            await stop.wait()
            await service.stop("shutdown")
            for task in tasks:
                task.cancel()
    finally:
        await venue.aclose()


async def _instruments(wiring: Wiring) -> list[Instrument]:
    """Wait for the rules of every symbol of the desk, under the venue's name."""
    wanted = [InstrumentId(wiring.desk.venue, symbol) for symbol in wiring.desk.symbols]
    logged = False
    while True:
        found = [wiring.market.instrument(wiring.desk.market_instrument(each)) for each in wanted]
        rules = [replace(rule, id=name) for rule, name in zip(found, wanted, strict=True) if rule is not None]
        if len(rules) == len(wanted):
            return rules
        if not logged:
            log.info("waiting for the market server's instrument rules")
            logged = True
        await asyncio.sleep(_INSTRUMENT_POLL_S)


async def _first_of(work: object, stop: asyncio.Event) -> list[Instrument] | None:
    task = asyncio.ensure_future(cast("asyncio.Future[list[Instrument]]", work))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


def _loops(
    service: ExecutionService,
    wiring: Wiring,
    venue: PaperVenue,
    reports: AsyncIterator[VenueReport],
    names: Mapping[InstrumentId, InstrumentId],
) -> list[background.Loop]:
    """Return everything that runs beside the tools."""
    settings, desk, redis = wiring.settings, wiring.desk, wiring.redis
    repair_every_ms = settings.reconcile_every_s * 1_000
    loops: list[background.Loop] = [
        background.until_broken(service),
        background.act_on_news(service),
        service.mandates.run(),
        background.take_reports(service, reports),
        background.feed_venue(
            venue, wiring.market.subscribe(), background.relabeller(dict(names)), service.stop_loss.on_book
        ),
        service.stop_loss.run(),
        background.every(background.LAPSE_EVERY_S, service.fates.lapse_due),
        background.every(background.RELEASE_EVERY_S, service.fates.void_requested),
        background.every(
            background.REPAIR_EVERY_S, lambda: background.repair(service, reconcile_every_ms=repair_every_ms)
        ),
    ]
    wakeups = None
    if redis is not None:
        wakeups = RedisSubscriber(redis, desk.desk).wakeups((Category.RISK,))
        relay = OutboxRelay(wiring.ledger, RedisPublisher(redis, desk.desk), RedisCursor(redis, desk.desk, "execution"))
        loops += [
            background.hear_risk(service, redis, desk.key("risk", "heartbeat")),
            background.tell_the_desk(service, redis, desk.key("execution", "heartbeat")),
            relay.run(),
            background.every(background.WITNESS_EVERY_S, lambda: background.witness_risk(service, desk.desk_home)),
        ]
    follower = LedgerFollower(wiring.approvals, wakeups=wakeups, from_seq=service.risk_seq)
    loops.append(background.follow_approvals(service, aiter(follower)))
    return loops


def open_venue(wiring: Wiring, instruments: list[Instrument]) -> PaperVenue:
    """Open the paper venue on its journal in the desk's home.

    Raises:
        ConfigurationError: the journal is damaged, in use, or of another account or instrument.
    """
    desk = wiring.desk
    return PaperVenue(
        PaperVenueSettings(
            name=desk.venue,
            account_id=desk.account_id,
            instruments=instruments,
            deposits=desk.opening_balances,
            journal=desk.desk_home.venue / JOURNAL,
            fsync=wiring.settings.venue_fsync,
        ),
        wiring.clock,
        wiring.latency,
    )


def _parts(wiring: Wiring, venue: PaperVenue, price_source: Mapping[InstrumentId, InstrumentId]) -> ExecutionParts:
    return ExecutionParts(
        ledger=wiring.ledger,
        approvals=wiring.approvals,
        venue=venue,
        market=wiring.market,
        verifier=wiring.verifier,
        rules=wiring.rules,
        clock=wiring.clock,
        ids=wiring.ids,
        price_source=price_source,
        opening_balances=wiring.desk.opening_balances,
        quote=wiring.desk.quote,
        answer_timeout_s=wiring.settings.answer_timeout_ms / 1_000,
        spacing_ms=wiring.settings.absent_spacing_ms,
        protection=protection_rules(wiring.settings),
    )


def protection_rules(settings: ExecutionSettings) -> ProtectionRules:
    """Return how the stop-loss manager goes about it."""
    wanted, known = settings.protection, ProtectionRules()
    return replace(
        known,
        native=wanted.native,
        step_bps=wanted.step_bps,
        close_blind_ms=None if wanted.close_blind_after_s is None else wanted.close_blind_after_s * 1_000,
    )


def gate_rules(desk: DeskSettings, settings: ExecutionSettings, risk_public_key: str) -> GateRules:
    """Return what this server is and how strict its gate is."""
    return GateRules(
        mode=desk.mode,
        account_id=desk.account_id,
        venue=desk.venue,
        key_id=key_id_of(risk_public_key),
        max_clock_skew_ms=settings.max_clock_skew_ms,
        ttl_max_ms=settings.ttl_max_ms,
        heartbeat_age_max_ms=settings.heartbeat_age_max_ms,
        price_age_max_ms=settings.price_age_max_ms,
    )


def _checkpointing(home: DeskHome) -> Checkpointing:
    signer = load_signer(home.keys("execution") / "checkpoint.key", "checkpoint")
    path = home.checkpoints("execution")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Checkpointing(path=path, signer=signer, public_key=signer.public_key)


def _latency(settings: ExecutionSettings) -> Latency | None:
    if not settings.venue_latency_ms:
        return None
    return SeededLatency(LatencySettings(median_ms=float(settings.venue_latency_ms)), seed=settings.venue_seed)
