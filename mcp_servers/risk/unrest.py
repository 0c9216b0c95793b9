"""How restless an instrument is: the range its mid went through lately, and what size others trade."""

from __future__ import annotations

from collections import deque
from decimal import Decimal
from statistics import median_low
from typing import Final

from trading.domain.identifiers import TradeId
from trading.domain.market_data import OrderBook, TradePrint
from trading.domain.money import BPS, divide, multiply, subtract

_SLICES: Final = 60
_SIZES_KEPT: Final = 201
#: Fewer trades than this say nothing about what size is usual.
SIZES_MIN: Final = 20


class MidRange:
    """Lowest and highest mid within a moving window, every mid that was seen counted, wicks included."""

    __slots__ = ("_moved", "_slices")

    def __init__(self) -> None:
        self._slices: deque[tuple[int, Decimal, Decimal]] = deque()
        self._moved: Decimal | None = None

    def observe(self, mid: Decimal, at_ms: int, window_ms: int) -> None:
        """Take one mid; times must not fall."""
        length = max(1, window_ms // _SLICES)
        start, slices = at_ms - at_ms % length, self._slices
        if slices and slices[-1][0] >= start:
            begun, low, high = slices[-1]
            if mid < low or mid > high:
                slices[-1] = begun, min(low, mid), max(high, mid)
                self._moved = None
        else:
            slices.append((start, mid, mid))
            self._moved = None
            self._expire(at_ms, window_ms)

    def move_bps(self, now_ms: int, window_ms: int) -> Decimal | None:
        """Return highest over lowest mid of the window, less one, in basis points; None when none was seen."""
        self._expire(now_ms, window_ms)
        if not self._slices:
            return None
        if self._moved is None:
            low = min([item[1] for item in self._slices])
            high = max([item[2] for item in self._slices])
            self._moved = multiply(divide(subtract(high, low), low), BPS)
        return self._moved

    def _expire(self, now_ms: int, window_ms: int) -> None:
        slices, length = self._slices, max(1, window_ms // _SLICES)
        while slices and slices[0][0] + length <= now_ms - window_ms:
            slices.popleft()
            self._moved = None


class TradeSizes:
    """Sizes of the public trades that were seen; a sample, since only the newest trade is looked at each time."""

    __slots__ = ("_last", "_median", "_sizes")

    def __init__(self) -> None:
        self._last: TradeId | None = None
        self._sizes: deque[Decimal] = deque(maxlen=_SIZES_KEPT)
        self._median: Decimal | None = None

    def observe(self, trade: TradePrint | None) -> None:
        """Take the newest trade; the same one twice counts once."""
        if trade is None or trade.trade_id == self._last:
            return
        self._last = trade.trade_id
        self._sizes.append(trade.quantity)
        self._median = None

    def median(self) -> Decimal | None:
        """Return the usual size in base; None before 20 trades were seen."""
        if len(self._sizes) < SIZES_MIN:
            return None
        if self._median is None:
            self._median = median_low(self._sizes)
        return self._median


class Unrest:
    """Everything remembered of one instrument's market beyond its newest book."""

    __slots__ = ("_book", "_spread_bps", "range", "sizes")

    def __init__(self) -> None:
        self.range = MidRange()
        self.sizes = TradeSizes()
        self._book: OrderBook | None = None
        self._spread_bps: Decimal | None = None

    def spread_bps(self, book: OrderBook | None) -> Decimal | None:
        """Return the spread of the book over its mid in basis points; None unless it is two-sided."""
        if book is not self._book:
            self._book, self._spread_bps = book, None if book is None else book.spread_bps
        return self._spread_bps
