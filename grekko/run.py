"""`grekko run`: initialise, start every room, show what happens, stop in order, audit, report."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from grekko.audit import DeskAudit, audit_desk
from grekko.initialization import initialize
from grekko.ledgers import Ledgers, open_ledgers
from grekko.live_view import Moment, PlainLog, render
from grekko.market_watch import MarketWatch
from grekko.picture import DeskPicture
from grekko.processes import ROOM_MODULES, Room
from grekko.report import RunFacts, build_report, write_report
from grekko.supervisor import Supervisor, supervise
from grekko.wording import number
from mcp_servers.execution.settings import check_allowed
from mcp_servers.market.settings import check_allowed as check_market
from mcp_servers.market.settings import load_market_settings
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import open_redis
from trading.domain.money import parse_decimal

_REFRESH_S = 0.25
_MARKET_GONE_S = 3.0  # the recording has ended when the market stays silent for this long


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line asked for.

    Attributes:
        market: ``replay`` or ``live``.
        speed: of the replay; 1 is real time.
        seconds: how long to run; None until interrupted or the recording ends.
        seed: of everything random in the paper venue and the agents.
        loop: start the recording again when it ends.
    """

    market: str
    speed: float
    seconds: float | None
    seed: int
    loop: bool
    report: Path | None


def desk_rooms(options: RunOptions) -> list[Room]:
    """Return the rooms of a desk in the order in which they start."""
    environment = {
        "GREKKO_MARKET_SOURCE": options.market,
        "GREKKO_MARKET_SPEED": str(options.speed),
        "GREKKO_MARKET_LOOP": str(options.loop).lower(),
        "GREKKO_EXECUTION_VENUE_SEED": str(options.seed),
        "GREKKO_COORDINATOR_ROOMS": "socket",  # never start rooms of its own beside the supervised ones
    }
    return [Room(name, module, environment=environment) for name, module in ROOM_MODULES.items()]


