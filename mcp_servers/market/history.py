"""Candles of the past, from memory, from the archive and from the venue, in this order.

Rules kept here:

- Nothing that opens after the asked moment is shown; what closes after it is rebuilt from finer bars, or from those of
  them that are over, and marked open. A replay's present is how far it has come.
- A complete bar built here from trades goes before the venue's own, and that before one that was cut.
- Longer timeframes are put together from kept minutes, hours or days; nothing is interpolated, and no bar is left out
  to save work: an answer is the newest bars or says that it was cut.
- What fails on the way (database, venue) becomes a note; what is known is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mcp_servers.market.backfill import Backfill, believed
from mcp_servers.market.candle_archive import HOUR_MS, KEPT_INTERVALS
from mcp_servers.market.candle_series import Bar, CandleSeries, better, built, series_of, stored, together
from mcp_servers.market.candles import MINUTE_MS, SECOND_MS, TIMEFRAMES, CandleStore
from mcp_servers.market.market_time import MarketTime
from mcp_servers.market.merging import merge_bars
from mcp_servers.market.spans import Span, Watch, aligned, covers, join, without
from trading.adapters.sql.candles import CandleTables, Series
from trading.domain.errors import InvalidValue, LedgerError, Unavailable
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Feed

#: Bars one question may ask for.
BARS_MAX: Final = 1_000
#: Finer bars that are put together for a stretch whose own bars are not kept.
_FINER_MAX: Final = 10_080
_QUIET_MS: Final = 10_000
#: Bars that are worked on before everybody else has a turn.
_AT_ONCE: Final = 500


@dataclass(slots=True)
class _Question:
    """What one call asks, and what it learns on the way.

    Attributes:
        end_ms: nothing after it is looked at.
        present: whether it is the market's present, so that unfinished bars in memory may be used.
    """

    instrument_id: InstrumentId
    end_ms: int
    present: bool
    notes: list[str] = field(default_factory=list[str])

    def note(self, text: str) -> None:
        """Say something once; nothing if it is empty."""
        if text and text not in self.notes:
            self.notes.append(text)


class _Known(NamedTuple):
    """Bars of one length by their opening time, and the stretches in which none is missing."""

    bars: dict[int, Bar]
    spans: list[Span]


class History:
    """Answers questions about past candles.

    Args:
        candles: built by this process.
        time: the market's present; the newest venue time if None.
        watch: which stretches this process saw whole; from its first venue time on if None.
        feed: whether the market is live or recorded; part of the archive's keys.
        shelves: the archive, and what this process has fetched itself.
        backfill: asks the venue; None when there is none to be asked.
    """

    def __init__(
        self,
        candles: CandleStore,
        *,
        time: MarketTime | None = None,
        watch: Watch | None = None,
        feed: Feed = Feed.REPLAY,
        shelves: Sequence[CandleTables] = (),
        backfill: Backfill | None = None,
    ) -> None:
        self._candles = candles
        self._time = time or MarketTime(candles, clock=None)
        self._watch = watch or Watch(candles)
        self._feed = feed
        self._shelves = tuple(shelves)
        self._backfill = backfill

    async def candles(
        self,
        instrument_id: InstrumentId,
        timeframe: str,
        *,
        lookback_ms: int,
        as_of_ms: int | None = None,
        limit: int = BARS_MAX,
    ) -> CandleSeries:
        """Return the candles that overlap the last ``lookback_ms`` before a moment, oldest first.

        Args:
            as_of_ms: the moment; the market's present if None.
            limit: the newest so many at most, >= 1; not more than ``BARS_MAX``.

        Raises:
            InvalidValue: INVALID_TIMEFRAME, or LOOK_AHEAD when ``as_of_ms`` has not come yet.
            Unavailable: MARKET_STARTING: ``as_of_ms`` is given and a replay has not given anything yet.
        """
        interval = TIMEFRAMES.get(timeframe)
        if interval is None:
            raise InvalidValue("there is no such timeframe", code="INVALID_TIMEFRAME", allowed=tuple(TIMEFRAMES))
        try:
            end = self._time.check_as_of(as_of_ms, instrument_id)
        except Unavailable:
            if as_of_ms is not None:
                raise
            question = _Question(instrument_id, 0, present=True, notes=["the market has not given anything yet"])
            return series_of(instrument_id, timeframe, (), until_ms=0, notes=question.notes)
        question = _Question(instrument_id, end, as_of_ms is None)
        limit = min(limit, BARS_MAX)
        asked = end - lookback_ms - (end - lookback_ms) % interval
        start = max(0, asked, end - end % interval - limit * interval)
        finished = self._candles.finished_ms(instrument_id)
        if interval < MINUTE_MS or finished is not None:
            if finished is not None and interval % finished:
                allowed = tuple(name for name, length in TIMEFRAMES.items() if length % finished == 0)
                raise InvalidValue(
                    "this market gives longer bars only", code="INVALID_TIMEFRAME", allowed=allowed
                )  # fmt: skip
            bars = await self._from_memory(question, interval, start)
        else:
            bars = await self._from_everywhere(question, interval, start)
        more = asked < start and (self._backfill is not None or self._is_older(instrument_id, start))
        found = series_of(instrument_id, timeframe, bars, until_ms=end, truncated=more, notes=question.notes)
        return found.newest(limit)

    def _is_older(self, instrument_id: InstrumentId, start: int) -> bool:
        return bool(self._shelves) or 0 < self._candles.since_ms(instrument_id) < start

    async def _from_memory(self, question: _Question, interval: int, start: int) -> list[Bar]:
        """Put bars together from what this process keeps; the archive has nothing shorter than minutes."""
        key, end = question.instrument_id, question.end_ms
        bars = self._candles.base_bars(key, interval, start, end + 1)
        seen = [bar for bar in bars if question.present or bar.open_ts_ms + bar.interval_ms <= end]
        known = _Known({bar.open_ts_ms: built(bar) for bar in seen}, self._watched(question, interval))
        return await self._merged(question, known, interval, end)

    async def _from_everywhere(self, question: _Question, interval: int, start: int) -> list[Bar]:
        base = max(kept for kept in KEPT_INTERVALS if interval % kept == 0)
        whole_end = question.end_ms - question.end_ms % interval
        known = await self._known(question, base, start, whole_end)
        bars = await self._merged(question, known, interval, whole_end)
        last = await self._last(question, interval, whole_end)
        return [*bars, last] if last is not None else bars

    async def _last(self, question: _Question, interval: int, opened: int) -> Bar | None:
        """Return the bar that is open at the moment, put together from ever finer ones that are over by then."""
        parts: list[Bar] = []
        spans: list[Span] = []
        cursor = opened
        for finer in (HOUR_MS, MINUTE_MS):
            end = question.end_ms - question.end_ms % finer
            if finer < interval and cursor < end:
                known = await self._known(question, finer, cursor, end)
                parts += [known.bars[at] for at in sorted(known.bars)]
                spans += known.spans
                cursor = end
        finest = MINUTE_MS if question.present else SECOND_MS
        for bar in self._candles.base_bars(question.instrument_id, finest, cursor, question.end_ms + 1):
            if question.present or bar.open_ts_ms + finest <= question.end_ms:
                parts.append(built(bar))
        if not parts:
            return None
        spans = join((*spans, *self._watched(question, finest)))
        return together(parts, interval, complete=covers(spans, opened, question.end_ms), closed=False)

    async def _merged(self, question: _Question, known: _Known, interval: int, end: int) -> list[Bar]:
        """Put known bars together to bars of ``interval``; one that ends after the moment is open."""
        groups: dict[int, list[Bar]] = {}
        for at in sorted(known.bars):
            groups.setdefault(at - at % interval, []).append(known.bars[at])
        merged: list[Bar] = []
        done = 0
        for opened, parts in groups.items():
            complete = covers(known.spans, opened, min(opened + interval, end))
            closed = opened + interval <= question.end_ms and all(part.candle.closed for part in parts)
            merged.append(together(parts, interval, complete=complete, closed=closed))
            done += len(parts)
            if done >= _AT_ONCE:
                done = 0
                await asyncio.sleep(0)  # the feed's turn
        return merged

    def _watched(self, question: _Question, interval: int) -> list[Span]:
        """Return the stretches that were seen whole and whose bars are still in memory.

        A feed that is at most ten seconds behind the asked moment counts as being there, unless it is interrupted: a
        quiet market says nothing.
        """
        key, end = question.instrument_id, question.end_ms
        kept_from = self._candles.bars_from_ms(key, interval)
        spans = join((max(start, kept_from), until) for start, until in self._watch.spans(key))
        if spans and spans[-1][1] < end <= spans[-1][1] + _QUIET_MS and not self._watch.is_broken(key):
            spans[-1] = (spans[-1][0], end)
        return spans

    async def _known(self, question: _Question, base: int, start: int, end: int, *, ask_venue: bool = True) -> _Known:
        """Return the bars of a kept length that open and end within [start, end)."""
        known, missing = _Known({}, []), [(start, end)] if start < end else []
        if missing and base == MINUTE_MS:
            known, missing = await self._take_from_memory(question, known, base, missing)
        if missing:
            known, missing = await self._take_from_shelves(question, known, base, missing)
        if missing and base > MINUTE_MS:  # after the archive: putting a week of minutes together takes a while
            known, missing = await self._take_from_memory(question, known, base, missing)
        if missing and ask_venue and self._backfill is not None:
            note = await self._backfill.fill(Series(self._feed, question.instrument_id, base), missing)
            question.note(note)
            known, missing = await self._take_from_shelves(question, known, base, missing)
        if missing and base > MINUTE_MS:
            known = await self._take_from_finer(question, known, base, missing)
        return known

    async def _take_from_memory(
        self, question: _Question, known: _Known, base: int, missing: Sequence[Span]
    ) -> tuple[_Known, list[Span]]:
        """Take the bars of this process; of hours and days only those that it has seen whole."""
        watched = aligned(self._watched(question, base), base)
        step = max(base, _AT_ONCE * MINUTE_MS - _AT_ONCE * MINUTE_MS % base)
        for first, last in missing:
            for start in range(first, last, step):
                bars = self._candles.base_bars(question.instrument_id, MINUTE_MS, start, min(start + step, last))
                if base > MINUTE_MS:
                    bars = merge_bars(bars, base, now_ms=question.end_ms)
                for bar in bars:
                    opened = bar.open_ts_ms
                    made = built(bar, complete=covers(watched, opened, opened + base))
                    if made.complete or base == MINUTE_MS:
                        known.bars[opened] = better(known.bars.get(opened), made)
                await asyncio.sleep(0)  # the feed's turn
        return _left(known, watched, missing)

    async def _take_from_shelves(
        self, question: _Question, known: _Known, base: int, missing: Sequence[Span]
    ) -> tuple[_Known, list[Span]]:
        series = Series(self._feed, question.instrument_id, base)
        now_ms = self._backfill.now_ms() if self._backfill is not None else 0  # nobody to ask: believe what was empty
        spans: list[Span] = []
        for shelf in self._shelves:
            try:
                spans += believed(await shelf.spans(series), now_ms=now_ms)
                rows = await shelf.read(series, missing[0][0], missing[-1][1])
            except LedgerError:
                question.note("the archive does not answer")
                continue
            for item in rows:
                opened = item.candle.open_ts_ms
                known.bars[opened] = better(known.bars.get(opened), stored(item))
                if item.complete:
                    spans.append((opened, opened + base))
        return _left(known, spans, missing)

    async def _take_from_finer(self, question: _Question, known: _Known, base: int, missing: Sequence[Span]) -> _Known:
        """Put together what is missing from finer bars that are known already, the newest stretches first."""
        finer = KEPT_INTERVALS[KEPT_INTERVALS.index(base) - 1]
        left, spans = _FINER_MAX * finer, list(known.spans)
        for start, end in reversed(missing):
            start = max(start, end - left)
            left -= end - start
            if start >= end:
                break
            parts = await self._known(question, finer, start, end, ask_venue=False)
            for bar in await self._merged(question, parts, base, end):
                opened = bar.candle.open_ts_ms
                known.bars[opened] = better(known.bars.get(opened), bar)
            spans += aligned(parts.spans, base)
        return _Known(known.bars, join(spans))


def _left(known: _Known, spans: Iterable[Span], missing: Sequence[Span]) -> tuple[_Known, list[Span]]:
    """Return what is known with the stretches just learned, and what of ``missing`` is missing still."""
    learned = join((*known.spans, *spans))
    return _Known(known.bars, learned), [part for span in missing for part in without(span, learned)]
