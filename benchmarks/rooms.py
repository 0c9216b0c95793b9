"""The real rooms as their own processes, on a desk of the benchmark's own in a scratch directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path

from mcp import Client

from benchmarks.parts import BTC_USDT, open_limits
from grekko.initialization import initialize
from grekko.processes import ROOM_MODULES, Room
from grekko.supervisor import supervise
from mcp_servers.hosting import call, call_reply, open_client
from trading.adapters.config import DeskSettings
from trading.domain.identifiers import Currency

#: No sum of a benchmark comes near it.
_DEPOSIT = Decimal(10_000_000_000)


class Rooms:
    """Clients of the running rooms, over their unix sockets.

    Attributes:
        clients: by room.
    """

    def __init__(self, settings: DeskSettings, clients: Mapping[str, Client]) -> None:
        self.settings = settings
        self.clients = clients

    async def quote(self) -> tuple[Decimal, Decimal]:
        """Return best bid and best ask as the market server tells them, waiting for the first book."""
        for _ in range(100):
            data = await call(self.clients["market"], "market_get_tickers", symbols=[BTC_USDT])
            ticker = data["tickers"][0]
            if ticker["bid"] is not None and ticker["ask"] is not None:
                return Decimal(ticker["bid"]), Decimal(ticker["ask"])
            await asyncio.sleep(0.05)
        raise AssertionError("the market server has no book")

    async def ready(self) -> None:
        """Wait until risk would sign and execution would send."""
        for _ in range(200):
            states = [await call(self.clients[room], f"{room}_get_status") for room in ("risk", "execution")]
            if all(state["safe_to_trade"] for state in states):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the rooms do not become ready")

    async def approve(self, orders: list[dict[str, str]], *, request_id: str) -> list[str]:
        """Have risk sign orders and return the ids of all approvals, page by page."""
        ids: list[str] = []
        cursor: str | None = None
        while len(ids) < len(orders):
            reply = await call_reply(
                self.clients["risk"], "risk_request_approval", request_id=request_id, orders=orders, cursor=cursor
            )
            assert reply["data"]["denied"] == 0, reply["data"]["denials"][:1]
            ids += reply["data"]["approval_ids"]
            cursor = reply["meta"].get("next_cursor")
        return ids


def limit_buys(price: Decimal, count: int, number: int, *, time_in_force: str = "gtc") -> list[dict[str, str]]:
    """Return small limit buys at or a little below a price, each batch at prices of its own."""
    return [
        {
            "symbol": BTC_USDT,
            "side": "buy",
            "type": "limit",
            "amount": "0.0002",
            "limit_price": f"{price - Decimal(count * (number % 16) + each) / 1000:.2f}",
            "time_in_force": time_in_force,
        }
        for each in range(count)
    ]


@asynccontextmanager
async def open_rooms(directory: Path, names: Sequence[str]) -> AsyncGenerator[Rooms]:
    """Initialise a desk with limits that no order meets, start some of its rooms, and stop them at the end."""
    settings = DeskSettings.model_validate(
        {"home": directory, "REDIS_URL": None, "DATABASE_URL": None, "opening_balances": {Currency("USDT"): _DEPOSIT}}
    )
    initialize(settings)
    config = settings.desk_home.config_file
    config.write_text(config.read_text(encoding="utf-8") + _sections(), encoding="utf-8")
    async with AsyncExitStack() as stack:
        started = [Room(name, ROOM_MODULES[name]) for name in names]
        await stack.enter_async_context(supervise(settings.desk_home, started))
        clients = {
            name: await stack.enter_async_context(open_client(f"unix:{settings.desk_home.socket(name)}"))
            for name in names
        }
        rooms = Rooms(settings, clients)
        await rooms.ready()
        yield rooms


def _sections() -> str:
    limits = open_limits()
    symbol = next(iter(limits.symbols.values()))
    return f"""
[market]
loop = true

[bus]
prefer_bundled = true

[risk.limits]
gross_exposure_max = "{limits.gross_exposure_max:f}"
net_exposure_max = "{limits.net_exposure_max:f}"
turnover_max = "{limits.turnover_max:f}"
desk_turnover_max = "{limits.desk_turnover_max:f}"
desk_open_orders_max = {limits.desk_open_orders_max}
venue_open_orders_max = {limits.venue_open_orders_max}
entries_max = {limits.entries_max}
loss_streak_max = {limits.loss_streak_max}
order_rate_per_s = {limits.order_rate_per_s}
order_burst = {limits.order_burst}
desk_rate_per_s = {limits.desk_rate_per_s}
desk_burst = {limits.desk_burst}
open_approvals_max = {limits.open_approvals_max}
reserved_notional_max = "{limits.reserved_notional_max:f}"
duplicate_window_ms = 0

[risk.limits.breaker]
denials = "off"
orders = "off"
agent_orders = "off"
order_children = "off"
order_value = "off"
rejections = "off"

[risk.limits.symbols."BTC/USDT"]
order_quantity_max = "{symbol.order_quantity_max:f}"
order_notional_max = "{symbol.order_notional_max:f}"
position_quantity_max = "{symbol.position_quantity_max:f}"
symbol_open_orders_max = {symbol.symbol_open_orders_max}
symbol_turnover_max = "{symbol.symbol_turnover_max:f}"
symbol_drift_max = "{symbol.symbol_drift_max:f}"
"""
