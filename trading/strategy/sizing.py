"""How much. Every bound grows with the mode's numbers, so a bolder mode never asks for less on the same signal."""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from trading.domain.market_data import Side
from trading.domain.money import ZERO, bps_of, divide, multiply, subtract, total
from trading.strategy.modes import ModeNumbers
from trading.strategy.signals import BOOK_LEVELS, volatility_bps
from trading.strategy.snapshot import MarketSnapshot

#: Part of the free cash that an order may use; the rest pays fees and a price that moves before the fill.
_CASH_SHARE: Final = Decimal("0.98")
_SHRINK_STEPS: Final = 100  # the volatility factor is cut to hundredths before it touches a size


def order_cap(snapshot: MarketSnapshot, mode: ModeNumbers, side: Side) -> Decimal:
    """Return the largest order (base, on the step) this mode would give on that side now; 0 when none.

    It is the least of: its share of equity (shrunk above the volatility target), its share of the visible depth, and
    for a buy the room below its largest position and the free cash, for a sell what is held.
    """
    book = snapshot.book
    mid = book.mid
    if mid is None or snapshot.equity <= 0:
        return ZERO
    levels = (book.asks if side is Side.BUY else book.bids)[:BOOK_LEVELS]
    bounds = [
        divide(multiply(bps_of(snapshot.equity, mode.order_equity_bps), _shrink(snapshot, mode)), mid),
        multiply(total([level.quantity for level in levels]), mode.depth_share),
    ]
    if side is Side.BUY:
        bounds.append(position_room(snapshot, mode))
        bounds.append(divide(multiply(snapshot.cash, _CASH_SHARE), book.asks[0].price))
    else:
        bounds.append(snapshot.held)
    return snapshot.instrument.quantity_floor(min(bounds))


def position_room(snapshot: MarketSnapshot, mode: ModeNumbers) -> Decimal:
    """Return how much more base the mode would hold (>= 0)."""
    mid = snapshot.book.mid
    if mid is None:
        return ZERO
    return max(ZERO, subtract(divide(bps_of(snapshot.equity, mode.position_equity_bps), mid), snapshot.held))


def order_size(snapshot: MarketSnapshot, mode: ModeNumbers, side: Side, strength: float) -> Decimal:
    """Return the size for a signal (base, on the step): half the cap at strength 0, all of it at 1; 0 if too small."""
    share = Decimal(50 + int(50 * min(max(strength, 0.0), 1.0))).scaleb(-2)
    size = snapshot.instrument.quantity_floor(multiply(order_cap(snapshot, mode, side), share))
    mid = snapshot.book.mid
    if mid is None or size < snapshot.instrument.smallest_quantity(mid):
        return ZERO
    return size


def _shrink(snapshot: MarketSnapshot, mode: ModeNumbers) -> Decimal:
    volatility = volatility_bps(snapshot)
    if volatility is None or volatility <= mode.volatility_bps_target:
        return Decimal(1)
    return Decimal(int(_SHRINK_STEPS * mode.volatility_bps_target / volatility)) / _SHRINK_STEPS
