"""Recorded hourly candles for the tests of replay, indicators and statistics."""

from __future__ import annotations

from functools import cache

from mcp_servers.market.sources.ohlcv_files import OhlcvRecording, load_ohlcv
from tests.mcp_harness import ROOT
from trading.domain.identifiers import Symbol, Venue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle

HISTORY = ROOT / "tests" / "data" / "market_history"
ETH = InstrumentId(Venue("binance"), Symbol("ETH/USDT"))
HOUR_MS = 3_600_000


@cache
def hourly() -> tuple[OhlcvRecording, OhlcvRecording]:
    """Return 600 hours of BTC/USDT and of ETH/USDT."""
    btc, eth = load_ohlcv(HISTORY, symbols=("BTC/USDT", "ETH/USDT"), venue="binance")
    return btc, eth


@cache
def candles(index: int) -> tuple[Candle, ...]:
    """Return the candles of BTC/USDT (0) or ETH/USDT (1), oldest first."""
    return tuple(candle for candle in hourly()[index].bars() if candle is not None)
