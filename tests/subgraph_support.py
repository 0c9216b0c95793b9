"""A local server that answers as a Uniswap v3 subgraph does, by the schema of its pools and days."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

DAY_S = 86_400


@dataclass
class SubgraphServer:
    """What the indexer knows; tests change it."""

    block: int = 19_876_543
    timestamp: int | None = 1_750_000_000
    flawed: bool = False
    pools: dict[str, dict[str, Any]] = field(default_factory=dict)
    body: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)

    def add_pool(self, address: str, token0: str, token1: str, **changed: Any) -> None:
        row = {
            "id": address.lower(),
            "feeTier": "3000",
            "txCount": "1234567",
            "totalValueLockedUSD": "4600123.25",
            "volumeUSD": "987654321.123456789012345678901234",
            "token0": {"id": token0.lower(), "symbol": "WETH", "decimals": "18"},
            "token1": {"id": token1.lower(), "symbol": "USDC", "decimals": "6"},
            "poolDayData": [self.day(20_000)],
        }
        self.pools[address.lower()] = {**row, **changed}

    def day(self, number: int, **changed: Any) -> dict[str, Any]:
        prices = dict.fromkeys(("open", "high", "low", "close"), "2000.123456789012345678901234567890123")
        sums = {"volumeUSD": "98765.4321", "tvlUSD": "4600123.25", "feesUSD": "296.2962963"}
        return {"date": number * DAY_S, **sums, **prices, **changed}

    def meta(self) -> dict[str, Any]:
        block = {"number": self.block, "hash": "0x" + "ab" * 32, "timestamp": self.timestamp}
        return {"block": block, "hasIndexingErrors": self.flawed}

    def answer(self, query: str) -> dict[str, Any]:
        """Carry out one of the queries that the client makes."""
        self.queries.append(query)
        data: dict[str, Any] = {"_meta": self.meta()}
        first = int(re.findall(r"(?:pools|poolDayDatas)\(first: (\d+)", query)[0])
        assert query.count("{") == query.count("}")
        assert 1 <= first <= 1_000  # what an indexer allows
        named = re.findall(r'"(0x[0-9a-f]{40})"', query)
        if "poolDayDatas(" in query:
            assert named[0] in self.pools
            data["poolDayDatas"] = [self.day(20_000 - index) for index in range(min(first, 40))]
        elif "id_in" in query:
            data["pools"] = [self.pools[name] for name in named if name in self.pools][:first]
        else:
            found = [row for row in self.pools.values() if named[0] in (row["token0"]["id"], row["token1"]["id"])]
            found.sort(key=lambda row: float(row["totalValueLockedUSD"]), reverse=True)
            data["pools"] = found[:first]
        return {"data": data}


@asynccontextmanager
async def subgraph_server(server: SubgraphServer) -> AsyncGenerator[str]:
    """Serve on a free loopback port and yield the URL, which carries a key as gateways' URLs do."""

    async def handle(request: web.Request) -> web.Response:
        if server.body is not None or server.status != 200:
            return web.Response(body=server.body or b"", status=server.status, headers=server.headers)
        return web.json_response(server.answer((await request.json())["query"]))

    application = web.Application()
    application.router.add_post("/api/sk-key/subgraphs/id", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/api/sk-key/subgraphs/id"
    finally:
        await runner.cleanup()
