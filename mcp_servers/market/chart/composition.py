"""Puts a chart together: candles, averages, the desk's marks, and what has to be said about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Protocol

from mcp_servers.envelope import MAX_LOOKBACK_MS, timestamp
from mcp_servers.market.candle_series import CandleSeries
from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.chart.drawing import Drawing, Marks, moving_average
from mcp_servers.market.chart.overlay import Overlay
from mcp_servers.market.chart.picture import MAX_CANDLES
from mcp_servers.market.market_time import parse_as_of
from mcp_servers.market.prices import Tick
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle, Feed

#: An average has settled within three times its period: what came before weighs a quarter of a percent then.
_WARM_UP: Final = 3


class CandleSource(Protocol):
    """Candles of the past; ``History`` is one."""

    async def candles(
        self,
        instrument_id: InstrumentId,
        timeframe: str,
        *,
        lookback_ms: int,
        as_of_ms: int | None = None,
        limit: int = ...,
    ) -> CandleSeries:
        """Return candles up to a moment, the newest ``limit`` at most."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a caller asked for; see the tool."""

    timeframe: str
    lookback_ms: int
    as_of: str = ""
    ema: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A chart, the moment it shows, and whether it leaves out older candles that were asked for."""

    drawing: Drawing
    at_ms: int
    truncated: bool


async def compose(tick: Tick, history: CandleSource, overlay: Overlay, wish: Wish) -> Composed:
    """Return the chart of a ticker's instrument.

    Raises:
        InvalidValue: LOOK_AHEAD, INVALID_TIME or INVALID_TIMEFRAME. Unavailable: MARKET_STARTING.
    """
    moment = parse_as_of(wish.as_of) if wish.as_of else None
    interval = TIMEFRAMES[wish.timeframe]
    warm_up = _WARM_UP * max(wish.ema, default=0)
    series = await history.candles(
        tick.instrument.id,
        wish.timeframe,
        lookback_ms=min(wish.lookback_ms + warm_up * interval, MAX_LOOKBACK_MS),
        as_of_ms=moment,
        limit=MAX_CANDLES + warm_up,
    )
    # Whatever a source gives: nothing that is only known after the chart's end may be on it.
    past = [c for c in series.candles if c.open_ts_ms + (interval if c.closed else 0) <= series.until_ms]
    asked_ms = series.until_ms - wish.lookback_ms
    wanted = sum(c.open_ts_ms + interval > asked_ms for c in past)
    shown = past[len(past) - min(wanted, MAX_CANDLES) :]
    since, until = _edges(shown, interval, asked_ms, series.until_ms)
    marks = Marks()
    if series.until_ms > 0:
        end = series.until_ms  # not the edge, which lies at the end of an interval that is not over
        marks = await overlay.marks(tick.instrument.id, since, end, book=tick.book, past=moment is not None)
    truncated = wanted > len(shown) or (series.truncated and len(past) == wanted)
    drawing = Drawing(
        symbol=tick.instrument.symbol,
        venue=tick.instrument.venue,
        timeframe=wish.timeframe,
        interval_ms=interval,
        candles=shown,
        since_ms=since,
        until_ms=until,
        decimals=_decimals(tick.instrument.price_tick),
        last=_last(tick, shown, present=moment is None),
        badges=_badges(tick, series.newest(len(shown)).gaps, present=moment is None),
        notes=(*_notes(tick, series.newest(len(shown)), asked_ms, present=moment is None), *marks.notes),
        marks=marks,
        ema={period: _average(past, period, len(shown)) for period in wish.ema},
    )
    return Composed(drawing=drawing, at_ms=series.until_ms, truncated=truncated)


def _edges(shown: Sequence[Candle], interval: int, asked_ms: int, until_ms: int) -> tuple[int, int]:
    """Return the chart's edges: as far as there are candles, and the last of them whole."""
    if not shown:
        return asked_ms, until_ms
    return shown[0].open_ts_ms, max(until_ms, shown[-1].open_ts_ms + interval)


def _decimals(price_tick: Decimal) -> int:
    exponent = price_tick.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _average(candles: Sequence[Candle], period: int, shown: int) -> list[float | None]:
    """Return the average at each shown candle; none at one that is still open."""
    closed = [candle.close for candle in candles if candle.closed]
    values = moving_average(closed, period) + [None] * (len(candles) - len(closed))
    return values[len(values) - shown :]


def _last(tick: Tick, shown: Sequence[Candle], *, present: bool) -> Decimal | None:
    if present and tick.last is not None:
        return tick.last.price
    return shown[-1].close if shown else None


def _badges(tick: Tick, gaps: int, *, present: bool) -> tuple[str, ...]:
    badges: list[str] = []
    feed = tick.book.feed if tick.book is not None else tick.last.feed if tick.last is not None else Feed.LIVE
    if feed is not Feed.LIVE:
        badges.append(feed.value.upper())
    if not present:
        badges.append("AS OF")
    elif tick.age_ms is None:
        badges.append("NO BOOK")
    elif tick.stale:
        badges.append(f"STALE {_length(tick.age_ms)}")
    if gaps:
        badges.append(f"{gaps} GAP{'S' if gaps > 1 else ''}")
    return tuple(badges)


def _length(ms: int) -> str:
    for unit, name in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if ms >= unit:
            return f"{ms // unit} {name}"
    return f"{ms} ms"


def _notes(tick: Tick, series: CandleSeries, asked_ms: int, *, present: bool) -> list[str]:
    """Return what is to be known of the candles shown."""
    notes = list(series.notes)
    if present and tick.stale:
        age = "there is no book" if tick.age_ms is None else f"the newest book is {_length(tick.age_ms)} old"
        reasons = ", ".join(tick.marks)
        notes.append(f"do not price an order from this: {age}{f' ({reasons})' if reasons else ''}")
    if tick.failed_over_from is not None:
        notes.append(f"{tick.instrument.venue} stands in for {tick.failed_over_from}")
    if not series.candles:
        notes.append("no candles in this window")
        return notes
    if series.gaps:
        one = series.gaps == 1
        which, known = ("interval has", "is") if one else ("intervals have", "are")
        notes.append(f"{series.gaps} {which} no trade or {known} not known whole")
    if series.candles[0].open_ts_ms > asked_ms and not series.truncated:
        notes.append(f"nothing is known before {timestamp(series.candles[0].open_ts_ms)}")
    if not series.first_complete:
        notes.append("the first candle is not known whole")
    if not series.last_closed:
        notes.append("the last candle is still open")
    return notes