async def run_desk(settings: DeskSettings, options: RunOptions, console: Console) -> bool:
    """Run a desk and return whether its audit verifies and no invariant broke.

    Raises:
        Unavailable: a room does not start, or another desk runs in this home.
        ConfigurationError: the home or the configuration is not fit to run.
    """
    check_allowed(settings)
    check_market(settings, load_market_settings().model_copy(update={"source": options.market}))
    initialize(settings)
    # Until the screen is up a SIGTERM acts as Ctrl-C does: it cancels, and the rooms started so far are stopped. Not by
    # raising SIGINT: a shell that puts us in the background has that one ignored.
    if (this := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    clock = SystemClock()
    started_ms = clock.now_ms()
    console.print(f"desk [bold]{settings.desk}[/] in {settings.home}, mode {settings.mode}, market {options.market}")
    watch = MarketWatch(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_redis(settings.desk_home, settings, "console"))
        hearing = stack.enter_context(ExitStack())  # until the rooms are stopped: a second Ctrl-C must not orphan them
        desk = await stack.enter_async_context(supervise(settings.desk_home, desk_rooms(options)))
        stop = hearing.enter_context(_told_to_stop())
        running_from = clock.monotonic_ns()
        async with _watching(watch), open_ledgers(settings) as ledgers:
            await _show(desk, ledgers, watch, settings, options, console, started_ms, stop)
        seconds = (clock.monotonic_ns() - running_from) / 1e9
        console.print("stopping the rooms in order")
    facts = RunFacts(
        mode=settings.mode,
        market=options.market,
        seconds=seconds,
        opening_marks=watch.opening,
        marks=watch.marks,
        restarts={name: room.restarts for name, room in desk.rooms.items()},
    )
    return await _conclude(settings, options, facts, console, started_ms)


@contextlib.contextmanager
def _told_to_stop() -> Generator[asyncio.Event]:
    """Yield what is set by Ctrl-C, by a request to end, and by a terminal that is closed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number_ in signals:
        loop.add_signal_handler(number_, stop.set)
    try:
        yield stop
    finally:
        for number_ in signals:
            loop.remove_signal_handler(number_)


@asynccontextmanager
async def _watching(watch: MarketWatch) -> AsyncGenerator[None]:
    task = asyncio.create_task(watch.run(), name="market-watch")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _show(
    desk: Supervisor,
    ledgers: Ledgers,
    watch: MarketWatch,
    settings: DeskSettings,
    options: RunOptions,
    console: Console,
    started_ms: int,
    stop: asyncio.Event,
) -> None:
    """Show the desk until it is told to stop, its time is over, or its recording ends."""
    loop = asyncio.get_running_loop()
    picture = DeskPicture(settings.account_id, since_ms=started_ms)
    plain = PlainLog(console)
    begun = loop.time()
    with _screen(console) as live:
        while not stop.is_set():
            await picture.refresh(ledgers)
            if live is None:
                plain.show(picture, watch.problem)
            else:
                live.update(render(picture, _moment(desk, watch, settings, options, loop.time() - begun)), refresh=True)
            if options.seconds is not None and loop.time() - begun >= options.seconds:
                return
            if _recording_ended(watch, options):
                console.print("the recording has ended")
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await stop.wait()


@contextlib.contextmanager
def _screen(console: Console) -> Generator[Live | None]:
    """Yield a live screen in a terminal, None elsewhere."""
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, screen=False, auto_refresh=False, transient=True) as live:
        yield live


def _recording_ended(watch: MarketWatch, options: RunOptions) -> bool:
    if options.market != "replay" or options.loop or not watch.quotes:
        return False
    return min(quote.age_ms for quote in watch.quotes.values()) > _MARKET_GONE_S * 1000


def _moment(
    desk: Supervisor, watch: MarketWatch, settings: DeskSettings, options: RunOptions, seconds: float
) -> Moment:
    speed = f" x{options.speed:g}" if options.market == "replay" else ""
    return Moment(
        title=f"grekko · {settings.desk} · {settings.mode} · {options.market}{speed}",
        seconds=seconds,
        quotes=tuple(watch.quotes.values()),
        market_problem=watch.problem,
        opening_marks=watch.opening,
        marks=watch.marks,
        rooms={name: room.ready.is_set() for name, room in desk.rooms.items()},
        quote_currency=settings.quote,
    )


async def _conclude(
    settings: DeskSettings, options: RunOptions, facts: RunFacts, console: Console, started_ms: int
) -> bool:
    """Read the whole run again from the stopped ledgers, audit it, report it."""
    picture = DeskPicture(settings.account_id, since_ms=started_ms)
    async with open_ledgers(settings) as ledgers:
        await picture.refresh(ledgers)
    audit = await audit_desk(settings)
    report = build_report(picture, audit, facts, quote=settings.quote)
    if options.report is not None:
        write_report(report, options.report)
        console.print(f"report written to {options.report}")
    counts = picture.counts
    console.print(
        f"{counts.proposals} proposals, {counts.votes} votes, {counts.decisions_approved} passed; "
        f"{counts.approvals} signed, {counts.denied} denied {dict(counts.denials)}; "
        f"orders {dict(picture.order_states())}, of which stops {dict(picture.stop_states())}"
    )
    console.print(
        f"net {number(parse_decimal(report['pnl']), places=2)} {settings.quote} "
        f"after {number(parse_decimal(report['fees']), places=2)} fees, in {facts.seconds:.0f} s"
    )
    show_verdict(audit, console)
    return audit.kept


def show_verdict(audit: DeskAudit, console: Console) -> None:
    """Print the audit's verdict, invariant by invariant, and the first findings."""
    for room, report in audit.rooms.items():
        mark = "[green]verified[/]" if report.verified else "[red]BROKEN[/]"
        console.print(f"audit {room}: {mark}, {report.events} events, {report.unproven} after the last signed head")
    for name, kept in audit.invariants().items():
        console.print(f"{'[green]ok[/]  ' if kept else '[red]BROKEN[/]'} {name.replace('_', ' ')}")
    for finding in audit.findings[:20]:
        console.print(f"[red]{finding.room}#{finding.seq}[/] {escape(finding.what)}")
    for difference in audit.venue.differences:
        console.print(f"[red]venue[/] {escape(difference)}")
