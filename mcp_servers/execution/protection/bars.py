"""The average true range of execution's own prices, by Wilder's rule.

Source: J. Welles Wilder, New Concepts in Technical Trading Systems (1978): the first value is the mean of the first n
true ranges, each later one is (previous * (n - 1) + true range) / n.
"""

from __future__ import annotations

from decimal import Decimal

from trading.domain.money import ZERO, add, divide, multiply, quantize_nearest, subtract

_DIGITS = 12


class TrueRange:
    """Builds bars from prices as they come. Memory is bounded: one open bar and one number.

    Args:
        bars: how many bars the range is averaged over, >= 1.
        bar_ms: length of a bar on our clock. A bar without a price is left out.
    """

    def __init__(self, bars: int, bar_ms: int) -> None:
        self.bars = bars
        self.bar_ms = bar_ms
        #: Average true range in quote, None until ``bars`` bars are complete.
        self.value: Decimal | None = None
        self._bar = -1
        self._high = self._low = self._last = ZERO
        self._close: Decimal | None = None
        self._sum = ZERO
        self._count = 0

    def observe(self, price: Decimal, now_ms: int) -> None:
        """Take a price; the first one of a new bar completes the bar before."""
        bar = now_ms // self.bar_ms
        if bar == self._bar:
            self._high, self._low, self._last = max(self._high, price), min(self._low, price), price
            return
        if self._bar >= 0:
            self._complete()
        self._bar = bar
        self._high = self._low = self._last = price

    def _complete(self) -> None:
        high, low = self._high, self._low
        if self._close is not None:  # a gap between two bars belongs to the later one's range
            high, low = max(high, self._close), min(low, self._close)
        self._close = self._last
        true_range = subtract(high, low)
        self._count += 1
        if self.value is not None:
            carried = multiply(self.value, Decimal(self.bars - 1))
            self.value = quantize_nearest(divide(add(carried, true_range), Decimal(self.bars)), _DIGITS)
            return
        self._sum = add(self._sum, true_range)
        if self._count == self.bars:
            self.value = quantize_nearest(divide(self._sum, Decimal(self.bars)), _DIGITS)
