"""Candles from trades, in memory.

Two bounded series are kept per instrument, of seconds and of minutes; every other timeframe is put together from one
of them when asked. A market that gives finished bars instead of trades has one series of its bars, and no timeframe
shorter than them. Intervals in which nothing was traded do not exist. Times are the venue's.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from trading.domain.errors import InvalidValue
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle
from trading.domain.money import ZERO, add

SECOND_MS: Final = 1_000
MINUTE_MS: Final = 60_000
DAY_MS: Final = 1_440 * MINUTE_MS
#: Timeframes and their length in milliseconds.
TIMEFRAMES: Final[dict[str, int]] = {
    "1s": SECOND_MS,
    "5s": 5 * SECOND_MS,
    "15s": 15 * SECOND_MS,
    "1m": MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "1h": 60 * MINUTE_MS,
    "4h": 240 * MINUTE_MS,
    "1d": DAY_MS,
}
_SECONDS_KEPT: Final = 7_200
_MINUTES_KEPT: Final = 10_080
_BARS_KEPT: Final = 50_000


@dataclass(slots=True)
class _Bar:
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    trades: int
    first_ms: int = 0  # of the trades that made open and close
    last_ms: int = 0

    def merge(self, later: _Bar) -> None:
        """Take in a bar that comes after this one."""
        self.high, self.low = max(self.high, later.high), min(self.low, later.low)
        self.close = later.close
        self.volume = add(self.volume, later.volume)
        self.trades += later.trades


class _Series:
    def __init__(self, interval_ms: int, kept: int) -> None:
        self.interval_ms = interval_ms
        self.bars: dict[int, _Bar] = {}
        self._kept = kept
        self._newest = -1

    @property
    def from_ms(self) -> int:
        """From when on no bar has been dropped to stay within the bound."""
        return next(iter(self.bars)) if len(self.bars) >= self._kept else 0

    def since(self, earliest_ms: int) -> list[tuple[int, _Bar]]:
        """Return the bars that end after ``earliest_ms``, oldest first."""
        found: list[tuple[int, _Bar]] = []
        for start, bar in reversed(self.bars.items()):
            if start + self.interval_ms <= earliest_ms:
                break
            found.append((start, bar))
        return found[::-1]

    def add(self, ts_ms: int, price: Decimal, quantity: Decimal) -> None:
        start = ts_ms - ts_ms % self.interval_ms
        bar = self.bars.get(start)
        if bar is not None:
            if price > bar.high:
                bar.high = price
            elif price < bar.low:
                bar.low = price
            if ts_ms >= bar.last_ms:
                bar.close, bar.last_ms = price, ts_ms
            elif ts_ms < bar.first_ms:  # told late: it opens the bar, and must not close it
                bar.open, bar.first_ms = price, ts_ms
            bar.volume = add(bar.volume, quantity)
            bar.trades += 1
            return
        if start < self._newest:  # late by more than an interval: keep the order of the series
            self.bars[start] = _Bar(price, price, price, price, quantity, 1, ts_ms, ts_ms)
            self.bars = dict(sorted(self.bars.items()))
        else:
            self.bars[start] = _Bar(price, price, price, price, quantity, 1, ts_ms, ts_ms)
            self._newest = start
        if len(self.bars) > self._kept:
            del self.bars[next(iter(self.bars))]

    def append(self, bar: Candle) -> bool:
        """Add a finished bar; False, and nothing is changed, when it is not later than the newest."""
        if bar.open_ts_ms <= self._newest or bar.open_ts_ms % self.interval_ms:
            return False
        self.bars[bar.open_ts_ms] = _Bar(bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trades)
        self._newest = bar.open_ts_ms
        if len(self.bars) > self._kept:
            del self.bars[next(iter(self.bars))]
        return True


class CandleStore:
    """Candles of any number of instruments."""

    def __init__(self) -> None:
        self._seconds: dict[InstrumentId, _Series] = {}
        self._minutes: dict[InstrumentId, _Series] = {}
        self._finished: dict[InstrumentId, _Series] = {}
        self._now: dict[InstrumentId, int] = {}
        self._since: dict[InstrumentId, int] = {}

    def add(self, instrument_id: InstrumentId, ts_ms: int, price: Decimal, quantity: Decimal) -> None:
        """Count a trade; ``ts_ms`` is the venue's time, price in quote per base, quantity in base."""
        seconds = self._seconds.get(instrument_id)
        if seconds is None:
            seconds = self._seconds[instrument_id] = _Series(SECOND_MS, _SECONDS_KEPT)
            self._minutes[instrument_id] = _Series(MINUTE_MS, _MINUTES_KEPT)
        seconds.add(ts_ms, price, quantity)
        self._minutes[instrument_id].add(ts_ms, price, quantity)
        self.advance(instrument_id, ts_ms)

    def add_bar(self, bar: Candle) -> None:
        """Take in a finished bar of a market whose trades are not known; its close becomes the newest venue time.

        Raises:
            InvalidValue: it is still open, not later than the bar before it, or of another length.
        """
        key = bar.instrument_id
        series = self._finished.get(key) or _Series(bar.interval_ms, _BARS_KEPT)
        if not bar.closed or bar.interval_ms != series.interval_ms or not series.append(bar):
            raise InvalidValue("the bar does not continue the series", code="MALFORMED")
        self._finished[key] = series
        self._since.setdefault(key, bar.open_ts_ms)
        self.advance(key, bar.open_ts_ms + bar.interval_ms)

    def last_close(self, instrument_id: InstrumentId) -> Decimal | None:
        """Return the close of the newest finished bar given to ``add_bar``, None without one."""
        series = self._finished.get(instrument_id)
        return None if series is None else next(reversed(series.bars.values())).close

    def advance(self, instrument_id: InstrumentId, ts_ms: int) -> None:
        """Note that the venue's clock has reached ``ts_ms``: candles that end by then are closed."""
        self._since.setdefault(instrument_id, ts_ms)
        if ts_ms > self._now.get(instrument_id, 0):
            self._now[instrument_id] = ts_ms

    def now_ms(self, instrument_id: InstrumentId) -> int:
        """Return the newest venue time seen, 0 before the first."""
        return self._now.get(instrument_id, 0)

    def since_ms(self, instrument_id: InstrumentId) -> int:
        """Return the first venue time seen, 0 before it; a candle that opened earlier is incomplete."""
        return self._since.get(instrument_id, 0)

    def candles(self, instrument_id: InstrumentId, timeframe: str, lookback_ms: int) -> list[Candle]:
        """Return the candles that overlap the last ``lookback_ms`` of the venue's time, oldest first.

        Raises:
            InvalidValue: no such timeframe.
        """
        interval = TIMEFRAMES.get(timeframe)
        if interval is None:
            raise InvalidValue("there is no such timeframe", code="INVALID_TIMEFRAME", allowed=tuple(TIMEFRAMES))
        now = self.now_ms(instrument_id)
        merged: dict[int, _Bar] = {}
        earliest = now - lookback_ms
        for start, bar in self._bars(instrument_id, interval, earliest - earliest % interval):
            opened = start - start % interval
            if opened + interval <= earliest:
                continue
            known = merged.get(opened)
            if known is None:
                merged[opened] = _Bar(bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trades)
            else:
                known.merge(bar)
        return [
            Candle(
                instrument_id, interval, opened, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trades,
                closed=opened + interval <= now,
            )
            for opened, bar in merged.items()
        ]  # fmt: skip

    def base_bars(self, instrument_id: InstrumentId, interval_ms: int, from_ms: int, until_ms: int) -> list[Candle]:
        """Return the bars as they are kept, of which bars of ``interval_ms`` can be put together, oldest first.

        Args:
            from_ms, until_ms: they open within [from_ms, until_ms).
        """
        now = self.now_ms(instrument_id)
        finished = self._finished.get(instrument_id)
        own = finished.interval_ms if finished else MINUTE_MS if interval_ms >= MINUTE_MS else SECOND_MS
        return [
            Candle(
                instrument_id, own, start, bar.open, bar.high, bar.low, bar.close, bar.volume, bar.trades,
                closed=start + own <= now,
            )
            for start, bar in self._bars(instrument_id, interval_ms, from_ms)
            if from_ms <= start < until_ms
        ]  # fmt: skip

    def bars_from_ms(self, instrument_id: InstrumentId, interval_ms: int) -> int:
        """Return from when on every bar that ``base_bars`` could give is still kept; 0 before the first venue time."""
        since = self.since_ms(instrument_id)
        series = self._finished.get(instrument_id)
        if series is None:
            series = (self._minutes if interval_ms >= MINUTE_MS else self._seconds).get(instrument_id)
        return since if series is None else max(since, series.from_ms)

    def traded(self) -> tuple[InstrumentId, ...]:
        """Return the instruments whose candles are built from trades."""
        return tuple(self._minutes)

    def finished_ms(self, instrument_id: InstrumentId) -> int | None:
        """Return the length of the finished bars that are given instead of trades, None for any other market."""
        series = self._finished.get(instrument_id)
        return None if series is None else series.interval_ms

    def volume(self, instrument_id: InstrumentId, window_ms: int) -> Decimal:
        """Return the base quantity traded in the minutes that began within the last ``window_ms``."""
        earliest = self.now_ms(instrument_id) - window_ms
        total = ZERO
        for start, bar in self._bars(instrument_id, DAY_MS, earliest):
            if start >= earliest - earliest % MINUTE_MS:
                total = add(total, bar.volume)
        return total

    def _bars(self, instrument_id: InstrumentId, interval: int, earliest_ms: int) -> list[tuple[int, _Bar]]:
        """Return the bars that end after ``earliest_ms`` and of which bars of ``interval`` can be put together."""
        finished = self._finished.get(instrument_id)
        if finished is not None:
            return finished.since(earliest_ms) if interval % finished.interval_ms == 0 else []
        series = (self._minutes if interval >= MINUTE_MS else self._seconds).get(instrument_id)
        return series.since(earliest_ms) if series is not None else []
