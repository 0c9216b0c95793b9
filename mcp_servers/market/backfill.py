"""Fetches a venue's own candles for stretches that nobody here has watched.

Rules kept here:

- Asked in pages of a bounded number of bars, newest first, a bounded number of pages at a time; what is left is said.
- One fetch per series at a time; whoever asks meanwhile waits for it, and nobody waits longer than ``wait_s``.
- What the venue answered is remembered. A stretch it had nothing for (an outage, nothing traded, too long ago) is asked
  for again after a day at the earliest. The newest minutes are not remembered as empty: they may be late.
- Open, malformed and misplaced bars are dropped and counted, and their time stays unknown. What is closed is said by
  our clock less what it is measured to be ahead of the venue's: a bar that still grows there is never kept.
- After a failure a venue is left alone for a while, longer each time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from mcp_servers.market.candles import DAY_MS, MINUTE_MS
from mcp_servers.market.spans import Span, join, without
from trading.adapters.sql.candles import CandleTables, Series, StoredCandle, StoredSpan
from trading.domain.errors import TradingError
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle
from trading.domain.money import ZERO
from trading.ports.clock import Clock

#: How long "the venue had nothing there" is believed.
EMPTY_BELIEVED_MS: Final = DAY_MS
#: The venue's newest closed bar may appear this late; such a stretch is not remembered as empty.
_LATE_MS: Final = 5 * MINUTE_MS
#: A bar is asked for when it has been closed for so long.
_SETTLE_MS: Final = 5_000
_FIRST_PAUSE_MS: Final = 2_000
_LONGEST_PAUSE_MS: Final = 300_000
_RUNNING_MAX: Final = 8
_ASK_NEWEST_EVERY_MS: Final = 15_000
_STILL_RUNNING: Final = "history is still being fetched; ask again"
#: Bars at the ends of an answer that are taken for quiet without asking again.
_QUIET_BARS: Final = 10

_NAMES: Final = {MINUTE_MS: "1m", 60 * MINUTE_MS: "1h", DAY_MS: "1d"}

_log = logging.getLogger(__name__)


class VenueCandles(Protocol):
    """Who asks the venue (``Reference``)."""

    async def candles(
        self, instrument_id: InstrumentId, timeframe: str, since_ms: int, until_ms: int
    ) -> Sequence[Candle]:
        """Return the venue's candles that open within [since_ms, until_ms), perhaps not all of them.

        Raises:
            TradingError: it does not answer, or refuses.
        """
        ...


class Backfill:
    """Fills gaps from a venue.

    Args:
        venue: asked for candles.
        tables: where they are kept; opened for writing.
        clock: says what is closed, and when a venue may be asked again.
        page_bars: bars asked for at once; every large venue gives this many.
        pages: pages at most for one question.
        wait_s: how long a question waits; the fetch goes on afterwards.
        skew_ms: how far receive time runs ahead of a venue's clock; None before a measurement.
    """

    def __init__(
        self,
        venue: VenueCandles,
        tables: CandleTables,
        clock: Clock,
        *,
        page_bars: int = 300,
        pages: int = 8,
        wait_s: float = 8.0,
        skew_ms: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._venue = venue
        self._tables = tables
        self._clock = clock
        self._page_bars = page_bars
        self._pages = pages
        self._wait_s = wait_s
        self._skew_ms = skew_ms
        self._tasks: dict[Series, asyncio.Task[str]] = {}
        self._pauses: dict[str, tuple[int, int]] = {}
        self._asked_ms: dict[Series, int] = {}
        self.counters: dict[str, int] = dict.fromkeys(
            ("pages", "bars", "empty", "differences", "garbage", "failures"), 0
        )

    async def fill(self, series: Series, missing: Sequence[Span]) -> str:
        """Fetch what is missing of a series and keep it; return why something is still missing, or an empty string.

        Args:
            series: of minutes, hours or days.
            missing: stretches, aligned to the series.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_s
        while (running := self._tasks.get(series)) is not None:  # what it fetches may be what is missing here
            if not await _ended(running, deadline - loop.time()):
                return _STILL_RUNNING
        wanted = self._to_ask(series, missing)
        if not wanted:
            return ""
        if len(self._tasks) >= _RUNNING_MAX:
            return "too much history is being fetched at once; ask again"
        task = asyncio.create_task(self._run(series, wanted), name=f"backfill-{series.instrument_id}")
        self._tasks[series] = task
        task.add_done_callback(lambda _: self._tasks.pop(series, None))
        ended = await _ended(task, deadline - loop.time())
        return task.result() if ended and not task.cancelled() else _STILL_RUNNING

    def now_ms(self) -> int:
        """Return the clock's wall time, by which what was learned ages."""
        return self._clock.now_ms()

    async def close(self) -> None:
        """Stop what is being fetched."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _to_ask(self, series: Series, missing: Sequence[Span]) -> list[Span]:
        """Leave out bars that are not settled yet, and the newest minutes when they were asked for just now."""
        now_ms, interval = self._clock.now_ms(), series.interval_ms
        late = _LATE_MS if now_ms - self._asked_ms.get(series, 0) < _ASK_NEWEST_EVERY_MS else _SETTLE_MS
        latest = self._venue_now_ms(series) - late
        cut = ((start, min(end, latest - latest % interval)) for start, end in missing)
        return [span for span in cut if span[0] < span[1]]

    def _venue_now_ms(self, series: Series) -> int:
        """Return the venue's time by our clock; never later than that."""
        return self._clock.now_ms() - max(0, self._skew_ms(series.instrument_id.venue) or 0)

    async def _run(self, series: Series, wanted: Sequence[Span]) -> str:
        venue = series.instrument_id.venue
        not_before, pause_ms = self._pauses.get(venue, (0, _FIRST_PAUSE_MS))
        if self._clock.now_ms() < not_before:
            return f"{venue} failed to give older candles a moment ago; ask again later"
        try:
            note = await self._fill(series, wanted)
        except TradingError as error:
            self.counters["failures"] += 1
            after_ms: int = max(pause_ms, getattr(error, "after_ms", 0) or 0)
            self._pauses[venue] = (self._clock.now_ms() + after_ms, min(pause_ms * 2, _LONGEST_PAUSE_MS))
            return f"{venue} did not give older candles ({error.code})"
        except Exception:  # noqa: BLE001  the boundary of a fetch: a defect there must not fail what is known
            _log.exception("fetching candles of %s failed", series.instrument_id)
            self.counters["failures"] += 1
            return f"{venue} did not give older candles (INTERNAL)"
        self._pauses.pop(venue, None)
        return note

    async def _fill(self, series: Series, wanted: Sequence[Span]) -> str:
        tried: list[Span] = []
        page: Span | None = None
        self._asked_ms[series] = self._clock.now_ms()
        for _ in range(self._pages):
            missing = await self._missing(series, wanted, tried)
            if not missing:
                return ""
            last, page = page, self._next_page(series, missing)
            tried += await self._ask(series, page, again=page == last)
        return "older candles are not all here yet; ask again" if await self._missing(series, wanted, tried) else ""

    async def _missing(self, series: Series, wanted: Sequence[Span], tried: Sequence[Span]) -> list[Span]:
        known = believed(await self._tables.spans(series), now_ms=self._clock.now_ms())
        known = join((*known, *tried))
        return [part for span in wanted for part in without(span, known)]

    def _next_page(self, series: Series, missing: Sequence[Span]) -> Span:
        """Return the newest page that ends with something missing; it may span stretches that are known."""
        until = missing[-1][1]
        earliest = until - self._page_bars * series.interval_ms
        return min(max(start, earliest) for start, end in missing if end > earliest), until

    async def _ask(self, series: Series, page: Span, *, again: bool) -> list[Span]:
        """Ask for a page and keep what the venue gives.

        Args:
            again: the same was asked just before: what is not given now either does not exist.

        Returns:
            Stretches that are still unknown and that it is no use to ask for again now.
        """
        interval, (since, until) = series.interval_ms, page
        given = await self._venue.candles(series.instrument_id, _NAMES[interval], since, until)
        self.counters["pages"] += 1
        good, bad = self._checked(series, given, page)
        self.counters["bars"] += len(good)
        self.counters["garbage"] += len(bad)
        await self._count_differences(series, good)
        now_ms = self._clock.now_ms()
        spans = self._learned(series, page, good, bad, now_ms=now_ms, again=again)
        kept = [StoredCandle(candle, complete=True, source="venue") for candle in good]
        await self._tables.write(series, kept, spans, now_ms=now_ms)
        edge = self._venue_now_ms(series) - _LATE_MS
        newest = max(since, edge - edge % interval)
        return [*bad, (newest, until)]

    def _learned(
        self,
        series: Series,
        page: Span,
        good: Sequence[Candle],
        bad: Sequence[Span],
        *,
        now_ms: int,
        again: bool,
    ) -> list[StoredSpan]:
        """Return what an answer says: the stretch from its first to its last bar, and where there is nothing.

        A venue may give fewer bars than asked, at either end: what lies outside is asked for again, unless it is short.
        """
        interval, (since, until) = series.interval_ms, page
        edge = self._venue_now_ms(series) - _LATE_MS
        newest = min(until, edge - edge % interval)
        empty: list[Span] = []
        known: list[Span] = []
        if good:
            first, last = good[0].open_ts_ms, good[-1].open_ts_ms + interval
            quiet = _QUIET_BARS * interval
            start = since if first - since <= quiet else first
            end = newest if 0 < newest - last <= quiet else last
            known = without((start, end), join(bad))
            if again:
                empty = [(since, start), (end, newest)]
        else:
            self.counters["empty"] += 1
            empty = [(since, newest)]
        return [StoredSpan(*span, "venue", now_ms) for span in known] + [
            StoredSpan(*part, "empty", now_ms) for span in join(empty) for part in without(span, join(bad))
        ]

    def _checked(self, series: Series, given: Iterable[Candle], page: Span) -> tuple[list[Candle], list[Span]]:
        """Return the good bars by time, and the intervals of bars that make no sense."""
        good: dict[int, Candle] = {}
        bad: list[Span] = []
        latest = self._venue_now_ms(series) - series.interval_ms
        for candle in given:
            opened = candle.open_ts_ms
            if not page[0] <= opened < page[1] or opened > latest or opened % series.interval_ms:
                continue
            if candle.instrument_id == series.instrument_id and is_sound(candle, series.interval_ms):
                good[opened] = candle
            else:
                bad.append((opened, opened + series.interval_ms))
        return [good[opened] for opened in sorted(good)], bad

    async def _count_differences(self, series: Series, good: Sequence[Candle]) -> None:
        if not good:
            return
        until = good[-1].open_ts_ms + series.interval_ms
        own = {
            item.candle.open_ts_ms: item.candle
            for item in await self._tables.read(series, good[0].open_ts_ms, until)
            if item.complete and item.source == "trades"
        }
        self.counters["differences"] += sum(
            1
            for candle in good
            if (mine := own.get(candle.open_ts_ms)) is not None and _values(mine) != _values(candle)
        )


async def _ended(task: asyncio.Task[str], timeout_s: float) -> bool:
    """Wait for a task without cancelling it; return whether it has ended."""
    return bool((await asyncio.wait({task}, timeout=max(0.0, timeout_s)))[0])


def believed(spans: Iterable[StoredSpan], *, now_ms: int) -> list[Span]:
    """Return the stretches that need not be asked for: what is known, and what was empty a day ago at most."""
    return join(
        (span.from_ms, span.until_ms)
        for span in spans
        if span.source != "empty" or now_ms - span.written_ms < EMPTY_BELIEVED_MS
    )


def is_sound(candle: Candle, interval_ms: int) -> bool:
    """Return whether a candle from outside can be one: of that length, positive, within its own range."""
    prices = (candle.open, candle.high, candle.low, candle.close)
    return (
        candle.interval_ms == interval_ms
        and all(price.is_finite() for price in (*prices, candle.volume))
        and min(prices) > ZERO
        and candle.volume >= ZERO
        and candle.high == max(prices)
        and candle.low == min(prices)
    )


def _values(candle: Candle) -> tuple[object, ...]:
    return candle.open, candle.high, candle.low, candle.close, candle.volume
