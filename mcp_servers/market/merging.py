"""Puts bars together from finer ones."""

from __future__ import annotations

from collections.abc import Iterable

from trading.domain.market_data import Candle
from trading.domain.money import add


def merge_bars(bars: Iterable[Candle], interval_ms: int, *, now_ms: int) -> list[Candle]:
    """Return the bars of ``interval_ms`` that finer ones make.

    Args:
        bars: of one instrument, oldest first; their length divides ``interval_ms``.
        now_ms: a bar that ends later is marked open.
    """
    merged: dict[int, list[Candle]] = {}
    for bar in bars:
        merged.setdefault(bar.open_ts_ms - bar.open_ts_ms % interval_ms, []).append(bar)
    return [merge_one(parts, interval_ms, closed=opened + interval_ms <= now_ms) for opened, parts in merged.items()]


def merge_one(parts: list[Candle], interval_ms: int, *, closed: bool) -> Candle:
    """Return the one bar that ``parts`` (oldest first, at least one, all within it) make."""
    first, volume = parts[0], parts[0].volume
    for part in parts[1:]:
        volume = add(volume, part.volume)
    return Candle(
        instrument_id=first.instrument_id,
        interval_ms=interval_ms,
        open_ts_ms=first.open_ts_ms - first.open_ts_ms % interval_ms,
        open=first.open,
        high=max(part.high for part in parts),
        low=min(part.low for part in parts),
        close=parts[-1].close,
        volume=volume,
        trades=sum(part.trades for part in parts),
        closed=closed,
    )
