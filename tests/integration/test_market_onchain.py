"""The on-chain quote as its callers meet it: through a real client, on a node that runs the published contracts."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from mcp_servers.hosting import ToolFailure, build_server, call_reply, open_client, tool_kind
from mcp_servers.market.onchain import OnChain
from mcp_servers.market.settings import ChainSettings
from mcp_servers.market.tools import onchain as tools
from tests.chain_support import CHAIN_ID, E6, E18, World
from tests.subgraph_support import SubgraphServer, subgraph_server
from trading.domain.errors import ConfigurationError
from trading.domain.proposals import Mode
from trading.testing.clock import ManualClock

TOOL = "market_quote_onchain"


@dataclass
class Room:
    """The part of the market room that the tool needs."""

    onchain: OnChain


async def no_sleep(seconds: float) -> None:
    """Go on at once."""


class Asker:
    """Asks for quotes in one protocol era; its clock is three seconds ahead of the chain's."""

    def __init__(self, world: World, era: str) -> None:
        self.world = world
        self.clock = ManualClock(world.node.now_s() * 1_000 + 3_000)
        self._era = era

    def settings(self, **changed: Any) -> ChainSettings:
        given: dict[str, Any] = {
            "rpc_url": SecretStr(self.world.node.url),
            "chain_id": CHAIN_ID,
            "pools": (self.world.v2_pair, self.world.v3_pool),
        }
        return ChainSettings(**{**given, **changed})

    @asynccontextmanager
    async def asking(self, **changed: Any) -> AsyncGenerator[Any]:
        """Yield a coroutine function that calls the tool of one running room."""
        onchain = OnChain(self.settings(**changed), self.clock, sleep=no_sleep)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[Room]:
            yield Room(onchain)

        server = build_server("grekko-market", title="Market", instructions="x", lifespan=lifespan, mode=Mode.PAPER)
        tools.register(
            tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=True, scope="market:read")
        )
        async with open_client(server, self._era) as client:

            async def ask(**arguments: Any) -> dict[str, Any]:
                return await call_reply(client, TOOL, **arguments)

            try:
                yield ask
            finally:
                await onchain.close()

    async def reply(self, changed: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        async with self.asking(**(changed or {})) as ask:
            return await ask(**arguments)

    async def __call__(self, changed: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        return (await self.reply(changed, **arguments))["data"]


@pytest.fixture(params=["auto", "legacy"])
def ask(request: pytest.FixtureRequest, uniswap: World) -> Asker:
    return Asker(uniswap, request.param)


@pytest.fixture
def newest(uniswap: World) -> Asker:
    """Asks in the newest era alone, where the era makes no difference."""
    return Asker(uniswap, "auto")


async def refused(awaitable: Awaitable[Any]) -> ToolFailure:
    with pytest.raises(ToolFailure) as failure:
        await awaitable
    return failure.value


SELL_ONE: dict[str, Any] = {"symbol": "WETH/USDC", "side": "sell", "amount": "1"}


def row_of(data: dict[str, Any], pool: str) -> dict[str, Any]:
    return next(row for row in data["pools"] if row["pool"] == pool)


async def test_a_quote_compares_the_pools_of_a_symbol_at_one_block(ask: Asker, uniswap: World) -> None:
    uniswap.node.mine(60)
    ask.clock = ManualClock(uniswap.node.now_s() * 1_000 + 3_000)
    reply = await ask.reply(**SELL_ONE)
    data, meta, head = reply["data"], reply["meta"], uniswap.node.head()
    assert (data["symbol"], data["pay_token"]) == ("WETH/USDC", "WETH")
    assert (data["block"], data["block_hash"]) == (int(head["number"], 16), head["hash"])
    assert (meta["venue"], meta["age_ms"], meta["source"]) == ("uniswap", 3_000, "node")
    assert {row["version"] for row in data["pools"]} == {"v2", "v3"}
    gets = [Decimal(row["gets"]) for row in data["pools"]]
    assert gets == sorted(gets, reverse=True)
    for row in data["pools"]:
        assert Decimal(row["price"]).quantize(Decimal(1)) == 2_000
        assert abs(Decimal(row["twap"]) - 2_000) < Decimal("0.2")
        assert abs(Decimal(row["twap_bps"])) < 1
        assert row["twap_s"] >= 600
        assert (row["pays"], row["fee"], row["marks"]) == ("1", "0.003", [])
        assert row["average"] == row["gets"]
    pair, pool = row_of(data, uniswap.v2_pair), row_of(data, uniswap.v3_pool)
    assert Decimal(pair["gets"]) == Decimal(uniswap.swap_v2(uniswap.weth, uniswap.usdc, E18)) / E6
    assert Decimal(pool["gets"]) == Decimal(uniswap.swap_v3(uniswap.weth, uniswap.usdc, E18)) / E6
    assert 9 < Decimal(pair["impact_bps"]) < 11  # one in a thousand of the reserve, the fee not counted
    assert 0 < Decimal(pool["impact_bps"]) < 1


@pytest.mark.parametrize(
    ("side", "unit", "amount", "pays", "gets"),
    [
        ("sell", "base", "2", "2", None),
        ("buy", "base", "2", None, "2"),
        ("sell", "quote", "4000", None, "4000"),
        ("buy", "quote", "4000", "4000", None),
    ],
)
async def test_each_side_and_unit_fixes_the_right_amount(
    newest: Asker, uniswap: World, side: str, unit: str, amount: str, pays: str | None, gets: str | None
) -> None:
    data = await newest(symbol="WETH/USDC", side=side, amount=amount, unit=unit)
    assert data["pay_token"] == ("WETH" if side == "sell" else "USDC")
    for row in data["pools"]:
        assert row["pays"] == (pays or row["pays"])
        assert row["gets"] == (gets or row["gets"])
        base, quote = (row["pays"], row["gets"]) if side == "sell" else (row["gets"], row["pays"])
        assert abs(Decimal(quote) / Decimal(base) - Decimal(row["average"])) < Decimal("1E-9")
        worse = Decimal(row["average"]) - Decimal(row["price"])
        assert (worse < 0) == (side == "sell")
    pair, weth, usdc = row_of(data, uniswap.v2_pair), uniswap.weth, uniswap.usdc
    sold, bought, unit_in, unit_out = (weth, usdc, E18, E6) if side == "sell" else (usdc, weth, E6, E18)
    if pays:
        assert uniswap.swap_v2(sold, bought, int(Decimal(pays) * unit_in)) == Decimal(pair["gets"]) * unit_out
    else:
        assert uniswap.swap_v2_for(sold, bought, int(Decimal(gets or 0) * unit_out)) == Decimal(pair["pays"]) * unit_in


async def test_the_order_of_the_tokens_turns_the_price_around(newest: Asker, uniswap: World) -> None:
    straight = await newest(symbol="weth/usdc", side="sell", amount="1")
    turned = await newest(symbol="USDC/WETH", side="buy", amount="1", unit="quote")  # the same swap
    assert (straight["symbol"], turned["symbol"]) == ("WETH/USDC", "USDC/WETH")
    for row in straight["pools"]:
        other = row_of(turned, row["pool"])
        assert (row["pays"], row["gets"], row["fee"]) == (other["pays"], other["gets"], other["fee"])
        assert abs(Decimal(row["price"]) * Decimal(other["price"]) - 1) < Decimal("1E-12")


async def test_a_pool_is_found_by_its_address_too(newest: Asker, uniswap: World) -> None:
    data = await newest(symbol=uniswap.v3_pool.lower(), side="sell", amount="1")
    assert [row["pool"] for row in data["pools"]] == [uniswap.v3_pool]
    error = await refused(newest(symbol=uniswap.weth, side="sell", amount="1"))
    assert (error.code, error.allowed) == ("UNKNOWN_POOL", ("WETH/USDC",))
    error = await refused(newest(symbol="0xfb6916095ca1df60bB79Ce92cE3Ea74c37c5d359", side="sell", amount="1"))
    assert error.code == "INVALID_ADDRESS"


async def test_real_swaps_move_the_price_away_from_its_average(ask: Asker, uniswap: World) -> None:
    uniswap.remember_more(5)
    uniswap.node.mine(60)
    uniswap.swap_v2(uniswap.weth, uniswap.usdc, 30 * E18)
    uniswap.swap_v3(uniswap.weth, uniswap.usdc, 200 * E18)
    uniswap.node.mine(1)
    ask.clock = ManualClock(uniswap.node.now_s() * 1_000)
    data = await ask(**SELL_ONE)
    for row in data["pools"]:
        assert Decimal(row["price"]) < 1_950
        assert Decimal(row["twap_bps"]) < -200
        assert "OFF_TWAP" in row["marks"]


async def test_a_missing_or_short_average_is_marked_and_explained(ask: Asker, uniswap: World) -> None:
    uniswap.node.mine(1)
    uniswap.swap_v3(uniswap.weth, uniswap.usdc, E18)
    ask.clock = ManualClock(uniswap.node.now_s() * 1_000)
    data = await ask(**SELL_ONE)
    pool = row_of(data, uniswap.v3_pool)
    assert (pool["twap"], pool["twap_bps"], pool["marks"]) == (None, None, ["NO_TWAP"])
    assert any("keeps 1 observation(s)" in note for note in data["notes"])
    uniswap.node.mine(5)
    ask.clock.advance(60_000)
    pool = row_of(await ask(**SELL_ONE), uniswap.v3_pool)
    assert (pool["twap_s"], pool["marks"]) == (60, ["SHORT_TWAP"])


async def test_the_configured_quoter_gives_the_same_answer(newest: Asker, uniswap: World) -> None:
    own = await newest(symbol="WETH/USDC", side="sell", amount="321.123456789")
    asked = await newest({"quoter": uniswap.quoter}, symbol="WETH/USDC", side="sell", amount="321.123456789")
    assert own["pools"] == asked["pools"]


async def test_names_are_the_tokens_own(ask: Asker) -> None:
    error = await refused(ask(symbol="ETH/USDC", side="sell", amount="1"))
    assert (error.code, error.allowed, error.retryable) == ("UNKNOWN_POOL", ("WETH/USDC",), "no")
    assert "WETH is not ETH" in error.suggestion
    assert (await refused(ask(symbol="BTC/EUR", side="sell", amount="1"))).allowed == ("WETH/USDC",)


async def test_a_second_token_of_the_same_name_makes_the_symbol_ambiguous(newest: Asker, uniswap: World) -> None:
    fake = uniswap.token("USDC", 6)
    pool = uniswap.create_v3(uniswap.weth, fake, 3_000, E18, 5_000 * E6)
    error = await refused(newest({"pools": (uniswap.v2_pair, pool)}, **SELL_ONE))
    assert (error.code, set(error.allowed)) == ("AMBIGUOUS_SYMBOL", {uniswap.v2_pair, pool})
    data = await newest({"pools": (uniswap.v2_pair, pool)}, **{**SELL_ONE, "symbol": uniswap.v2_pair})
    assert data["symbol"] == "WETH/USDC"


async def test_what_is_missing_in_the_settings_is_said(ask: Asker) -> None:
    for changed in ({"rpc_url": None}, {"pools": ()}):
        error = await refused(ask(changed, **SELL_ONE))
        assert (error.code, error.retryable) == ("NOT_CONFIGURED", "no")
        assert "[market.chain]" in error.suggestion


async def test_a_contract_that_is_no_pool_is_named_and_the_others_answer(newest: Asker, uniswap: World) -> None:
    data = await newest({"pools": (uniswap.usdc, uniswap.v2_pair)}, **SELL_ONE)
    assert [row["pool"] for row in data["pools"]] == [uniswap.v2_pair]
    assert any(uniswap.usdc in note for note in data["notes"])
    error = await refused(newest({"pools": (uniswap.usdc,)}, **SELL_ONE))
    assert error.code == "NOT_CONFIGURED"


async def test_a_pool_that_cannot_give_so_much_is_left_out_with_its_reason(newest: Asker, uniswap: World) -> None:
    data = await newest(symbol="WETH/USDC", side="buy", amount="1000")
    assert [row["pool"] for row in data["pools"]] == [uniswap.v3_pool]
    assert any("does not hold that much" in note for note in data["notes"])
    error = await refused(newest(symbol="WETH/USDC", side="buy", amount="100000"))
    assert (error.code, error.suggestion) == ("NOT_ENOUGH_LIQUIDITY", "ask for a smaller amount")


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"amount": "0"}, "INVALID_NUMBER"),
        ({"amount": "NaN"}, "INVALID_NUMBER"),
        ({"amount": 1.5}, "INVALID_NUMBER"),
        ({"amount": "0.0000001", "unit": "quote"}, "QUANTITY_TOO_SMALL"),
        ({"amount": "999999999999999999999999"}, "INVALID_NUMBER"),
        ({"side": "hold"}, "INVALID_ARGUMENTS"),
        ({"unit": "percent"}, "INVALID_ARGUMENTS"),
        ({"symbol": "W"}, "INVALID_ARGUMENTS"),
        ({"symbol": "x" * 200}, "INVALID_ARGUMENTS"),
        ({"symbol": "/////"}, "UNKNOWN_POOL"),
    ],
)
async def test_wrong_arguments_are_refused(newest: Asker, changed: dict[str, Any], code: str) -> None:
    assert (await refused(newest(**{**SELL_ONE, **changed}))).code == code


