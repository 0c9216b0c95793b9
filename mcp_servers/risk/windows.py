"""Counts and sums over a moving window, with a bounded memory however fast things come."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from typing import Final, Generic, TypeVar

from trading.domain.money import ZERO, add, subtract

_SLICES: Final = 60
_KEYS_MAX: Final = 1_024

W = TypeVar("W")


class Counted:
    """How often something happened lately; remembers no more of it than the limit asks for."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[int] = deque()

    def add(self, at_ms: int, limit: int, window_ms: int) -> bool:
        """Count one; True when there were ``limit`` of them within the window. Times must not fall."""
        times = self._times
        times.append(at_ms)
        while len(times) > limit or times[0] <= at_ms - window_ms:
            times.popleft()
        return len(times) >= limit


class Summed:
    """A sum of amounts lately, in slices of a 60th of the window: counted up to one slice too long, never too short."""

    __slots__ = ("_slices", "total")

    def __init__(self) -> None:
        self._slices: deque[tuple[int, Decimal]] = deque()
        self.total = ZERO

    def add(self, amount: Decimal, at_ms: int, limit: Decimal, window_ms: int) -> bool:
        """Add one amount; True when the sum within the window reaches the limit. Times must not fall."""
        length = max(1, window_ms // _SLICES)
        start, slices = at_ms - at_ms % length, self._slices
        while slices and slices[0][0] + length <= at_ms - window_ms:
            self.total = subtract(self.total, slices.popleft()[1])
        if slices and slices[-1][0] >= start:
            slices[-1] = slices[-1][0], add(slices[-1][1], amount)
        else:
            slices.append((start, amount))
        self.total = add(self.total, amount)
        return self.total >= limit


class Keyed(Generic[W]):
    """One window for each name; the names used least lately are forgotten beyond a thousand."""

    def __init__(self, make: Callable[[], W]) -> None:
        self._make = make
        self._windows: OrderedDict[str, W] = OrderedDict()

    def __getitem__(self, key: str) -> W:
        window = self._windows.get(key)
        if window is None:
            while len(self._windows) >= _KEYS_MAX:
                self._windows.popitem(last=False)
            window = self._windows[key] = self._make()
        else:
            self._windows.move_to_end(key)
        return window

    def forget(self, key: str) -> None:
        """Begin anew for one name."""
        self._windows.pop(key, None)
