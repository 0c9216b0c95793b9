"""The subgraph client against a local server that speaks the schema's answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from tests.subgraph_support import DAY_S, SubgraphServer, subgraph_server
from trading.adapters.chain.errors import ChainRateLimited, ChainUnavailable
from trading.adapters.chain.subgraph import Subgraph
from trading.domain.errors import InvalidValue

POOL = "0x8ad599c3A0ff1De082011EFDDc58f1908eb6e6D8"
SMALL = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"
WETH = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
USDC = "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB"


@asynccontextmanager
async def asking(server: SubgraphServer) -> AsyncGenerator[Subgraph]:
    async with subgraph_server(server) as url:
        client = Subgraph(url, timeout_s=2)
        try:
            yield client
        finally:
            await client.close()


def filled() -> SubgraphServer:
    server = SubgraphServer()
    server.add_pool(POOL, WETH, USDC)
    server.add_pool(SMALL, WETH, POOL, totalValueLockedUSD="12.5", poolDayData=[], feeTier="500")
    return server


async def test_pools_come_typed_and_as_of_the_indexed_block() -> None:
    server = filled()
    async with asking(server) as client:
        found = await client.pools([POOL, USDC])
    (row,) = found.pools
    assert (row.address, row.fee_pips, row.transactions) == (POOL, 3_000, 1_234_567)
    assert (row.tvl_usd, row.volume_usd) == (Decimal("4600123.25"), Decimal("987654321.123456789012345679"))
    assert (row.token0.address, row.token0.symbol, row.token1.decimals) == (WETH, "WETH", 6)
    assert (row.days[0].start_s, row.days[0].fees_usd) == (20_000 * DAY_S, Decimal("296.2962963"))
    assert (found.indexed.number, found.indexed.timestamp_s, found.indexed.flawed) == (
        server.block,
        server.timestamp,
        False,
    )


async def test_the_pools_of_a_token_come_with_the_highest_value_first() -> None:
    async with asking(filled()) as client:
        assert [row.address for row in (await client.pools_of(WETH)).pools] == [POOL, SMALL]
        assert [row.address for row in (await client.pools_of(WETH, limit=1)).pools] == [POOL]
        assert [row.address for row in (await client.pools_of(USDC.lower())).pools] == [POOL]
        assert len((await client.pools_of(WETH, limit=10**9)).pools) == 2  # what is asked for stays bounded
        with pytest.raises(InvalidValue):
            await client.pools_of('"}}) { evil }')


async def test_days_come_newest_first() -> None:
    async with asking(filled()) as client:
        found = await client.days(POOL, limit=3)
    assert [day.start_s // DAY_S for day in found.days] == [20_000, 19_999, 19_998]
    assert found.days[0].close == Decimal("2000.123456789012345679")  # 18 places of what has more


async def test_an_indexer_that_met_errors_or_knows_no_time_says_so() -> None:
    server = filled()
    server.flawed, server.timestamp = True, None
    async with asking(server) as client:
        indexed = (await client.pools([POOL])).indexed
    assert (indexed.flawed, indexed.timestamp_s) == (True, None)


def pools_body(**changed: Any) -> bytes:
    server = filled()
    rows = [{**server.pools[POOL.lower()], **changed}]
    return json.dumps({"data": {"_meta": server.meta(), "pools": rows}}).encode()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"errors": [{"message": "bad indexers"}], "data": null}', "CHAIN_UNAVAILABLE"),
        (b'{"errors": [{"message": "x"}], "data": {"pools": []}}', "CHAIN_UNAVAILABLE"),
        (b'{"data": {"pools": []}}', "GARBAGE"),
        (b'{"data": null}', "GARBAGE"),
        (b"{}", "GARBAGE"),
        (b"[]", "GARBAGE"),
        (b"<html>", "GARBAGE"),
        (b"", "GARBAGE"),
        (b"[" * 50_000, "GARBAGE"),
        (b" " * (3 << 20), "CHAIN_UNAVAILABLE"),
        (pools_body(volumeUSD="NaN"), "GARBAGE"),
        (pools_body(volumeUSD="-1"), "GARBAGE"),
        (pools_body(volumeUSD="1e999999999"), "GARBAGE"),
        (pools_body(volumeUSD="9" * 100_000), "GARBAGE"),
        (pools_body(volumeUSD="9" * 30), "GARBAGE"),
        (pools_body(volumeUSD=1.5), "GARBAGE"),
        (pools_body(feeTier="x"), "GARBAGE"),
        (pools_body(feeTier="9" * 70), "GARBAGE"),
        (pools_body(id="0x12"), "GARBAGE"),
        (pools_body(token0={"id": WETH, "symbol": "x" * 10_000, "decimals": "18"}), "GARBAGE"),
    ],
    ids=range(20),
)
async def test_an_answer_that_makes_no_sense_is_refused(body: bytes, code: str) -> None:
    async with asking(SubgraphServer(body=body)) as client:
        with pytest.raises(ChainUnavailable) as refused:
            await client.pools([POOL])
    assert refused.value.code == code


async def test_the_same_answer_without_its_flaw_is_accepted() -> None:
    async with asking(SubgraphServer(body=pools_body())) as client:
        assert len((await client.pools([POOL])).pools) == 1


async def test_a_limit_or_a_failing_gateway_is_said_without_its_address() -> None:
    async with asking(SubgraphServer(status=429, headers={"Retry-After": "3"})) as client:
        with pytest.raises(ChainRateLimited) as limited:
            await client.pools([POOL])
        assert limited.value.after_ms == 3_000
    async with asking(SubgraphServer(status=503)) as client:
        with pytest.raises(ChainUnavailable, match="status 503") as down:
            await client.pools([POOL])
        assert "sk-key" not in repr(down.value)