async def test_an_old_block_and_one_from_the_future_price_nothing(ask: Asker) -> None:
    ask.clock.advance(200_000)
    error = await refused(ask(**SELL_ONE))
    assert (error.code, error.retryable) == ("STALE_DATA", "after_ms")
    ask.clock = ManualClock((ask.world.node.now_s() - 60) * 1_000)
    assert (await refused(ask(**SELL_ONE))).code == "FROM_FUTURE"


async def test_a_node_on_another_chain_is_not_believed(newest: Asker) -> None:
    error = await refused(newest({"chain_id": 1}, **SELL_ONE))
    assert (error.code, error.retryable) == ("WRONG_CHAIN", "no")


async def test_a_node_that_is_down_is_said_without_its_address(ask: Asker) -> None:
    error = await refused(ask({"rpc_url": SecretStr("http://127.0.0.1:9/v3/sk-secret")}, **SELL_ONE))
    assert (error.code, error.retryable) == ("CHAIN_UNAVAILABLE", "after_ms")
    assert "sk-secret" not in json.dumps([str(error), error.suggestion])


@pytest.mark.parametrize(
    "changed",
    [
        {"pools": ("0x123",)},
        {"quoter": "0xfb6916095ca1df60bB79Ce92cE3Ea74c37c5d359"},
        {"rpc_url": SecretStr("http://node.example/sk-secret")},
        {"rpc_url": SecretStr("ftp://127.0.0.1/")},
        {"subgraph_url": SecretStr("http://10.0.0.1/sk-secret")},
    ],
)
async def test_wrong_settings_refuse_to_start_without_showing_the_address(
    newest: Asker, changed: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"market\.chain") as refusal:
        OnChain(newest.settings(**changed), newest.clock)
    assert "sk-secret" not in str(refusal.value)
    assert "sk-secret" not in repr(newest.settings(**changed))


# ---- dollar values of a subgraph


async def test_indexed_dollar_values_come_with_the_block_they_are_of(newest: Asker, uniswap: World) -> None:
    server = SubgraphServer()
    server.add_pool(uniswap.v3_pool, uniswap.weth, uniswap.usdc)
    async with subgraph_server(server) as url:
        data = await newest({"subgraph_url": SecretStr(url)}, **SELL_ONE)
        row = row_of(data, uniswap.v3_pool)
        assert (row["tvl_usd"], row["day_volume_usd"]) == ("4600123.25", "98765.4321")
        assert row_of(data, uniswap.v2_pair)["tvl_usd"] is None
        assert any(f"as of block {server.block}" in note for note in data["notes"])


async def test_without_its_dollar_values_a_quote_is_given_all_the_same(newest: Asker) -> None:
    server = SubgraphServer(body=b'{"errors": [{"message": "bad indexers"}], "data": null}')
    async with subgraph_server(server) as url:
        data = await newest({"subgraph_url": SecretStr(url)}, **SELL_ONE)
    assert len(data["pools"]) == 2
    assert any("no dollar values" in note for note in data["notes"])
