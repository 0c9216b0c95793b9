"""Keeps the candles that this process builds from trades, in the ledger's database.

Rules kept here:

- The feed is never waited for by anybody here, nor does it wait: closed minutes are collected from the candles in
  memory four times a second and written once a second, many in one transaction.
- When the disk is slow or away, what is to be written waits, a bounded number of candles; beyond it the oldest are
  dropped and counted.
- A minute of which not every trade was seen (start, stop, interruption) is kept as incomplete; history asks the venue
  for a better one. Hours and days are put together from complete minutes when they end.
- A trade that arrives after its minute was written makes the minute be written again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from mcp_servers.market.candles import DAY_MS, MINUTE_MS, CandleStore
from mcp_servers.market.merging import merge_bars
from mcp_servers.market.spans import Watch, aligned, covers, join
from trading.adapters.sql.candles import CandleTables, Series, StoredCandle, StoredSpan
from trading.domain.errors import LedgerError
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed
from trading.ports.clock import Clock

HOUR_MS: Final = 60 * MINUTE_MS
#: Lengths of the candles that are kept; every other timeframe is put together from one of them.
KEPT_INTERVALS: Final = (MINUTE_MS, HOUR_MS, DAY_MS)
#: How long they are kept, in milliseconds: 120 days of minutes (26 MB an instrument), ten years of the others.
RETENTION_MS: Final = {MINUTE_MS: 120 * DAY_MS, HOUR_MS: 3_660 * DAY_MS, DAY_MS: 3_660 * DAY_MS}

_COLLECT_S: Final = 0.25
_COLLECTS_A_WRITE: Final = 4
_WAIT_MAX_S: Final = 30.0
_QUEUE_MAX: Final = 20_000
_BATCH: Final = 512
_STOP_S: Final = 3.0
#: Venue time after a minute's end at which it is taken: a trade may be told after a book that is newer.
_GRACE_MS: Final = 1_000
#: Minutes that are compared again, for trades that came late.
_WATCHED_AGAIN: Final = 5
_AT_ONCE_MS: Final = 500 * MINUTE_MS
_PRUNE_MS: Final = 6 * HOUR_MS

#: Told of a closed minute once, and whether every trade of it was seen.
OnCandleClosed = Callable[[Candle, bool], None]

_log = logging.getLogger(__name__)


class CandleArchive:
    """Writes closed candles; runs in the publishing process alone.

    Args:
        tables: opened for writing.
        candles: fed by the pipelines.
        watch: knows which stretches were seen whole.
        clock: stamps rows and paces what is deleted.
        feed: whether the market is live or recorded.
        retention_ms: how long candles of each length are kept, counted from the newest of their series.
        queue_max: candles that may wait to be written.
    """

    def __init__(
        self,
        tables: CandleTables,
        candles: CandleStore,
        watch: Watch,
        clock: Clock,
        *,
        feed: Feed,
        retention_ms: dict[int, int] | None = None,
        queue_max: int = _QUEUE_MAX,
    ) -> None:
        self._tables = tables
        self._candles = candles
        self._watch = watch
        self._clock = clock
        self._feed = feed
        self._retention_ms = retention_ms or RETENTION_MS
        self._sent: dict[InstrumentId, OrderedDict[int, tuple[int, object]]] = {}
        self._reached: dict[InstrumentId, int] = {}
        self._queue: OrderedDict[tuple[InstrumentId, int, int], StoredCandle] = OrderedDict()
        self._queue_max = queue_max
        self._lost_until: dict[InstrumentId, int] = {}
        self._pruned_ms = 0
        self.on_candle_closed: list[OnCandleClosed] = []
        self.counters: dict[str, int] = dict.fromkeys(
            ("closed", "late", "incomplete", "written", "lost", "failures"), 0
        )

    @property
    def waiting(self) -> int:
        """Candles that are not written yet."""
        return len(self._queue)

    async def run(self) -> None:
        """Collect and write until cancelled; then write what is there, for three seconds at most."""
        turn, wait_s = 0, _COLLECT_S
        try:
            while True:
                await asyncio.sleep(wait_s)
                self.collect()
                turn += 1
                if turn % _COLLECTS_A_WRITE == 0 or wait_s > _COLLECT_S:
                    done = await self.write()
                    wait_s = _COLLECT_S if done else min(wait_s * 2, _WAIT_MAX_S)
        finally:
            await self._stop()

    def collect(self, *, last: bool = False) -> None:
        """Queue the minutes that have closed since the last time, and say so to whoever listens.

        Args:
            last: take the open minute too, as it will never be seen whole.
        """
        for instrument_id in self._candles.traded():
            reached = self._candles.now_ms(instrument_id) - (0 if last else _GRACE_MS)
            boundary = reached - reached % MINUTE_MS
            if boundary > self._reached.get(instrument_id, -1):
                self._collect(instrument_id, boundary)
            if last:
                for bar in self._candles.base_bars(instrument_id, MINUTE_MS, boundary, boundary + MINUTE_MS):
                    self._put(StoredCandle(bar, complete=False, source="trades"))

    def _collect(self, instrument_id: InstrumentId, boundary: int) -> None:
        reached = self._reached.get(instrument_id)
        since = self._candles.bars_from_ms(instrument_id, MINUTE_MS) if reached is None else reached
        since -= since % MINUTE_MS
        boundary = min(boundary, since + _AT_ONCE_MS)  # a week at once would hold up the feed; the rest comes next time
        sent = self._sent.setdefault(instrument_id, OrderedDict())
        whole = join(aligned(self._watch.spans(instrument_id), MINUTE_MS))
        since -= 0 if reached is None else _WATCHED_AGAIN * MINUTE_MS
        for bar in self._candles.base_bars(instrument_id, MINUTE_MS, since, boundary):
            known, now = sent.get(bar.open_ts_ms), (bar.trades, bar.volume)
            if known == now:
                continue
            stored = StoredCandle(bar, covers(whole, bar.open_ts_ms, bar.open_ts_ms + MINUTE_MS), "trades")
            self._put(stored)
            sent[bar.open_ts_ms] = now
            self.counters["late" if known else "closed"] += 1
            self.counters["incomplete"] += not stored.complete
            if known is None:
                self._tell(bar, complete=stored.complete)
        while len(sent) > 2 * _WATCHED_AGAIN:
            sent.popitem(last=False)
        self._reached[instrument_id] = boundary
        for interval in (HOUR_MS, DAY_MS):
            self._roll_up(instrument_id, interval, reached or 0, boundary)

    def _tell(self, bar: Candle, *, complete: bool) -> None:
        for hook in self.on_candle_closed:
            try:
                hook(bar, complete)
            except Exception:  # noqa: BLE001  a listener's defect is not the archive's
                _log.exception("a listener to closed candles failed")

    def _roll_up(self, instrument_id: InstrumentId, interval: int, reached: int, boundary: int) -> None:
        """Queue the hours or days that have ended since, if all their minutes are here and were seen whole."""
        first = max(reached - reached % interval, self._candles.bars_from_ms(instrument_id, MINUTE_MS))
        last = boundary - boundary % interval
        if last <= reached:
            return
        whole = aligned(self._watch.spans(instrument_id), interval)
        minutes = self._candles.base_bars(instrument_id, MINUTE_MS, first - first % interval, last)
        for bar in merge_bars(minutes, interval, now_ms=boundary):
            if bar.open_ts_ms >= first and covers(whole, bar.open_ts_ms, bar.open_ts_ms + interval):
                self._put(StoredCandle(bar, complete=True, source="trades"))

    def _put(self, item: StoredCandle) -> None:
        candle = item.candle
        key = (candle.instrument_id, candle.interval_ms, candle.open_ts_ms)
        self._queue[key] = item  # a newer one keeps the place: no span may be written before what lies in it
        if len(self._queue) > self._queue_max:
            (instrument_id, interval, opened), _ = self._queue.popitem(last=False)
            if interval == MINUTE_MS:
                self._lost_until[instrument_id] = opened + MINUTE_MS
            self.counters["lost"] += 1

    async def write(self) -> bool:
        """Write what waits; return False when the database did not take it, and it waits on."""
        try:
            while self._queue:
                await self._write_some()
            await self._prune()
        except LedgerError as error:
            if not self.counters["failures"]:
                _log.warning("candles cannot be written and wait: %s", error)
            self.counters["failures"] += 1
            return False
        return True

    async def _write_some(self) -> None:
        (instrument_id, interval, _), _ = next(iter(self._queue.items()))
        batch = [(key, item) for key, item in self._queue.items() if key[0] == instrument_id and key[1] == interval][
            :_BATCH
        ]
        items = [item for _, item in batch]
        series = Series(self._feed, instrument_id, interval)
        now_ms = self._clock.now_ms()
        await self._tables.write(series, items, self._spans(series, items, now_ms), now_ms=now_ms)
        self.counters["written"] += len(items)
        for key, item in batch:
            if self._queue.get(key) is item:  # a late trade may have replaced it meanwhile
                del self._queue[key]

    def _spans(self, series: Series, items: Sequence[StoredCandle], now_ms: int) -> list[StoredSpan]:
        """Return what is known once these are written: the watched stretches up to the newest of them."""
        until = max(item.candle.open_ts_ms for item in items) + series.interval_ms
        if series.interval_ms != MINUTE_MS:
            return [
                StoredSpan(item.candle.open_ts_ms, item.candle.open_ts_ms + series.interval_ms, "trades", now_ms)
                for item in items
            ]
        earliest = min(item.candle.open_ts_ms for item in items)
        spans = join(aligned(self._watch.spans(series.instrument_id), MINUTE_MS))
        lost = self._lost_until.get(series.instrument_id, 0)
        known = [(max(start, lost), min(end, until)) for start, end in spans if end > earliest]
        return [StoredSpan(start, end, "trades", now_ms) for start, end in known if start < end]

    async def _prune(self) -> None:
        now_ms = self._clock.now_ms()
        if now_ms - self._pruned_ms < _PRUNE_MS:
            return
        self._pruned_ms = now_ms
        for instrument_id in self._candles.traded():
            newest = self._candles.now_ms(instrument_id)
            for interval, kept_ms in self._retention_ms.items():
                series = Series(self._feed, instrument_id, interval)
                before = newest - kept_ms
                await self._tables.forget(series, before - before % interval)

    async def _stop(self) -> None:
        self.collect(last=True)
        try:
            async with asyncio.timeout(_STOP_S):
                await self.write()
        except TimeoutError:
            pass
        if self._queue:
            self.counters["lost"] += len(self._queue)
            _log.warning("%d candles were not written before the stop", len(self._queue))
