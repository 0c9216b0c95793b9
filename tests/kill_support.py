"""A desk of real processes that nobody restarts, on a market that the test moves: what is killed stays dead."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from coordinator.agents import AGENT_IDS
from grekko.audit import DeskAudit, audit_desk
from grekko.initialization import initialize
from grekko.ledgers import open_ledgers, read_events
from grekko.processes import ROOM_MODULES, Room, start_room, stop_process
from grekko.supervisor import answers
from mcp_servers.hosting import call, open_client
from tests.live_market_support import until
from tests.venue_wire_support import DIALECTS, rest_records
from trading.adapters.clock import SystemClock
from trading.adapters.config import DeskSettings
from trading.adapters.embedded_redis import BusSettings, EmbeddedRedis
from trading.domain.errors import TradingError
from trading.domain.events import AlarmRaised, EventEnvelope, OrderInitialized
from trading.domain.standing_exits import PROTECTION
from trading.testing.venue_wire import BookChange, Event, StartingBook, Tape, VenueServer

SYMBOL = "BTC/USDT"
BUY = {"symbol": SYMBOL, "side": "buy", "type": "market"}
ROOMS = tuple(ROOM_MODULES)
_LEVELS = 5
#: An ask that nothing depends on; it comes and goes so that the book is always news.
_FAR = "100000"


class ScriptedMarket:
    """A venue on the wire whose book is what the test says, and which repeats it so that it never goes stale."""

    def __init__(self, bid: str) -> None:
        self._events: list[Event] = []
        self._bid, self._depth = Decimal(bid), Decimal(5)
        self._last_id, self._beat = 1_000, 0
        bids, asks = self._book()
        # The list grows while the tape is played: a tape reads its events only when they are due.
        tape = Tape({SYMBOL: StartingBook(bids, asks, self._last_id, 0)}, cast("tuple[Event, ...]", self._events))
        clock = SystemClock()
        self.server = VenueServer(
            DIALECTS["binance"], tape, rest_records()["binance"], clock_us=lambda: clock.now_ms() * 1_000
        )

    def _book(self) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
        bids = tuple((str(self._bid - level), str(self._depth)) for level in range(_LEVELS))
        asks = tuple((str(self._bid + 1 + level), str(self._depth)) for level in range(_LEVELS))
        return bids, asks

    async def price(self, bid: str, depth: str = "5") -> None:
        """Move the whole market at once; every one of five levels on each side holds ``depth``."""
        before = self._book()
        self._bid, self._depth = Decimal(bid), Decimal(depth)
        gone = tuple(tuple((price, "0") for price, _ in side) for side in before)
        bids, asks = self._book()
        await self._play((*gone[0], *bids), (*gone[1], *asks))

    async def _play(self, bids: tuple[tuple[str, str], ...], asks: tuple[tuple[str, str], ...]) -> None:
        self._last_id += 1
        self._events.append(BookChange(SYMBOL, self._last_id, self._last_id, bids, asks, self._last_id))
        await self.server.play(1)

    async def _repeat(self) -> None:
        while True:
            self._beat += 1
            await self._play((), ((_FAR, f"0.{1 + self._beat % 9}"),))
            await self._play((), ((_FAR, "0"),))
            await asyncio.sleep(0.1)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[ScriptedMarket]:
        async with self.server:
            task = asyncio.create_task(self._repeat())
            try:
                yield self
                if task.done():
                    task.result()
            finally:
                task.cancel()
                await asyncio.wait({task})


class KillDesk:
    """Rooms as processes of their own, without a supervisor: what is killed stays dead until the test starts it.

    Args:
        stop_at: where a stop is to be, ``venue`` or ``desk``.
    """

    def __init__(self, home: Path, config: str, stop_at: str) -> None:
        self.settings = DeskSettings.model_validate({"home": home, "REDIS_URL": None, "DATABASE_URL": None})
        self.home = self.settings.desk_home.ensure()
        self.home.config_file.write_text(config, encoding="utf-8")
        initialize(self.settings)
        self.redis = EmbeddedRedis(self.home, self.settings, BusSettings())
        self.stop_at = stop_at
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._asked = 0

    async def start(self, *names: str) -> None:
        """Start rooms and return when each answers."""
        env = {"GREKKO_MARKET_SOURCE": "live", "GREKKO_COORDINATOR_ROOMS": "socket"}
        for name in names:
            self.processes[name] = await start_room(Room(name, ROOM_MODULES[name], environment=env), self.home)
        for name in names:
            await until(lambda name=name: self.answers(name), f"{name} answers", self.tail, timeout_s=60)

    async def answers(self, name: str) -> bool:
        return await answers(self.home.socket(name))

    async def kill(self, *names: str) -> None:
        """Kill processes at once, as the machine's out-of-memory killer would."""
        for name in names:
            self.signal(name, signal.SIGKILL)
        for name in names:
            if name != "redis":
                await self.processes.pop(name).wait()
        if "redis" in names:
            await until(lambda: not self.redis.alive(), "Redis is dead", self.tail)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a room or to ``redis``."""
        pid = self.redis.pid() if name == "redis" else self.processes[name].pid
        assert pid is not None
        os.kill(pid, number)

    @asynccontextmanager
    async def without_redis(self) -> AsyncGenerator[None]:
        """Kill Redis and keep every process from starting it again for the length of the block."""
        async with self.redis.start_lock():  # whoever would start it waits for this lock
            await self.kill("redis")
            yield
            assert not self.redis.alive()

    async def ask(self, room: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool."""
        async with open_client(f"unix:{self.home.socket(room)}") as client:
            return await call(client, f"{room}_{tool}", **arguments)

    # --- what is asked for and seen ------------------------------------------------------------------------------

    async def approval(self) -> str:
        """Return the id of a signed purchase of about 0.01; no two are of one size, or they would be duplicates."""
        self._asked += 1
        amount = str(Decimal("0.01") + self._asked * Decimal("0.0001"))
        answer = await self.ask("risk", "request_approval", request_id=f"r-{self._asked}", **BUY, amount=amount)
        assert answer["approved"] == 1, answer
        return answer["approval_ids"][0]

    async def submit(self, approval_id: str) -> dict[str, Any]:
        return await self.ask("execution", "submit_order", approval_id=approval_id)

    async def refused(self, approval_id: str) -> str:
        """Return the code by which execution refuses an approval."""
        try:
            receipt = await self.submit(approval_id)
        except TradingError as error:
            return error.code
        raise AssertionError(f"it was taken: {receipt}")

    async def would_trade(self) -> bool:
        check = await self.ask("risk", "check_order", **BUY, amount="0.02")
        return bool(check["passed"]) and bool((await self.ask("execution", "get_status"))["safe_to_trade"])

    async def position(self) -> dict[str, Any] | None:
        """Return the open position with its stop, None when flat."""
        rows = (await self.ask("execution", "get_account"))["positions"]
        return next((row for row in rows if Decimal(row["quantity"])), None)

    async def is_flat(self) -> bool:
        return await self.position() is None

    async def is_blind(self) -> bool:
        """Return whether execution says that it has no price for the position."""
        return "PROTECTION_BLIND" in " ".join((await self.ask("execution", "get_status"))["reasons"])

    async def is_deaf(self) -> bool:
        """Return whether execution has not heard risk for longer than it takes new risk."""
        heard_ms = (await self.ask("execution", "get_status"))["risk_heard_ms_ago"]
        return heard_ms is None or heard_ms > 3_000

    async def until_flat(self) -> None:
        await until(self.is_flat, "the position is closed", self.tail)

    async def release(self, approval_id: str) -> None:
        """Give back an approval that was never used."""
        await self.ask("risk", "release_approval", approval_id=approval_id)

    async def open_position(self) -> dict[str, Any]:
        """Buy, and return the position once its stop stands."""
        receipt = await self.submit(await self.approval())
        assert receipt["state"] == "filled", receipt

        async def stopped() -> bool:
            row = await self.position()
            return row is not None and row["stop"]["price"] is not None and row["stop"]["at"] == self.stop_at

        await until(stopped, f"the stop is at the {self.stop_at}", self.tail)
        found = await self.position()
        assert found is not None
        return found

    async def events(self, room: str) -> list[EventEnvelope]:
        async with open_ledgers(self.settings) as ledgers:
            return [event async for event in read_events(ledgers.reader(room))]

    async def alarms(self) -> list[str]:
        return [e.payload.code for e in await self.events("execution") if isinstance(e.payload, AlarmRaised)]

    def tail(self) -> str:
        """Return the end of every room's log, less the successful calls."""
        texts: list[str] = []
        for log in sorted(self.home.logs.glob("*.log")):
            lines = [line[:300] for line in log.read_text(errors="replace").splitlines() if "outcome=ok" not in line]
            texts.append("\n".join([f"== {log.name}", *lines[-15:]]))
        return "\n".join(texts)

    # --- the end -------------------------------------------------------------------------------------------------

    async def conclude(self, *, bought: int) -> DeskAudit:
        """Start what is dead, and check that nothing is left, doubled, unproven or was ever let through.

        Args:
            bought: how many entries the test meant to happen.
        """
        await self.start(*(name for name in ROOMS if name not in self.processes))

        async def settled() -> bool:
            exposure, risk = await self.ask("risk", "get_exposure"), await self.ask("risk", "get_status")
            held = [row for row in exposure["instruments"] if Decimal(row["held"])]
            return not held and exposure["reservations"] == 0 and risk["open_reservations"] == 0

        await until(settled, "risk counts nothing any more", self.tail, timeout_s=90)
        assert await self.is_flat()
        assert (await self.ask("execution", "list_orders"))["orders"] == []  # no stop is left at the venue
        reconciled = await self.ask("execution", "reconcile")
        assert (reconciled["clean"], reconciled["complete"]) == (True, True), reconciled
        await self.stop()
        orders = [e.payload for e in await self.events("execution") if isinstance(e.payload, OrderInitialized)]
        entries = [order for order in orders if order.agent_id != PROTECTION]
        assert len(entries) == bought, entries
        slices = [(order.exit_slice.exit_id, order.exit_slice.number) for order in orders if order.exit_slice]
        assert len(slices) == len(orders) - bought
        assert len(set(slices)) == len(slices)  # at most one order for each slice
        audit = await audit_desk(self.settings)
        assert audit.findings == []
        assert audit.invariants() == dict.fromkeys(audit.invariants(), True), audit.venue
        assert audit.unresolved == 0
        assert audit.proofs.checked["orders"] == len(orders)
        return audit

    async def stop(self) -> None:
        """Stop every room in order."""
        for name in reversed(ROOMS):
            if name in self.processes:
                assert await stop_process(self.processes.pop(name)) == 0, self.tail()

    async def clear(self) -> None:
        """Kill whatever is left."""
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if (pid := self.redis.pid()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def configuration(market: ScriptedMarket, stop_at: str, execution: str, protection: str) -> str:
    """Return the config of a desk whose agents may add no risk: only what the test asks for can happen."""
    native = "true" if stop_at == "venue" else "false"
    agents = "\n".join(f'[risk.limits.agents.{agent}]\nauthority = "denied"\n' for agent in AGENT_IDS)
    return f"""\
market_venue = "binance"
symbols = ["{SYMBOL}"]

[market]
source = "live"
backfill = false

[bus]
prefer_bundled = true

[venues.binance]
rest_url = "{market.server.rest_url}"
ws_url = "{market.server.ws_url}"

[execution.protection]
native = {native}
{execution}

[risk.limits.symbols."{SYMBOL}".protection]
stop_bps = "200"
{protection}

{agents}
"""


@asynccontextmanager
async def kill_desk(
    *, stop_at: str = "venue", execution: str = "", protection: str = ""
) -> AsyncGenerator[tuple[KillDesk, ScriptedMarket]]:
    """Yield a running desk on a market of its own at 60,000; whatever is left of it at the end is killed.

    Args:
        stop_at: whether stops rest at the ``venue`` or are watched at the ``desk`` only.
        execution: further lines of ``[execution.protection]``.
        protection: further lines of the symbol's stops; the fixed one lies 2 % away.
    """
    with tempfile.TemporaryDirectory(prefix="grekko-kill-") as directory:
        async with ScriptedMarket("60000").open() as market:
            config = configuration(market, stop_at, execution, protection)
            desk = KillDesk(Path(directory) / "desk", config, stop_at)
            try:
                await desk.start(*ROOMS)
                await until(desk.would_trade, "the desk would trade", desk.tail, timeout_s=60)
                yield desk, market
            finally:
                await desk.clear()
