"""Funding through the real ccxt classes, from answers as the venues give them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web

from mcp_servers.market.reference import Reference
from mcp_servers.market.sources.ccxt import open_exchange
from trading.domain.errors import TradingError
from trading.domain.identifiers import Venue
from trading.testing.clock import ManualClock

NOW = ManualClock().now_ms()
NEXT = NOW + 3_600_000

BINANCE = {
    "symbol": "BTCUSDT", "pair": "BTCUSDT", "contractType": "PERPETUAL", "deliveryDate": "4133404800000",
    "onboardDate": "1567965300000", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT",
    "marginAsset": "USDT", "pricePrecision": "2", "quantityPrecision": "3", "baseAssetPrecision": "8",
    "quotePrecision": "8", "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.10"}], "orderTypes": [],
}  # fmt: skip
OKX = {
    "category": "1", "ctMult": "1", "ctType": "linear", "ctVal": "0.01", "ctValCcy": "BTC", "expTime": "",
    "instFamily": "BTC-USDT", "instId": "BTC-USDT-SWAP", "instType": "SWAP", "lever": "100",
    "lotSz": "0.01", "minSz": "0.01", "settleCcy": "USDT", "state": "live", "tickSz": "0.1", "uly": "BTC-USDT",
    "baseCcy": "", "quoteCcy": "", "optType": "",
}  # fmt: skip
BYBIT = {
    "symbol": "BTCUSDT", "contractType": "LinearPerpetual", "status": "Trading", "baseCoin": "BTC", "quoteCoin": "USDT",
    "launchTime": "1584230400000", "deliveryTime": "0", "deliveryFeeRate": "", "priceScale": "2",
    "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
    "priceFilter": {"minPrice": "0.10", "maxPrice": "1999999.80", "tickSize": "0.10"},
    "lotSizeFilter": {"maxOrderQty": "1500", "minOrderQty": "0.001", "qtyStep": "0.001", "minNotionalValue": "5"},
    "fundingInterval": "480", "settleCoin": "USDT",
}  # fmt: skip
KRAKEN = {
    "symbol": "PF_XBTUSD", "pair": "XBT:USD", "base": "BTC", "quote": "USD", "type": "flexible_futures", "tickSize": 1,
    "contractSize": 1, "tradeable": True, "impactMidSize": 1, "maxPositionSize": 1e6, "openingDate": "2022-01-01",
    "contractValueTradePrecision": 4, "postOnly": False, "marginLevels": [],
}  # fmt: skip


def paged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": {"category": "linear", "list": rows}, "time": NOW}


ANSWERS: dict[str, dict[str, Any]] = {
    "binance": {
        "/fapi/v1/exchangeInfo": {"symbols": [BINANCE]},
        "/fapi/v1/premiumIndex": {
            "symbol": "BTCUSDT", "markPrice": "61000.50", "indexPrice": "61010.1", "lastFundingRate": "0.00038246",
            "nextFundingTime": NEXT, "time": NOW - 40,
        },
    },
    "okx": {
        "/api/v5/public/instruments": {"code": "0", "msg": "", "data": [OKX]},
        "/api/v5/public/funding-rate": {"code": "0", "msg": "", "data": [{
            "fundingRate": "-0.0001", "fundingTime": str(NEXT), "instId": "BTC-USDT-SWAP", "instType": "SWAP",
            "nextFundingRate": "", "nextFundingTime": str(NEXT + 28_800_000), "ts": str(NOW - 40),
        }]},
    },
    "bybit": {
        "/v5/market/instruments-info": paged([BYBIT]),
        "/v5/market/tickers": paged([{
            "symbol": "BTCUSDT", "lastPrice": "61000", "indexPrice": "61010.1", "markPrice": "61000.50",
            "fundingRate": "0.0001", "nextFundingTime": str(NEXT),
        }]),
    },
    "kraken": {
        "/derivatives/api/v3/instruments": {"result": "success", "instruments": [KRAKEN], "serverTime": "2026-01-01"},
        "/derivatives/api/v3/instruments/status": {"result": "success", "instrumentStatus": []},
        "/derivatives/api/v3/tickers": {"result": "success", "tickers": [{
            "symbol": "PF_XBTUSD", "tag": "perpetual", "pair": "XBT:USD", "markPrice": 61000.5, "indexPrice": 61010.1,
            "fundingRate": -0.756414717067, "fundingRatePrediction": 0.1, "lastTime": "2025-10-22T11:02:25.599Z",
        }]},
    },
}  # fmt: skip


@asynccontextmanager
async def reference_to(venue: str) -> AsyncIterator[Reference]:
    async def answer(request: web.Request) -> web.Response:
        found = ANSWERS[venue].get(request.path)
        return (
            web.json_response(found) if found else web.json_response({"code": "404", "msg": request.path}, status=404)
        )

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{int(runner.addresses[0][1])}"
    reference = Reference(
        [Venue(venue)], ManualClock(), open_=lambda name, kind: open_exchange(name, rest_url=base, kind=kind)
    )
    try:
        yield reference
    finally:
        await reference.aclose()
        await runner.cleanup()


@pytest.mark.parametrize(
    ("venue", "rate", "next_ts_ms", "mark"),
    [
        ("binance", "0.00038246", NEXT, "61000.5"),
        ("okx", "-0.0001", NEXT, None),
        ("bybit", "0.0001", NEXT, "61000.5"),
    ],
)
async def test_the_rate_and_its_next_payment_are_the_venues(
    venue: str, rate: str, next_ts_ms: int, mark: str | None
) -> None:
    async with reference_to(venue) as reference:
        found = await reference.funding("BTC/USDT", venue)
        assert (found.contract, found.rate, found.next_ts_ms) == ("BTC/USDT:USDT", Decimal(rate), next_ts_ms)
        assert found.mark == (None if mark is None else Decimal(mark))
        assert found.interval_ms == {"binance": None, "okx": 28_800_000, "bybit": 28_800_000}[venue]


async def test_krakens_rate_is_a_share_of_the_price_and_its_contracts_are_in_dollars() -> None:
    async with reference_to("kraken") as reference:
        found = await reference.funding("BTC/USD", "kraken")
        assert (found.contract, found.venue, found.rate) == ("BTC/USD:USD", "krakenfutures", Decimal("-0.000012400140"))
        with pytest.raises(TradingError) as refused:
            await reference.funding("BTC/USDT", "kraken")
        assert refused.value.allowed == ("BTC/USD",)
