"""The public book less what we took out of it, and our own orders resting in it.

Rules of liquidity:

- The public book never knows of us. What we take at a price is remembered, and ``available = public - taken``.
- While the public quantity of that level stays the same, what we took stays taken.
- If the level grows, the growth is new and available. If it shrinks, others removed what we had already taken, as
  far as that goes: ``taken`` falls by the shrinkage, never below zero. So the same lot is never taken twice.
- A level that vanishes from within the visible depth is gone, and what we took with it. A level outside the visible
  depth is unknown, and stays as it was.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from decimal import Decimal
from typing import Final, NamedTuple

from trading.adapters.venues.paper.orders import PaperOrder
from trading.domain.market_data import Level, Side, is_worse
from trading.domain.money import ZERO, add, subtract

#: Levels outside the visible depth whose takings are remembered; the oldest are forgotten first.
_MAX_REMEMBERED: Final = 1024


class Plan(NamedTuple):
    """What an aggressive order would get now.

    Attributes:
        fills: price and quantity of each level touched, best first.
        filled: base, their sum.
        meets_self: whether it would then run into one of our own resting orders.
    """

    fills: list[Level]
    filled: Decimal
    meets_self: bool


class Ladder:
    """One side of the public book, best level first.

    Args:
        side: whose orders these are: BUY for the bids.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self.levels: tuple[Level, ...] = ()
        self._taken: dict[Decimal, Level] = {}  # price -> (public quantity last seen, taken)

    def update(self, levels: tuple[Level, ...]) -> None:
        """Replace the public levels and carry over what we took, by the rules above."""
        self.levels = levels
        if not self._taken:
            return
        carried: dict[Decimal, Level] = {}
        for price, (seen, taken) in self._taken.items():
            public = self.quantity_at(price)
            if public is None:
                carried[price] = Level(seen, taken)
                continue
            shrinkage = max(ZERO, subtract(seen, public))
            left = subtract(taken, shrinkage)
            if public and left > 0:
                carried[price] = Level(public, left)
        while len(carried) > _MAX_REMEMBERED:
            del carried[next(iter(carried))]
        self._taken = carried

    def quantity_at(self, price: Decimal) -> Decimal | None:
        """Return the public quantity at a price, 0 if there is none, None if it lies outside the visible depth."""
        levels, descending = self.levels, self.side is Side.BUY
        low, high = 0, len(levels)
        while low < high:
            middle = (low + high) // 2
            at = levels[middle].price
            if at == price:
                return levels[middle].quantity
            if (at > price) is descending:
                low = middle + 1
            else:
                high = middle
        return None if low == len(levels) and levels else ZERO

    def available_at(self, price: Decimal) -> Decimal | None:
        """Return the public quantity at a price less what we took; None outside the visible depth."""
        public = self.quantity_at(price)
        if public is None or price not in self._taken:
            return public
        return max(ZERO, subtract(public, self._taken[price][1]))

    def available(self) -> Iterator[Level]:
        """Yield levels that still have something, best first."""
        if not self._taken:
            yield from self.levels
            return
        for price, quantity in self.levels:
            if price in self._taken:
                quantity = subtract(quantity, self._taken[price][1])
            if quantity > 0:
                yield Level(price, quantity)

    def best(self) -> Decimal | None:
        """Return the best price that still has something, None when nothing is left."""
        for level in self.available():
            return level.price
        return None

    def plan(self, quantity: Decimal, limit: Decimal | None, own: PaperOrder | None) -> Plan:
        """Return what an order from the other side would take from here; takes nothing yet.

        Args:
            quantity: base, > 0.
            limit: the order's worst price, None for any.
            own: our own best order resting on this side, which stops the walk: others in front of it at its price
                are taken first, it is never met.
        """
        buys = self.side is Side.SELL
        barrier = own.terms.limit_price if own is not None else None
        fills: list[Level] = []
        remaining = quantity
        for price, here in self.available():
            if limit is not None and (price > limit if buys else price < limit):
                break
            if barrier is not None and own is not None:
                if price > barrier if buys else price < barrier:
                    break
                if price == barrier:
                    here = min(here, own.ahead or ZERO)
            if here >= remaining:
                fills.append(Level(price, remaining))
                remaining = ZERO
                break
            if here > 0:
                fills.append(Level(price, here))
                remaining = subtract(remaining, here)
            if price == barrier:
                break
        reachable = barrier is not None and (limit is None or not is_worse(barrier, limit, self.side.opposite))
        return Plan(fills, subtract(quantity, remaining), reachable and remaining > 0)

    def take(self, price: Decimal, quantity: Decimal) -> None:
        """Remember that we took ``quantity`` (base, > 0) at a visible price."""
        public = self.quantity_at(price) or ZERO
        before = self._taken.get(price)
        self._taken[price] = Level(public, add(before[1], quantity) if before else quantity)


class Resting:
    """Our own orders on one side, in price-time priority.

    Args:
        side: BUY holds bids, best is the highest price.
    """

    def __init__(self, side: Side) -> None:
        self.side = side
        self._keys: list[Decimal] = []  # ascending; bids are negated so that the best is always first
        self._levels: dict[Decimal, list[PaperOrder]] = {}

    def add(self, order: PaperOrder, price: Decimal) -> None:
        """Put an order behind those at the same price."""
        level = self._levels.get(price)
        if level is not None:
            level.append(order)
            return
        self._levels[price] = [order]
        key = self._key(price)
        self._keys.insert(bisect_left(self._keys, key), key)

    def remove(self, order: PaperOrder, price: Decimal) -> None:
        """Take an order out."""
        level = self._levels[price]
        level.remove(order)
        if not level:
            del self._levels[price]
            del self._keys[bisect_left(self._keys, self._key(price))]

    def first(self) -> PaperOrder | None:
        """Return the order with the highest priority."""
        return self._levels[self._key(self._keys[0])][0] if self._keys else None

    def down_to(self, price: Decimal) -> Iterator[tuple[Decimal, tuple[PaperOrder, ...]]]:
        """Yield levels at ``price`` or better for the other side, best first; orders may be removed meanwhile."""
        for key in tuple(self._keys[: bisect_left(self._keys, self._key(price))]):
            yield self._key(key), tuple(self._levels[self._key(key)])
        if price in self._levels:
            yield price, tuple(self._levels[price])

    def levels(self) -> Iterator[tuple[Decimal, list[PaperOrder]]]:
        """Yield every level, best first."""
        for key in self._keys:
            price = self._key(key)
            yield price, self._levels[price]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def _key(self, price: Decimal) -> Decimal:
        return price.copy_negate() if self.side is Side.BUY else price  # unary minus would round
