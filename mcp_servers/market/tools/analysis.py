"""Tools that compute from closed bars: indicators and statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, Protocol

from pydantic import Field

from mcp_servers.envelope import MAX_CHARS, LookbackMs, Meta, Reply, ok, timestamp
from mcp_servers.hosting import Context, state
from mcp_servers.market.candle_series import CandleSeries
from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.figures import figure
from mcp_servers.market.history import BARS_MAX
from mcp_servers.market.indicators import INDICATORS_MAX, Indicator, parse_indicators
from mcp_servers.market.market_time import parse_as_of
from mcp_servers.market.prices import Prices
from mcp_servers.market.schemas import analysis as schemas
from mcp_servers.market.statistics import Comparison, Statistics, compare, measure
from mcp_servers.market.tools.arguments import Register, SymbolText, Timeframe, VenueText
from trading.domain.errors import Unavailable
from trading.domain.instruments import Instrument, InstrumentId
from trading.domain.market_data import Candle
from trading.domain.money import plain
from trading.strategy.series import bars_of

#: Characters of a reply that are no figures: envelope, meta, names and notes.
_FRAME_CHARS: Final = 1_500
_TIME_CHARS: Final = 15
_MARKS: Final = 4  # quotes, comma and blank around a figure
_SPARE_BARS: Final = 2  # the open one, and the first if it was seen in part only
_UNSETTLED_BARS: Final = 200  # read beyond what is needed by what never forgets its first bar
_DEFINITION: Final = (
    "log returns of closed bars exactly one interval apart, two symbols joined on time; volatilities per 365 days; "
    "*_error: standard error for independent returns; ewma: decay 0.94, zero mean; max_drawdown: of closes, share of "
    "the peak; skew and excess_kurtosis adjusted for sample size; beta: least squares on the benchmark"
)

IndicatorTexts = Annotated[list[Annotated[str, Field(max_length=64)]], Field(min_length=1, max_length=INDICATORS_MAX)]
AsOfText = Annotated[str, Field(max_length=40)]
Symbols = Annotated[list[SymbolText], Field(min_length=1, max_length=10)]


class CandleHistory(Protocol):
    """Where past candles come from."""

    async def candles(
        self,
        instrument_id: InstrumentId,
        timeframe: str,
        *,
        lookback_ms: int,
        as_of_ms: int | None = None,
        limit: int = BARS_MAX,
    ) -> CandleSeries:
        """Return the candles that overlap the last ``lookback_ms`` before a moment, oldest first."""
        ...


class HasAnalysis(Protocol):
    """What these tools need of the room."""

    @property
    def prices(self) -> Prices:
        """Knows the instruments."""
        ...

    @property
    def history(self) -> CandleHistory:
        """Past candles."""
        ...


@dataclass(frozen=True, slots=True)
class ClosedBars:
    """The bars of one market that are over, whole and before a moment.

    Attributes:
        until_ms: the moment.
        gaps: intervals between the first and the last that are absent or not known whole.
        truncated: whether the asked time holds more bars than these.
    """

    instrument: Instrument
    timeframe: str
    candles: tuple[Candle, ...]
    until_ms: int
    gaps: int
    truncated: bool
    sources: tuple[str, ...]
    notes: tuple[str, ...]


def register(read: Register) -> None:
    """Add the tools."""

    @read(title="Get indicators")
    async def market_get_indicators(
        ctx: Context[HasAnalysis],
        symbol: SymbolText,
        timeframe: Timeframe,
        indicators: IndicatorTexts,
        bars: Annotated[int, Field(ge=1, le=100)] = 20,
        as_of: AsOfText = "",
        venue: VenueText = None,
    ) -> Reply[schemas.Indicators]:
        """Compute indicators on closed bars, newest last. Example: ["rsi:14", "macd:12:26:9"].

        Also sma ema bollinger atr adx stochastic obv vwap donchian keltner roc cci williams_r supertrend.
        """
        chosen = parse_indicators(indicators)
        service, moment = state(ctx), parse_as_of(as_of) if as_of else None
        instrument = service.prices.instrument(symbol, venue)
        wanted = max(found.settled or found.needed + _UNSETTLED_BARS for found in chosen) + bars - 1
        read_bars = await _newest_bars(service.history, instrument, timeframe, wanted, moment)
        data = await asyncio.to_thread(indicator_columns, read_bars, chosen, bars)
        shown = len(data.open_ts_ms)
        return ok(data, _meta((read_bars,), truncated=shown < min(bars, data.bars_read)))

    @read(title="Get statistics")
    async def market_get_statistics(
        ctx: Context[HasAnalysis],
        symbols: Symbols,
        timeframe: Timeframe,
        lookback: LookbackMs,
        benchmark: Annotated[str, Field(max_length=41)] = "",
        as_of: AsOfText = "",
        venue: VenueText = None,
    ) -> Reply[schemas.Statistics]:
        """Measure volatility, drawdown, skew, correlation and beta to a benchmark (default: the first symbol).

        At most 1000 bars, 20 returns at least. Example: "1h", lookback "4w". Not for prices: market_get_candles.
        """
        service, moment = state(ctx), parse_as_of(as_of) if as_of else None
        names = tuple(dict.fromkeys(symbols))
        leader = benchmark or (names[0] if len(names) > 1 else "")
        asked = dict.fromkeys((*names, leader)) if leader else dict.fromkeys(names)
        instruments = [service.prices.instrument(symbol, venue) for symbol in asked]
        series = await asyncio.gather(
            *(service.history.candles(i.id, timeframe, lookback_ms=lookback, as_of_ms=moment) for i in instruments)
        )
        found = [closed_bars(instrument, one) for instrument, one in zip(instruments, series, strict=True)]
        by_symbol = dict(zip(asked, synchronous(found), strict=True))
        data = await asyncio.to_thread(statistics_columns, by_symbol, names, leader or None)
        return ok(data, _meta(found, truncated=any(one.truncated for one in found)))


def closed_bars(instrument: Instrument, series: CandleSeries) -> ClosedBars:
    """Return the bars of a series that are over and, at its beginning, whole.

    Raises:
        Unavailable: code MARKET_STARTING: there is nothing at all yet.
    """
    if series.until_ms <= 0:
        raise Unavailable(
            f"the market has not given anything of {instrument.symbol} yet",
            code="MARKET_STARTING",
            suggestion="ask again in a moment, or ask market_get_status",
        )
    whole_from = next((index for index, complete in enumerate(series.complete) if complete), len(series.candles))
    kept = tuple(
        candle
        for candle in series.candles[whole_from:]
        if candle.closed and candle.open_ts_ms + candle.interval_ms <= series.until_ms
    )
    return ClosedBars(
        instrument,
        series.timeframe,
        kept,
        series.until_ms,
        series.gaps,
        series.truncated,
        series.sources,
        series.notes,
    )


def synchronous(found: Sequence[ClosedBars]) -> list[tuple[Candle, ...]]:
    """Return the bars of several markets up to the moment that all of them have reached."""
    until = min(bars.until_ms for bars in found)
    return [
        tuple(candle for candle in bars.candles if candle.open_ts_ms + candle.interval_ms <= until) for bars in found
    ]


def indicator_columns(found: ClosedBars, chosen: Sequence[Indicator], bars: int) -> schemas.Indicators:
    """Return the newest values of indicators, as many bars as were asked and as a reply holds.

    Raises:
        InvalidValue: code NOT_ENOUGH_HISTORY.
    """
    columns = bars_of(found.candles)
    lines: dict[str, list[Decimal | None]] = {}
    for indicator in chosen:
        for name, line in indicator.compute(columns).items():
            key = indicator.name if name == "value" else f"{indicator.name}.{name}"
            lines[key] = [figure(value) for value in line[-bars:]]
    candles = found.candles[-bars:]
    count = _how_many_fit(len(candles), lines, chosen)
    return schemas.Indicators(
        symbol=found.instrument.symbol,
        venue=found.instrument.venue,
        timeframe=found.timeframe,
        open_ts_ms=[candle.open_ts_ms for candle in candles[-count:]],
        lines={name: line[-count:] for name, line in lines.items()},
        definitions={each.name: f"{each.definition.text}; needs {each.needed} bars" for each in chosen},
        unsettled=[each.name for each in chosen if each.settled is None or len(columns) < each.settled],
        bars_read=len(columns),
        notes=[
            *found.notes,
            *([f"{found.gaps} interval{'s' * (found.gaps > 1)} without a whole bar"] if found.gaps else []),
        ],
    )


def statistics_columns(
    by_symbol: Mapping[str, Sequence[Candle]], names: Sequence[str], benchmark: str | None
) -> schemas.Statistics:
    """Return the statistics of ``names``, and how each moved with the benchmark if there is one.

    Raises:
        InvalidValue: code NOT_ENOUGH_HISTORY.
    """
    measured = [measure(by_symbol[name], name=name) for name in names]
    columns = {name: [figure(getattr(one, name)) for one in measured] for name in _MEASURED}
    notes: list[str] = []
    if benchmark is not None:
        compared = [compare(by_symbol[name], by_symbol[benchmark], name=f"{name} and {benchmark}") for name in names]
        columns |= {name: [figure(getattr(one, name)) for one in compared] for name in _COMPARED}
        notes += [
            f"{name}: only {one.returns} returns at the same times as {benchmark}"
            for name, one, own in zip(names, compared, measured, strict=True)
            if one.returns < own.returns
        ]
    notes += [
        f"{name}: {one.left_out} returns across gaps left out"
        for name, one in zip(names, measured, strict=True)
        if one.left_out
    ]
    return schemas.Statistics(
        symbols=list(names),
        benchmark=benchmark,
        returns=[one.returns for one in measured],
        figures=columns,
        definition=_DEFINITION,
        notes=notes,
    )


#: Fields of :class:`Statistics` and of :class:`Comparison` that are shown.
_MEASURED: Final = tuple(name for name in Statistics.__slots__ if name not in ("returns", "left_out"))
_COMPARED: Final = tuple(name for name in Comparison.__slots__ if name != "returns")


async def _newest_bars(
    history: CandleHistory, instrument: Instrument, timeframe: str, wanted: int, as_of_ms: int | None
) -> ClosedBars:
    """Return the newest ``wanted`` closed bars, or as many as there are.

    Where intervals without a trade are common, so many intervals hold fewer bars: then more of them are read.
    """
    asked = min(wanted + _SPARE_BARS, BARS_MAX)
    found = await _read(history, instrument, timeframe, asked, as_of_ms)
    if len(found.candles) < wanted and asked < BARS_MAX:
        found = await _read(history, instrument, timeframe, BARS_MAX, as_of_ms)
    return found


async def _read(
    history: CandleHistory, instrument: Instrument, timeframe: str, count: int, as_of_ms: int | None
) -> ClosedBars:
    lookback = count * TIMEFRAMES[timeframe]
    series = await history.candles(instrument.id, timeframe, lookback_ms=lookback, as_of_ms=as_of_ms)
    return closed_bars(instrument, series)


def _how_many_fit(bars: int, lines: Mapping[str, Sequence[Decimal | None]], chosen: Sequence[Indicator]) -> int:
    """Return how many of the newest bars a reply may hold, at least one."""
    used = _FRAME_CHARS + sum(len(indicator.definition.text) + 4 * len(indicator.name) for indicator in chosen)
    for count in range(1, bars + 1):
        values = [line[-count] for line in lines.values()]
        texts = ["null" if value is None else plain(value) for value in values]
        used += _TIME_CHARS + sum(len(text) + _MARKS for text in texts)
        if used > MAX_CHARS and count > 1:
            return count - 1
    return bars


def _meta(found: Sequence[ClosedBars], *, truncated: bool) -> Meta:
    venues = {bars.instrument.venue for bars in found}
    return Meta(
        venue=found[0].instrument.venue if len(venues) == 1 else None,
        as_of=timestamp(min(bars.until_ms for bars in found)),
        source="+".join(sorted({source for bars in found for source in bars.sources})) or None,
        truncated=truncated,
    )
