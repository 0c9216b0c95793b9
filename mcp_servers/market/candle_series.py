"""Bars with what is known of them, and the answer that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from mcp_servers.market.candles import TIMEFRAMES
from mcp_servers.market.merging import merge_one
from trading.adapters.sql.candles import StoredCandle
from trading.domain.instruments import InstrumentId
from trading.domain.market_data import Candle


class Bar(NamedTuple):
    """A candle on its way into an answer.

    Attributes:
        complete: whether it holds every trade of its interval, as far as that is over.
        origins: where its parts are from, see :class:`CandleSeries`.
    """

    candle: Candle
    complete: bool
    origins: frozenset[str]

    @property
    def rank(self) -> int:
        """Which of two bars of one interval is shown: complete ones built here, the venue's, cut ones."""
        return 0 if not self.complete else 1 if "venue" in self.origins else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CandleSeries:
    """Candles of one timeframe up to a moment.

    Attributes:
        candles: oldest first; intervals without a trade do not exist.
        complete: for each, whether it holds every trade of its interval, as far as that is over.
        until_ms: the moment.
        sources: of ``trades`` (seen by this process), ``archive`` (by an earlier one), ``venue`` (its own candles).
        truncated: whether the asked time holds more than the newest bars given here.
        notes: what could not be had, for a person.
    """

    instrument_id: InstrumentId
    timeframe: str
    candles: tuple[Candle, ...]
    complete: tuple[bool, ...]
    until_ms: int
    sources: tuple[str, ...]
    truncated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def first_complete(self) -> bool:
        """Whether the first candle is complete; False when there is none."""
        return bool(self.complete) and self.complete[0]

    @property
    def last_closed(self) -> bool:
        """Whether the last candle can change no more; False when there is none."""
        return bool(self.candles) and self.candles[-1].closed

    @property
    def gaps(self) -> int:
        """Intervals between the first and the last candle that are absent or not known whole."""
        if not self.candles:
            return 0
        between = (self.candles[-1].open_ts_ms - self.candles[0].open_ts_ms) // TIMEFRAMES[self.timeframe] - 1
        return max(0, between) - sum(self.complete[1:-1])

    def newest(self, count: int) -> CandleSeries:
        """Return the series of its newest ``count`` candles, >= 0, marked truncated when some are left out."""
        left_out = len(self.candles) - count
        if left_out <= 0:
            return self
        return replace(self, candles=self.candles[left_out:], complete=self.complete[left_out:], truncated=True)


def series_of(
    instrument_id: InstrumentId,
    timeframe: str,
    bars: Sequence[Bar],
    *,
    until_ms: int,
    truncated: bool = False,
    notes: Sequence[str] = (),
) -> CandleSeries:
    """Return the answer that ``bars`` (oldest first) make."""
    origins = {origin for bar in bars for origin in bar.origins}
    return CandleSeries(
        instrument_id=instrument_id,
        timeframe=timeframe,
        candles=tuple(bar.candle for bar in bars),
        complete=tuple(bar.complete for bar in bars),
        until_ms=until_ms,
        sources=tuple(name for name in ("trades", "archive", "venue") if name in origins),
        truncated=truncated,
        notes=tuple(notes),
    )


_HERE: Final = frozenset(("trades",))


def built(candle: Candle, *, complete: bool = True) -> Bar:
    """Return a bar of this process's own."""
    return Bar(candle, complete, _HERE)


def stored(item: StoredCandle) -> Bar:
    """Return a bar from the archive."""
    return Bar(item.candle, item.complete, frozenset(("archive" if item.source == "trades" else "venue",)))


def better(old: Bar | None, new: Bar) -> Bar:
    """Return which of two bars of one interval is shown."""
    return new if old is None or old.rank < new.rank else old


def together(parts: Sequence[Bar], interval_ms: int, *, complete: bool, closed: bool) -> Bar:
    """Return the one bar of ``interval_ms`` that ``parts`` (oldest first, at least one) make."""
    candle = merge_one([part.candle for part in parts], interval_ms, closed=closed)
    return Bar(candle, complete, parts[0].origins.union(*{part.origins for part in parts}))
