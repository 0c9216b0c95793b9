"""One question about past candles gives the risk score all that it needs, through the archive that both rooms share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mcp_servers.market.candles import CandleStore
from mcp_servers.market.history_opening import open_history
from mcp_servers.market.market_time import MarketTime
from mcp_servers.risk.candle_closes import ArchiveCloses
from mcp_servers.risk.score.live import BARS_MIN, HOUR_MS, LOOKBACK, score_bars
from mcp_servers.risk.score.model import shipped_model
from tests.market_candle_support import DAY, Venue, at, bar, trade
from tests.market_support import BTC
from trading.adapters.sql import LedgerLocation
from trading.adapters.sql.candles import open_candles
from trading.domain.market_data import Feed
from trading.testing.clock import ManualClock


async def test_asking_for_a_month_of_candles_lets_a_fresh_desk_score(tmp_path: Path) -> None:
    location, candles, clock = LedgerLocation.sqlite(tmp_path), CandleStore(), ManualClock(at(0.5))
    trade(candles, 0.1, 1_000)
    prices = 1_000 * np.exp(np.cumsum(np.random.default_rng(3).normal(0, 0.005, 800)))
    venue = Venue([bar(60 * (n - 800), round(float(price), 2), interval=HOUR_MS) for n, price in enumerate(prices)])
    until = at(0)
    async with (
        open_history(
            location, candles, MarketTime(candles, clock=clock), clock, feed=Feed.LIVE, publishing=True, venue=venue
        ) as parts,
        open_candles(location, write=False) as tables,
    ):
        archive = ArchiveCloses(tables)
        assert len(await archive.bars(Feed.LIVE, BTC, HOUR_MS, until - LOOKBACK * HOUR_MS, until)) == 0
        await parts.history.candles(BTC, "4h", lookback_ms=31 * DAY, limit=200)
        bars = await archive.bars(Feed.LIVE, BTC, HOUR_MS, until - LOOKBACK * HOUR_MS, until)
    assert len(bars) >= BARS_MIN
    score, reason = score_bars(shipped_model(), bars)
    assert reason == ""
    assert 0 < score < 1
