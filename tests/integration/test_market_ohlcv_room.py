"""The whole market room over recorded candles: what it answers, and what it refuses."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from mcp_servers.hosting import ToolFailure, call, open_client
from mcp_servers.market.server import build
from mcp_servers.market.settings import MarketSettings
from tests.market_history_support import HISTORY, HOUR_MS, candles


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bar-") as directory:
        path = Path(directory) / "h"
        path.mkdir(mode=0o700)
        (path / "config.toml").write_text('symbols = ["BTC/USDT", "ETH/USDT"]\n[bus]\nprefer_bundled = true\n')
        monkeypatch.setenv("GREKKO_HOME", str(path))
        monkeypatch.delenv("GREKKO_CONFIG", raising=False)
        monkeypatch.delenv("REDIS_URL", raising=False)
        yield path


@asynccontextmanager
async def played() -> AsyncGenerator[Client]:
    """Yield a client of a room that has played its recording to the end."""
    async with open_client(build(MarketSettings(recording=HISTORY, speed=0))) as client:
        async with asyncio.timeout(20):
            while (await call(client, "market_get_status"))["venues"][0]["code"] != "RECORDING_ENDED":
                await asyncio.sleep(0.01)
        yield client


async def test_a_directory_of_candles_is_a_market_without_a_book() -> None:
    async with played() as client:
        status = await call(client, "market_get_status")
        assert status["safe_to_trade"] is False
        (btc, eth) = (await call(client, "market_get_tickers", symbols=["BTC/USDT", "ETH/USDT"]))["tickers"]
        for index, row in enumerate((btc, eth)):
            assert Decimal(row["last"]) == candles(index)[-1].close
            assert (row["bid"], row["mid"], row["stale"]) == (None, None, True)
        refusals: list[tuple[str, dict[str, Any]]] = [
            ("market_get_order_book", {"symbol": "BTC/USDT"}),
            ("market_estimate_fill", {"symbol": "BTC/USDT", "side": "buy", "amount": "1"}),
        ]
        for tool, arguments in refusals:
            with pytest.raises(ToolFailure) as refused:
                await call(client, tool, **arguments)
            assert refused.value.code in ("NO_BOOK", "STALE_DATA"), tool
        hours = await call(client, "market_get_candles", symbol="ETH/USDT", timeframe="1h", lookback="5h")
        assert hours["open_ts_ms"] == [candle.open_ts_ms for candle in candles(1)[-5:]]
        found = await call(
            client, "market_get_statistics", symbols=["BTC/USDT", "ETH/USDT"], timeframe="1h", lookback="520w"
        )
        assert found["returns"] == [597, 597]
        assert 0.6 < float(found["figures"]["correlation"][1]) < 0.95


async def test_a_moment_of_the_recording_can_be_asked_for_and_none_after_it() -> None:
    async with played() as client:
        earlier = await call(
            client,
            "market_get_indicators",
            symbol="BTC/USDT",
            timeframe="1h",
            indicators=["rsi:14"],
            as_of="2020-12-20T00:30:00Z",
        )
        assert earlier["open_ts_ms"][-1] + HOUR_MS == 1_608_422_400_000  # midnight: the bar after it is not over
        with pytest.raises(ToolFailure) as refused:
            await call(
                client,
                "market_get_candles",
                symbol="BTC/USDT",
                timeframe="1h",
                lookback="5h",
                as_of="2020-12-30T00:00:01Z",
            )
        assert refused.value.code == "LOOK_AHEAD"
