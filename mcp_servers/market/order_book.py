"""An exchange's order book, built from one snapshot and the differences around it.

Rules kept here (Binance, "How to manage a local order book correctly"; other venues with first and last update ids):

1. Differences that arrive before the snapshot wait, a bounded number of them, and are applied in order after it.
2. A difference that ends at or before the book's last update is old and is dropped.
3. Otherwise it must begin at or before the next update: ``first <= last + 1 <= last_of_difference``.
4. Anything else is a gap. The book is then worth nothing: it is emptied and waits for the next snapshot.
5. A crossed or locked book is flagged and is never shown as good.

Between two differences (100 ms) the best prices come from the faster quote stream: a quote newer than the book says
what the best levels are at that update, so better levels than these are gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from trading.adapters.market_wire import MAX_LEVELS, LevelText
from trading.domain.errors import InvalidValue
from trading.domain.money import parse_decimal, plain

_BUFFER: Final = 1_000  # differences that may wait for a snapshot

RawLevels = Sequence[Sequence[str]]


class BookState(StrEnum):
    """Whether the book may be believed."""

    WAITING = "resync"  # no snapshot yet
    OK = "ok"
    GAP = "gap"
    CROSSED = "crossed"
    OUTLIER = "outlier"  # good in itself, but far from what every other sign says; the pipeline decides that


class Applied(StrEnum):
    """What became of a difference."""

    APPLIED = "applied"
    OLD = "old"
    BUFFERED = "buffered"
    GAP = "gap"


class _Difference(NamedTuple):
    first_id: int
    last_id: int
    bids: list[_Change]
    asks: list[_Change]


class _Change(NamedTuple):
    price: Decimal
    level: LevelText | None  # None removes the level


class _Quote(NamedTuple):
    """The best levels at one update id."""

    update_id: int
    bid_price: Decimal
    bid: LevelText
    ask_price: Decimal
    ask: LevelText


class _Side:
    """Prices in ascending order with what rests at each beside them; a change costs one binary search, never a sort."""

    def __init__(self, *, best_is_last: bool) -> None:
        self._best_is_last = best_is_last
        self._prices: list[Decimal] = []
        self._levels: list[LevelText] = []

    def clear(self) -> None:
        self._prices.clear()
        self._levels.clear()

    def change(self, changes: Sequence[_Change]) -> None:
        prices, levels = self._prices, self._levels
        for price, level in changes:
            at = bisect_left(prices, price)
            known = at < len(prices) and prices[at] == price
            if level is None:
                if known:
                    del prices[at], levels[at]
            elif known:
                levels[at] = level
            else:
                prices.insert(at, price)
                levels.insert(at, level)

    def top(self, count: int) -> list[LevelText]:
        return self._levels[: -count - 1 : -1] if self._best_is_last else self._levels[:count]

    def best(self) -> Decimal | None:
        if not self._prices:
            return None
        return self._prices[-1] if self._best_is_last else self._prices[0]

    def top_from(self, price: Decimal, best: LevelText, count: int) -> list[LevelText]:
        """Return the top with ``best``, whose price is ``price``, as its first level and nothing better than it."""
        at = bisect_left(self._prices, price)
        if self._best_is_last:
            return [best, *self._levels[max(0, at - count + 1) : at][::-1]]
        at += at < len(self._prices) and self._prices[at] == price
        return [best, *self._levels[at : at + count - 1]]


class DepthBook:
    """One instrument's book. Not thread-safe; nothing in it waits.

    Attributes:
        last_id: the last update that the levels contain; 0 without a snapshot.
        counters: gaps, snapshots, old differences, crossed states, quotes used.
    """

    def __init__(self) -> None:
        self._bids = _Side(best_is_last=True)
        self._asks = _Side(best_is_last=False)
        self._waiting: deque[_Difference] = deque(maxlen=_BUFFER)
        self._quote: _Quote | None = None
        self._state = BookState.WAITING
        self.last_id = 0
        self.counters: dict[str, int] = dict.fromkeys(("gaps", "snapshots", "old", "crossed", "quotes"), 0)

    @property
    def state(self) -> BookState:
        """Whether the book may be believed now."""
        return self._state

    @property
    def needs_snapshot(self) -> bool:
        """Whether only a snapshot can make the book good again."""
        return self._state in (BookState.WAITING, BookState.GAP)

    def reset(self) -> None:
        """Forget everything: the stream starts anew."""
        self._empty(BookState.WAITING)
        self._waiting.clear()

    def snapshot(self, last_id: int, bids: RawLevels, asks: RawLevels) -> None:
        """Start from a whole book, then apply the differences that were waiting for it.

        Raises:
            InvalidValue: a level is malformed; the book is as it was.
        """
        whole = _Difference(0, last_id, _parse(bids), _parse(asks))
        self._empty(BookState.OK)
        self.counters["snapshots"] += 1
        self._change(whole)
        waiting = list(self._waiting)
        self._waiting.clear()
        for difference in waiting:
            self._apply(difference)

    def difference(self, first_id: int, last_id: int, bids: RawLevels, asks: RawLevels) -> Applied:
        """Apply the changes of updates ``first_id`` to ``last_id``; a quantity of zero removes a level.

        Raises:
            InvalidValue: a level or the range is malformed; the next difference will then show a gap.
        """
        if first_id > last_id:
            raise InvalidValue("a difference ends before it begins", code="MALFORMED")
        return self._apply(_Difference(first_id, last_id, _parse(bids), _parse(asks)))

    def quote(self, update_id: int, bid: Sequence[str], ask: Sequence[str]) -> bool:
        """Take the best levels of a faster stream; return whether they are news.

        Raises:
            InvalidValue: a level is malformed or the quote is crossed in itself.
        """
        if update_id <= self.last_id or (self._quote is not None and update_id <= self._quote.update_id):
            return False
        (bid_price, bid_level), (ask_price, ask_level) = _parse_level(bid), _parse_level(ask)
        if bid_level is None or ask_level is None or bid_price >= ask_price:
            raise InvalidValue("a quote is empty or crossed in itself", code="MALFORMED")
        self._quote = _Quote(update_id, bid_price, bid_level, ask_price, ask_level)
        self.counters["quotes"] += 1
        self._judge()
        return True

    def top(self, count: int = MAX_LEVELS) -> tuple[list[LevelText], list[LevelText]]:
        """Return up to ``count`` bids and asks, best first; two empty lists unless the state is OK."""
        if self._state is not BookState.OK:
            return [], []
        if self._quote is not None:
            quote = self._quote
            bids = self._bids.top_from(quote.bid_price, quote.bid, count)
            return bids, self._asks.top_from(quote.ask_price, quote.ask, count)
        return self._bids.top(count), self._asks.top(count)

    def best(self) -> tuple[LevelText, LevelText] | None:
        """Return best bid and ask, None unless the state is OK and both sides exist."""
        if self._quote is not None and self._state is BookState.OK:
            return self._quote.bid, self._quote.ask
        bids, asks = self.top(1)
        return (bids[0], asks[0]) if bids and asks else None

    def _apply(self, difference: _Difference) -> Applied:
        if self.needs_snapshot:
            self._waiting.append(difference)
            return Applied.BUFFERED
        if difference.last_id <= self.last_id:
            self.counters["old"] += 1
            return Applied.OLD
        if difference.first_id > self.last_id + 1:
            self.counters["gaps"] += 1
            self._empty(BookState.GAP)
            self._waiting.append(difference)
            return Applied.GAP
        self._change(difference)
        return Applied.APPLIED

    def _change(self, difference: _Difference) -> None:
        self._bids.change(difference.bids)
        self._asks.change(difference.asks)
        self.last_id = difference.last_id
        if self._quote is not None and self._quote.update_id <= self.last_id:
            self._quote = None
        self._judge()

    def _judge(self) -> None:
        """Decide between OK and CROSSED; a newer quote cuts away what it crosses, so only bare levels can be."""
        if self.needs_snapshot:
            return
        bid, ask = self._bids.best(), self._asks.best()
        crossed = self._quote is None and bid is not None and ask is not None and bid >= ask
        if crossed and self._state is not BookState.CROSSED:
            self.counters["crossed"] += 1
        self._state = BookState.CROSSED if crossed else BookState.OK

    def _empty(self, state: BookState) -> None:
        self._bids.clear()
        self._asks.clear()
        self._quote = None
        self.last_id = 0
        self._state = state


def _parse(rows: RawLevels) -> list[_Change]:
    """Return changes from the venue's text; all of them, or an exception.

    Raises:
        InvalidValue: a row is no pair of decimal texts, a price is not positive or a quantity is negative.
    """
    try:
        return [_parse_level(row) for row in rows]
    except TypeError as error:
        raise InvalidValue("levels are not a list", code="MALFORMED") from error


def _parse_level(row: Sequence[str]) -> _Change:
    """Return one change; raises as ``_parse`` does."""
    try:
        price_text, quantity_text = row
        price, price_plain = _number(price_text)
        quantity, quantity_plain = _number(quantity_text)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidValue("a level is not a pair of decimal texts", code="MALFORMED") from error
    if not price:
        raise InvalidValue("a level has no positive price", code="MALFORMED")
    return _Change(price, [price_plain, quantity_plain] if quantity else None)


@lru_cache(maxsize=65_536)  # the same prices and sizes come again and again
def _number(text: str) -> tuple[Decimal, str]:
    """Return a number that is not negative, and its plain text without trailing zeros."""
    value = parse_decimal(text)
    if value < 0:
        raise InvalidValue("a price or quantity is negative", code="MALFORMED")
    return value, plain(value)
