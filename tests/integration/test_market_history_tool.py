"""Opening history as a room does, and the candles tool through a real client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mcp_servers.hosting import ToolFailure, build_server, call_reply, open_client, tool_kind
from mcp_servers.market.candles import CandleStore
from mcp_servers.market.history import History
from mcp_servers.market.history_opening import HistoryParts, open_history
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.tools import candles as tool
from tests.bus_support import eventually
from tests.market_candle_support import HOUR, MINUTES, START, Venue, at, bar, opens, trade
from tests.market_support import BTC
from tests.mcp_harness import check_conventions
from trading.adapters.sql import LedgerLocation
from trading.adapters.sql.candles import StoredCandle, open_candles, open_candles_in_memory
from trading.domain.instruments import Instrument
from trading.domain.market_data import Feed
from trading.domain.proposals import Mode
from trading.testing.builders import build_instrument
from trading.testing.clock import ManualClock


@asynccontextmanager
async def opened(
    candles: CandleStore, location: LedgerLocation | None, *, publishing: bool = True, venue: Venue | None = None
) -> AsyncGenerator[HistoryParts]:
    clock = ManualClock(at(100.1))
    time = MarketTime(candles, clock=clock)
    async with open_history(
        location, candles, time, clock, feed=Feed.LIVE, publishing=publishing, venue=venue
    ) as parts:
        yield parts


async def test_what_one_process_saw_is_there_for_the_next_and_for_those_that_follow(tmp_path: Path) -> None:
    location = LedgerLocation.sqlite(tmp_path)
    candles, told = CandleStore(), list[int]()
    async with opened(candles, location) as first:
        assert first.archive is not None
        first.archive.on_candle_closed.append(lambda candle, _: told.extend(opens([candle])))
        for minute in (95, 96, 97, 98, 99, 100.1):
            trade(candles, minute)
        await eventually(lambda: told == [95, 96, 97, 98, 99])
    async with opened(CandleStore(), location) as second, opened(CandleStore(), location, publishing=False) as third:
        assert third.archive is None
        for parts in (second, third):
            found = await parts.history.candles(BTC, "1m", lookback_ms=HOUR)
            assert opens(found.candles) == [95, 96, 97, 98, 99]
            assert found.sources == ("archive",)
            assert parts.counters()["archive_kept"] == 1


async def test_a_follower_keeps_what_it_fetches_to_itself(tmp_path: Path) -> None:
    location = LedgerLocation.sqlite(tmp_path)
    venue = Venue([bar(minute) for minute in range(100)])
    async with opened(CandleStore(), location, publishing=False, venue=venue) as follower:
        found = await follower.history.candles(BTC, "1m", lookback_ms=10 * 60_000)
        assert opens(found.candles) == list(range(90, 100))
        assert (await follower.history.candles(BTC, "1m", lookback_ms=10 * 60_000)).candles == found.candles
        assert len(venue.asked) == 1
        assert follower.counters()["backfill_bars"] == 10
    assert not (tmp_path / "market.sqlite").exists()


@pytest.mark.parametrize("without", ["in use", "switched off"])
async def test_without_a_database_history_lives_in_memory(
    without: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = LedgerLocation.sqlite(tmp_path)
    venue = Venue([bar(minute) for minute in range(100)])
    asked = location if without == "in use" else None
    async with open_candles(location, write=True), opened(CandleStore(), asked, venue=venue) as parts:
        found = await parts.history.candles(BTC, "1m", lookback_ms=10 * 60_000)
        assert opens(found.candles) == list(range(90, 100))
        assert parts.counters()["archive_kept"] == 0
    assert ("LEDGER_IN_USE" in caplog.text) == (without == "in use")


async def test_memory_that_is_full_forgets_and_goes_on() -> None:
    async with open_candles_in_memory(pages_max=60) as tables:
        for block in range(20):
            rows = [
                StoredCandle(bar(minute), complete=True, source="venue")
                for minute in range(block * 300, block * 300 + 300)
            ]
            await tables.write(MINUTES, rows, [], now_ms=1)
            assert len(await tables.read(MINUTES, at(block * 300), at(block * 300 + 300))) == 300
        assert 300 <= len(await tables.read(MINUTES, at(0), at(6_000))) < 6_000


# ---- the tool


class OneSymbol:
    """The part of the prices that the tool asks."""

    def instrument(self, symbol: str, venue: str | None = None) -> Instrument:
        return build_instrument(venue="binance")


@dataclass
class Room:
    prices: Any
    history: History
    candles: CandleStore


@pytest.fixture
def room() -> Room:
    candles = CandleStore()
    return Room(OneSymbol(), History(candles), candles)


@asynccontextmanager
async def client_of(room: Room) -> AsyncGenerator[Any]:
    @asynccontextmanager
    async def lifespan() -> AsyncGenerator[Room]:
        yield room

    server = build_server("grekko-market", title="Market", instructions="x", lifespan=lifespan, mode=Mode.PAPER)
    tool.register(
        tool_kind(server, read_only=True, destructive=False, idempotent=True, open_world=False, scope="market:read")
    )
    async with open_client(server) as client:
        yield client


async def ask(room: Room, **arguments: Any) -> dict[str, Any]:
    async with client_of(room) as client:
        return await call_reply(
            client, "market_get_candles", **{"symbol": "BTC/USDT", "timeframe": "1m", "lookback": "1d", **arguments}
        )


COLUMNS = ("open_ts_ms", "open", "high", "low", "close", "volume")


async def test_candles_come_as_columns_with_what_is_known_of_them(room: Room) -> None:
    for minute in (0, 1, 3, 4.5):
        trade(room.candles, minute, 100 + minute, "0.25")
    reply = await ask(room)
    data = reply["data"]
    assert {len(data[name]) for name in COLUMNS} == {4}
    assert (data["open"], data["volume"]) == (["100", "101", "103", "104.5"], ["0.25"] * 4)
    assert (data["last_closed"], data["first_complete"], data["gaps"]) == (False, True, 1)
    assert (data["sources"], data["notes"], reply["meta"]["truncated"]) == (["trades"], [], False)


async def test_an_answer_is_the_newest_that_fit_and_says_so(room: Room) -> None:
    for minute in range(600):
        trade(room.candles, minute, 100_000 + minute / 100, "0.12345678")
    for limit in (1, 100, 500):
        reply = await ask(room, limit=limit)
        assert len(json.dumps(reply)) < 10_000
        assert reply["meta"]["truncated"]
        shown = reply["data"]["open_ts_ms"]
        assert shown[-1] == at(599)
        assert shown == list(range(shown[0], shown[-1] + 1, 60_000))
        assert (len(shown) == limit) == (limit < 500)
        assert reply["data"]["gaps"] == 0


async def test_a_past_moment_is_shown_as_it_stood(room: Room) -> None:
    for second in range(300):
        room.candles.add(BTC, START + second * 1_000, Decimal(second + 1), Decimal(1))
    before = await ask(room, as_of="2025-06-14T00:00:00Z")
    assert (before["data"]["close"], before["data"]["notes"]) == ([], ["no candles are known of this time"])
    reply = await ask(room, as_of="2025-06-15T00:02:30Z")
    assert (reply["data"]["close"], reply["data"]["last_closed"]) == (["60", "120", "150"], False)
    assert reply["meta"]["as_of"] == "2025-06-15T00:02:30.000Z"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"as_of": "2025-06-15T00:05:00Z"}, "LOOK_AHEAD"),
        ({"as_of": "9999-12-31T23:59:59Z"}, "LOOK_AHEAD"),
        ({"as_of": "yesterday"}, "INVALID_TIME"),
        ({"as_of": "x" * 41}, "INVALID_ARGUMENTS"),
        ({"limit": 0}, "INVALID_ARGUMENTS"),
        ({"limit": 501}, "INVALID_ARGUMENTS"),
        ({"limit": 1e300}, "INVALID_ARGUMENTS"),
        ({"timeframe": "7m"}, "INVALID_TIMEFRAME"),
        ({"lookback": "999999w"}, "INVALID_LOOKBACK"),
    ],
)
async def test_a_wrong_argument_is_named(room: Room, arguments: dict[str, Any], code: str) -> None:
    trade(room.candles, 4)
    with pytest.raises(ToolFailure) as refused:
        await ask(room, **arguments)
    assert refused.value.code == code


async def test_the_tool_keeps_the_conventions_and_its_budget(room: Room) -> None:
    async with client_of(room) as client:
        await check_conventions(client, "market")
        (found,) = (await client.list_tools()).tools
        assert tokens([found.name, found.description, found.input_schema]) <= 240
        assert tokens(found.output_schema) <= 330


def tokens(node: object) -> int:
    return len(json.dumps(node, separators=(",", ":"))) // 4
