"""The market server and its tools."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from mcp_servers.desk_resources import ResourceBus, serve_completions, serve_subscriptions
from mcp_servers.hosting import DeskServer, build_server, load_authorization, tool_kind
from mcp_servers.market import prompts, resources
from mcp_servers.market.bootstrap import open_market
from mcp_servers.market.chart.app import chart_page
from mcp_servers.market.service import MarketService
from mcp_servers.market.settings import MarketSettings, check_allowed, load_market_settings
from mcp_servers.market.tools import analysis, candles, chart, instruments, news, onchain, prices, status
from trading.adapters.config import load_settings

_INSTRUCTIONS: Final = """
    Market data of this desk: prices, order books, candles, trading rules. It holds no key and cannot trade.
    Prices age: look at `stale` before you use one, and at market_get_status when one is stale or missing.
    `source` says whether the data is live or a replayed recording.
    Symbols are spot, BASE/QUOTE such as BTC/USDT; prices and amounts are decimal strings.
"""


def build(market: MarketSettings | None = None) -> DeskServer[MarketService]:
    """Read the settings and return the server; nothing is connected before its lifespan.

    Args:
        market: instead of the ``[market]`` section.

    Raises:
        ConfigurationError: the configuration refuses to start.
    """
    desk, chosen = load_settings(), market or load_market_settings()
    check_allowed(desk, chosen)
    bus = ResourceBus()

    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[MarketService]:
        async with open_market(desk, chosen) as service, resources.cueing(service.prices.subscribe_books, bus):
            yield service

    server: DeskServer[MarketService] = build_server(
        "grekko-market",
        title="Market",
        instructions=_INSTRUCTIONS,
        lifespan=lifespan,
        mode=desk.mode,
        authorization=load_authorization(),
        subscriptions=bus,
        extensions=[chart_page()],
    )
    register(server)
    resources.register(server, desk.symbols)
    serve_subscriptions(server, bus, may_follow=resources.may_follow)
    serve_completions(server, resources.complete)
    prompts.register(server)
    return server


def register(server: DeskServer[MarketService]) -> None:
    """Add the market tools to a server."""
    kind = partial(tool_kind, server, read_only=True, destructive=False, idempotent=True, scope="market:read")
    desk, world = kind(open_world=False), kind(open_world=True)
    for group in (prices, status):
        group.register(desk)
    for group in (candles, analysis, chart, instruments, onchain, news):  # these may ask a venue or a node
        group.register(world)
