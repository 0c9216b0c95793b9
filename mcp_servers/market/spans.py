"""Stretches of time on a venue's clock, and which of them this process has watched without a break.

A span is ``(from_ms, until_ms)``, its end excluded. Lists of spans are sorted and do not touch one another.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from mcp_servers.market.candles import CandleStore
from trading.adapters.market_wire import BEGUN_ANEW, BookUpdate, TradeUpdate
from trading.domain.instruments import Instrument, InstrumentId

Span = tuple[int, int]

_BREAKS_KEPT: Final = 256


def join(spans: Iterable[Span]) -> list[Span]:
    """Return the union of spans; empty ones vanish."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def without(span: Span, known: Sequence[Span]) -> list[Span]:
    """Return the parts of ``span`` that no span of ``known`` (joined) covers."""
    start, end = span
    missing: list[Span] = []
    for known_start, known_end in known:
        if known_end <= start:
            continue
        if known_start >= end:
            break
        if known_start > start:
            missing.append((start, known_start))
        start = known_end
    if start < end:
        missing.append((start, end))
    return missing


def covers(known: Sequence[Span], start_ms: int, end_ms: int) -> bool:
    """Return whether one span of ``known`` (joined) holds the whole stretch."""
    index = bisect_right(known, start_ms, key=lambda span: span[0]) - 1
    return index >= 0 and known[index][1] >= end_ms


def aligned(spans: Iterable[Span], interval_ms: int) -> list[Span]:
    """Return the whole intervals within each span."""
    return join((-(-start // interval_ms) * interval_ms, end - end % interval_ms) for start, end in spans)


class Watch:
    """Knows for which stretches this process has seen every trade; a sink of the pipeline (``MarketSink``).

    Args:
        candles: fed with the same trades.
    """

    def __init__(self, candles: CandleStore) -> None:
        self._candles = candles
        self._breaks: dict[InstrumentId, deque[Span]] = {}
        self._broken_at: dict[InstrumentId, int] = {}

    def publish_instrument(self, instrument: Instrument) -> None:
        """Do nothing."""

    def publish_trade(self, update: TradeUpdate) -> None:
        """Note that trades flow again."""
        self.resumed(update.instrument_id, update.venue_ts_ms)

    def publish_book(self, update: BookUpdate) -> None:
        """Note a break when the stream has begun anew."""
        if update.state == BEGUN_ANEW:
            self.interrupted(update.instrument_id)

    def interrupted(self, instrument_id: InstrumentId) -> None:
        """Note that trades after the newest venue time may be missed, up to the next one that is published."""
        at = self._candles.now_ms(instrument_id)
        if at:
            self._broken_at.setdefault(instrument_id, at)

    def resumed(self, instrument_id: InstrumentId, ts_ms: int) -> None:
        """Note that trades flow again from a venue time on."""
        if not self._broken_at:
            return
        begun = self._broken_at.pop(instrument_id, None)
        if begun is not None and ts_ms > begun:
            self._breaks.setdefault(instrument_id, deque(maxlen=_BREAKS_KEPT)).append((begun, ts_ms))

    def is_broken(self, instrument_id: InstrumentId) -> bool:
        """Return whether trades may be missed now."""
        return instrument_id in self._broken_at

    def spans(self, instrument_id: InstrumentId) -> list[Span]:
        """Return the watched stretches up to the newest venue time, at most the last 256 breaks apart."""
        now = self._candles.now_ms(instrument_id)
        start, spans = self._candles.since_ms(instrument_id), list[Span]()
        breaks = self._breaks.get(instrument_id, ())
        if len(breaks) == _BREAKS_KEPT:  # older ones are forgotten, and with them what lies before
            start = breaks[0][1]
        for begun, ended in breaks:
            spans.append((start, begun))
            start = ended
        spans.append((start, self._broken_at.get(instrument_id, now)))
        return [span for span in spans if span[0] < span[1]]
